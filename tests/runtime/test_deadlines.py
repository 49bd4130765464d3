"""What a deadline does to an answer, and which are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asked import PROMPT, TEMPLATE, picture

from lladav.errors import OptionError
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.pacing import Pacer, pass_key
from lladav.runtime.results import PassKind


class _Scripted(Pacer):
    """Says "last" at a chosen pass, or after one that nothing more fits."""

    def __init__(self, last: int, *, afterwards: bool = False) -> None:
        self._passes = last
        self._afterwards = afterwards

    def plan(self, due: Any, undecided: int, pace: float) -> tuple[Any, bool]:
        del undecided, pace
        self._passes -= 1
        return due, self._passes <= 0 and not self._afterwards

    def fits(self) -> bool:
        return self._passes > 0 or not self._afterwards


_BLOCKS = {"block_length": 4, "selector": "factor"}


# A pass that computed one block of several cannot decide the others afterwards.
@pytest.mark.parametrize(
    ("last", "afterwards", "options"),
    [(1, False, {}), (3, False, {}), (1, False, _BLOCKS), (3, False, _BLOCKS), (2, True, {})],
)
def test_last_pass_before_the_deadline_commits_everything(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, last: int, afterwards: bool, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(pipeline, "_pacer", lambda *_: _Scripted(last, afterwards=afterwards))
    config = GenerationConfig(gen_length=16, deadline_ms=1.0, **options)
    answer = pipeline.generate(prompt_ids=PROMPT, config=config)
    assert len(answer.steps) == last
    assert answer.finish_reason == "deadline"
    assert answer.forced_tokens == answer.steps[-1].forced > 0
    assert len(answer.token_ids) == 16
    assert sorted(p for step in answer.steps for p in step.positions) == list(range(16))
    assert not set(answer.token_ids) & set(pipeline.bundle.manifest.tokens.mask_aliases)


def test_deadline_fills_a_template_validly(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_pacer", lambda *_: _Scripted(1))
    config = GenerationConfig(template=TEMPLATE, deadline_ms=1.0)
    for seed in range(8):
        answer = pipeline.generate(prompt_ids=[*PROMPT, seed], config=config)
        assert len(answer.steps) == 1
        assert set(json.loads(answer.text)) == {"a", "b", "n", "side"}


def test_what_lies_behind_a_stop_is_not_forced(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that the last pass finds ends the answer; the rest of the canvas does not matter."""
    free = pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=16, selector="factor"))
    first = free.steps[0]
    stop = first.canvas[first.positions[0]]
    monkeypatch.setattr(pipeline, "_pacer", lambda *_: _Scripted(1))
    config = GenerationConfig(gen_length=16, selector="factor", stop_ids=((stop,),), deadline_ms=1.0)
    answer = pipeline.generate(prompt_ids=PROMPT, config=config)
    forced = answer.steps[0].positions[-answer.forced_tokens :] if answer.forced_tokens else ()
    assert all(position < first.positions[0] for position in forced)
    assert answer.finish_reason == ("deadline" if forced else "stop")


def test_stale_times_do_not_refuse_for_ever(pipeline: Pipeline) -> None:
    config = GenerationConfig(gen_length=16, deadline_ms=5000)
    size = pipeline.denoiser.window([5], 16, 16, cached=True).size
    kinds: tuple[PassKind, ...] = ("refresh", "step")
    for kind in kinds:
        for _ in range(20):
            pipeline.times.add(pass_key(kind, size), 60_000.0)
    assert pipeline.generate(prompt_ids=PROMPT, config=config).finish_reason != "deadline"


def test_loose_deadline_changes_nothing(pipeline: Pipeline) -> None:
    free = pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=16))
    timed = pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=16, deadline_ms=1e6))
    assert (timed.token_ids, timed.finish_reason, timed.forced_tokens) == (free.token_ids, free.finish_reason, 0)
    assert "warm_up" in timed.timings_ms


def test_impossible_deadline_names_the_least_possible_one(pipeline: Pipeline) -> None:
    with pytest.raises(OptionError, match=r"cannot be kept here") as caught:
        pipeline.generate("Hi", images=[picture()], config=GenerationConfig(deadline_ms=0.001))
    least = float(str(caught.value).split("--deadline-ms ")[2].split()[0])
    assert least > 0.001
    assert pipeline.times.file is not None
    assert "vision/" in pipeline.times.file.read_text("utf-8")
