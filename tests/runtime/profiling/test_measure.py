"""Measuring a small bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from machine_rates import even_rates

from lladav.errors import OptionError
from lladav.machine import Memory
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.profiling import Asking, Measured, MemoryLedger, profile, synthetic
from lladav.runtime.profiling.memory import Resident
from lladav.runtime.profiling.recorder import record

PASSES = 6


def test_the_parts_of_a_step_add_up_to_it(measured: Measured) -> None:
    assert len(measured.profile.steps) == PASSES
    for step in measured.profile.steps:
        parts = (step.graph_ms, step.sampling_ms, step.commit_ms, step.host_ms)
        assert sum(part.mean for part in parts) == pytest.approx(step.ms.mean, rel=1e-3)
        assert all(part.mean > 0 for part in parts)
        assert step.ms.n == 4


def test_steps_say_what_they_commit(measured: Measured) -> None:
    steps = measured.profile.steps
    assert [step.kind for step in steps] == ["refresh", "step", "step", "step", "refresh", "step"]
    assert sum(step.committed for step in steps) == 12
    assert [step.masks_left for step in steps] == [10, 8, 6, 4, 2, 0]
    for step in steps:
        assert step.mean_confidence is not None
        assert step.least_confidence is not None
        assert 0 < step.least_confidence <= step.mean_confidence <= 1
    assert measured.profile.tokens_per_pass == 2


def test_stages_and_first_token_lie_within_the_answer(measured: Measured) -> None:
    found = measured.profile
    assert {"preprocess", "vision_encoder", "connector", "denoise", "total"} <= found.stages.keys()
    assert found.stages["total"].mean <= found.answer_ms.mean
    assert all(0 < run.first_token_ms < run.ms for run in found.runs)
    assert found.passes.keys() == {"vision_encoder", "connector", "refresh", "step"}
    assert (found.passes["refresh"].ms.n, found.passes["step"].ms.n) == (8, 16)


def test_listening_changes_no_answer(pipeline: Pipeline, config: GenerationConfig) -> None:
    asking = synthetic(pipeline, config)
    *_, plain = asking.ask(pipeline)
    heard = record(asking.ask(pipeline))
    assert heard.answer.token_ids == plain.token_ids
    assert [step.event.positions for step in heard.steps] == [step.positions for step in plain.steps]


def test_spans_of_steps_follow_one_another(pipeline: Pipeline, config: GenerationConfig) -> None:
    heard = record(synthetic(pipeline, config).ask(pipeline))
    for step in heard.steps:
        assert [span.name for span in step.spans] == [step.event.kind, "sampling", "commit"]
        instants = [step.began, *(t for span in step.spans for t in (span.began, span.ended)), step.ended]
        assert np.all(np.diff(instants) >= 0)
    assert {"tokenize", "merge", "vision_encoder", "detokenize"} <= {span.name for span in heard.spans}


def test_a_vision_that_was_kept_is_noted(tiny_bundle: Path, config: GenerationConfig) -> None:
    caching = Pipeline.load(tiny_bundle, threads=1)
    notes = profile(caching, synthetic(caching, config), runs=1, warmup=1, layers=False).profile.notes
    assert any("vision is not in the times" in note for note in notes)
    assert any("memory was not measured" in note for note in notes)


def test_passes_stand_beside_their_limits(pipeline: Pipeline, config: GenerationConfig) -> None:
    probe = even_rates(1e9, 1e9)
    passes = profile(pipeline, synthetic(pipeline, config), runs=1, probe=probe, layers=False).profile.passes
    for found in passes.values():
        assert found.limit is not None
        assert found.limit.ms == pytest.approx(max(found.limit.bytes, found.limit.operations) / 1e6)
    refresh, step = passes["refresh"].limit, passes["step"].limit
    assert refresh is not None
    assert step is not None
    assert refresh.operations > step.operations
    for limit in (refresh, step):
        assert limit.predicted_ms is not None
        assert limit.predicted_ms > limit.ms
    vision = passes["vision_encoder"].limit
    assert vision is not None
    assert vision.predicted_ms is None


def test_a_sweep_covers_prompts_and_canvases(measured: Measured, pipeline: Pipeline) -> None:
    points, buckets = measured.profile.sweep, pipeline.bundle.manifest.buckets
    assert {point.prompt for point in points} == set(buckets.prompt)
    assert max(point.canvas for point in points) == buckets.canvas[-1]
    assert all(point.refresh_ms > 0 and point.step_ms > 0 for point in points)


def test_a_load_runs_beside_and_ends(pipeline: Pipeline, tmp_path: Path) -> None:
    asking = Asking(None, (), GenerationConfig(gen_length=4), prompt_ids=(5, 6))
    file = tmp_path / "running"
    command = f"sh -c 'while true; do date > {file}; sleep 0.01; done'"
    while not file.exists():
        found = profile(pipeline, asking, runs=20, load=[command, "true"], layers=False).profile
    assert found.workload.load == (command, "true")
    assert any("'true' had ended by itself" in note for note in found.notes)
    file.unlink()
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runs": 0}, "0 runs measure nothing"),
        ({"warmup": -1}, "warm"),
        ({"frames_per_second": 0.0}, "camera"),
        ({"load": ["/no/such/program"]}, "cannot be started"),
        ({"load": ["'"]}, "cannot be started"),
    ],
)
def test_what_measures_nothing_is_refused(
    pipeline: Pipeline, config: GenerationConfig, options: dict[str, object], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        profile(pipeline, synthetic(pipeline, config), **{"warmup": 0, **options})  # type: ignore[arg-type]


def test_counters_that_may_not_be_read_are_said_and_left_out(
    pipeline: Pipeline, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lladav.runtime.profiling.recorder._SCHEDSTAT", tmp_path / "none")
    found = profile(pipeline, synthetic(pipeline, config), runs=1, layers=False).profile
    assert all(step.waiting_ms is None for step in found.steps)
    assert any("waiting for a core was not measured" in note for note in found.notes)


def test_memory_that_may_not_be_read_is_said_and_left_out(
    tiny_bundle: Path, pipeline: Pipeline, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Resident:
        raise PermissionError(13, "Permission denied", "/proc/self/smaps")

    monkeypatch.setattr(Resident, "now", refuse)
    asking = synthetic(pipeline, config)
    found = profile(pipeline, asking, runs=1, warmup=1, ledger=MemoryLedger(tiny_bundle), layers=False).profile
    assert found.memory is None
    assert any("memory was not measured" in note and "/proc/self/smaps" in note for note in found.notes)


def test_layers_are_not_looked_at_where_weights_fit_only_once(
    pipeline: Pipeline, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Memory(total=1 << 30, available=1 << 10, swap=0, cma_total=0, cma_free=0)
    monkeypatch.setattr("lladav.runtime.profiling.host_backend.system_memory", lambda: full)
    found = profile(pipeline, synthetic(pipeline, config), runs=1).profile
    assert found.layers is None
    assert any("would be loaded once more" in note for note in found.notes)
