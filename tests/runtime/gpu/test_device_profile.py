"""Profiles of a loop that the device runs alone."""

from __future__ import annotations

import pytest
from answers import MakeGpu
from host_executable import HostExecutable

from lladav.runtime import GenerationConfig
from lladav.runtime.profiling import profile, synthetic
from lladav.runtime.profiling.layers import PASSES
from lladav.runtime.profiling.trace import chrome_trace


@pytest.mark.parametrize("bursts", [False, True])
def test_steps_that_the_host_only_reads_are_profiled(make: MakeGpu, bursts: bool) -> None:
    pipeline, _ = make(bursts=bursts, prompt=384)
    asking = synthetic(pipeline, GenerationConfig(preset="quality", gen_length=8))
    measured = profile(pipeline, asking, runs=2, warmup=1)
    found = measured.profile
    assert len(found.steps) == 8
    for step in found.steps:
        assert step.waiting_ms is not None
        assert (step.sampling_ms.max, step.commit_ms.max) == (0, 0)
    assert found.setup.threads is None
    said = " ".join(found.notes)
    assert "memory was not measured by category: that takes a bundle loaded under it" in said
    assert "layers were not looked at" not in said
    assert found.layers is not None
    tree = {part.name: part.share for part in found.layers.tree}
    for graph in ("refresh", "step", "vision_encoder", "connector"):
        assert tree[graph] == 1
    assert (tree["step/MLP"], tree["step/norm"]) == (pytest.approx(0.75), pytest.approx(0.25))
    assert {node.name for node in measured.nodes} >= {"refresh/layers.0/mlp/product", "step/fused"}
    assert {len(node.ms) for node in measured.nodes} == {PASSES}
    lanes = [event["tid"] for event in chrome_trace(measured.recordings)["traceEvents"] if event["ph"] == "X"]
    assert {2, 3} <= set(lanes)


def test_a_library_without_a_profiler_is_said(make: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostExecutable, "layers", ())
    pipeline, _ = make(prompt=384)
    measured = profile(pipeline, synthetic(pipeline, GenerationConfig(gen_length=4)), runs=1, warmup=1)
    assert measured.profile.layers is None
    assert "layers were not looked at: host has no profiler here" in measured.profile.notes


def test_looking_at_layers_leaves_answers_as_they_were(make: MakeGpu) -> None:
    pipeline, _ = make(prompt=384)
    asking = synthetic(pipeline, GenerationConfig(preset="quality", gen_length=8))
    *_, before = asking.ask(pipeline)
    profile(pipeline, asking, runs=1, warmup=0)
    *_, after = asking.ask(pipeline)
    assert after.token_ids == before.token_ids
