"""Caching, deadlines, templates, batches: what the loop does beyond the authors' procedure."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from PIL import Image

from lladav.errors import BackendError, OptionError, PromptError
from lladav.runtime import Answer, GenerationConfig, Pipeline, Question, StepEvent
from lladav.runtime.config import generation_config
from lladav.runtime.denoiser import HostWindow
from lladav.runtime.pacing import Pacer, pass_key
from lladav.runtime.results import PassKind

PROMPT = [5, 17, 80, 33, 60]


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # no other test's times
        return Pipeline.load(tiny_bundle, threads=1)


def picture(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SELECTORS: list[dict[str, Any]] = [
    {"selector": "threshold", "threshold": 0.02},
    {"selector": "factor", "factor": 40.0},
    {"selector": "frechet", "delta": 0.99},
    {"selector": "entropy", "gamma": 6.0},
    {"preset": "realtime"},
    {"preset": "fast", "cfg_scale": 0.5, "suffix_ids": (9, 8)},
    {"preset": "quality", "block_length": 4},
]


@pytest.mark.parametrize("options", SELECTORS)
def test_every_selector_fills_the_canvas_once(pipeline: Pipeline, options: dict[str, Any]) -> None:
    config = GenerationConfig(gen_length=16, **options)
    answer = pipeline.generate(prompt_ids=PROMPT, config=config)
    committed = [p for step in answer.steps for p in step.positions]
    assert sorted(committed) == list(range(16))
    assert all(step.positions for step in answer.steps)
    assert answer.steps[0].kind == "refresh"
    assert not set(answer.token_ids[:16]) & set(pipeline.bundle.manifest.tokens.mask_aliases)
    assert sum(answer.passes.values()) == len(answer.steps)
    assert 0 < answer.mean_confidence <= 1


def test_bold_parameters_need_fewer_passes(pipeline: Pipeline) -> None:
    passes = [
        len(pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=16, **options)).steps)
        for options in ({"threshold": 1.0, "selector": "threshold"}, SELECTORS[0])
    ]
    assert passes[0] == 16 > passes[1]


def test_provisional_tokens_are_guesses_where_masks_are(pipeline: Pipeline) -> None:
    events = list(pipeline.stream(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8, preset="balanced")))
    masks = set(pipeline.bundle.manifest.tokens.mask_aliases)
    for event in events[:-1]:
        assert isinstance(event, StepEvent)
        for token, guess in zip(event.canvas, event.provisional, strict=True):
            assert guess not in masks
            assert token in masks or guess == token


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


TEMPLATE = '{"a": "{{4}}", "b": {{bool}}, "n": {{int}}, "side": "{{1|2|3}}"}'


FEW_STEPS: list[dict[str, Any]] = [
    {"preset": "realtime"},
    {"steps": 1},
    {"steps": 3, "remasking": "random"},
    {"selector": "fixed", "preset": "fast", "steps": 2},
]


@pytest.mark.parametrize(
    "options",
    [{}, {"preset": "exact"}, {"temperature": 1.0, "seed": 3}, {"cfg_scale": 0.5}, *SELECTORS[:4], *FEW_STEPS],
)
def test_template_is_valid_whatever_the_model_says(pipeline: Pipeline, options: dict[str, Any]) -> None:
    for last in range(6):
        config = GenerationConfig(template=TEMPLATE, **options)
        answer = pipeline.generate(prompt_ids=[*PROMPT, last], config=config)
        values = json.loads(answer.text)
        assert values == answer.values
        assert values["side"] in ("1", "2", "3")
        assert isinstance(values["b"], bool)
        assert isinstance(values["n"], int)
        assert answer.steps[-1].holes.keys() == values.keys()
        assert answer.finish_reason == "length"


@pytest.mark.parametrize("options", FEW_STEPS)
def test_contradictions_in_a_hole_are_solved_within_the_steps(pipeline: Pipeline, options: dict[str, Any]) -> None:
    config = GenerationConfig(template='{"n": "{{tie|toe|axe|ace}}", "m": {{int:6}}}', **options)
    for last in range(12):
        answer = pipeline.generate(prompt_ids=[*PROMPT, last], config=config)
        assert json.loads(answer.text)["n"] in ("tie", "toe", "axe", "ace")
        assert len(answer.steps) <= (config.steps or 8)
        assert all(0 < c <= 1 for step in answer.steps for c in step.confidences)


def test_what_follows_from_a_choice_takes_no_pass(pipeline: Pipeline) -> None:
    config = GenerationConfig(template='{"n": "{{abc|xyz}}"}', preset="exact")
    answer = pipeline.generate(prompt_ids=PROMPT, config=config)
    assert len(answer.steps) == 1
    assert json.loads(answer.text)["n"] in ("abc", "xyz")


def test_masks_in_the_prompt_beside_a_template(pipeline: Pipeline) -> None:
    mask = pipeline.bundle.manifest.tokens.mask
    answer = pipeline.generate(prompt_ids=[5, mask, 7, mask], config=GenerationConfig(template=TEMPLATE))
    assert json.loads(answer.text) == answer.values
    assert all(np.isfinite(c) for step in answer.steps for c in step.confidences)


def test_holes_are_told_once_they_have_settled(pipeline: Pipeline) -> None:
    events = list(pipeline.stream(prompt_ids=PROMPT, config=GenerationConfig(template=TEMPLATE, preset="exact")))
    answer = events.pop()
    assert isinstance(answer, Answer)
    settled: dict[str, str] = {}
    for event in events:
        assert isinstance(event, StepEvent)
        assert settled.items() <= event.holes.items()
        settled = event.holes
    assert len({len(e.holes) for e in events if isinstance(e, StepEvent)}) > 1


def test_object_of_a_model(pipeline: Pipeline) -> None:
    class Thing(pydantic.BaseModel):
        seen: bool
        count: int

    thing, answer = pipeline.generate_object(Thing, prompt_ids=PROMPT)
    assert isinstance(thing, Thing)
    assert thing.model_dump() == json.loads(answer.text)
    again, _ = pipeline.generate_object(Thing.model_json_schema(), prompt_ids=PROMPT)
    assert again == thing.model_dump()
    planned = pipeline.generate(prompt_ids=PROMPT, config=generation_config(schema=Thing))
    assert planned.values == thing.model_dump()
    with pytest.raises(OptionError, match="no stop beside it"):
        pipeline.generate_object(Thing, prompt_ids=PROMPT, config=GenerationConfig(stop=("x",)))
    with pytest.raises(OptionError, match="contradict"):
        pipeline.generate_object(Thing, prompt_ids=PROMPT, config=GenerationConfig(template="{{2}}"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"template": "{{4}}", "gen_length": 5}, "--gen-length 5 and --template"),
        ({"template": "{{600}}"}, "--canvas-buckets"),
        ({"template": "no hole"}, "--template"),
        ({"template": '{"a": {{4}}}'}, "--template"),
    ],
)
def test_templates_that_cannot_be_used(pipeline: Pipeline, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(**options))


QUESTIONS = [
    Question("What is this?", images=[picture(0)]),
    Question("hm", images=[picture(0)]),
    Question("What is this?", images=[picture(1, (200, 60))]),
    Question(prompt_ids=PROMPT),
    Question(prompt_ids=[5, 6, 4, 17, 80]),
    Question(prompt_ids=PROMPT),
]


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "exact"},
        {},
        {"preset": "fast", "block_length": 4},
        {"cfg_scale": 0.7, "suffix_ids": (3,)},
        {"temperature": 0.9, "seed": 2},
        {"template": TEMPLATE},
        {"stop_ids": ((40,), (41,), (42,), (43,))},
    ],
)
def test_batch_answers_as_one_by_one(pipeline: Pipeline, options: dict[str, Any]) -> None:
    config = GenerationConfig(**({} if "template" in options else {"gen_length": 12}), **options)
    together = list(pipeline.generate_batch(QUESTIONS, config, batch=6))
    for question, answer in zip(QUESTIONS, together, strict=True):
        alone = pipeline.generate(
            question.prompt, prompt_ids=question.prompt_ids, images=question.images, config=config
        )
        assert (answer.token_ids, answer.text, answer.finish_reason) == (
            alone.token_ids,
            alone.text,
            alone.finish_reason,
        )
        assert [step.positions for step in answer.steps] == [step.positions for step in alone.steps]


def test_batch_refuses_deadlines_and_no_size(pipeline: Pipeline) -> None:
    with pytest.raises(OptionError, match="--deadline-ms and a batch"):
        pipeline.generate_batch(QUESTIONS, GenerationConfig(deadline_ms=100))
    with pytest.raises(OptionError, match="pass 1 or more"):
        pipeline.generate_batch(QUESTIONS, batch=0)
    assert list(pipeline.generate_batch([])) == []
    with pytest.raises(PromptError):
        list(pipeline.generate_batch([Question()]))


def test_interrupted_stream_says_so(pipeline: Pipeline) -> None:
    config = GenerationConfig(gen_length=8)
    stream = pipeline.stream(prompt_ids=PROMPT, config=config)
    next(stream)
    alone = pipeline.generate(prompt_ids=PROMPT, config=config)
    with pytest.raises(OptionError, match="interrupted by another"):
        list(stream)
    assert pipeline.generate(prompt_ids=PROMPT, config=config).token_ids == alone.token_ids


def test_warm_up_of_a_refused_deadline_interrupts_a_stream(pipeline: Pipeline) -> None:
    """It computes in the same buffers, though no answer follows."""
    stream = pipeline.stream(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8))
    next(stream)
    with pytest.raises(OptionError, match="cannot be kept"):
        pipeline.generate(prompt_ids=PROMPT[:3], config=GenerationConfig(gen_length=8, deadline_ms=1e-6))
    with pytest.raises(OptionError, match="interrupted by another"):
        list(stream)


def test_threads_wait_for_one_another(pipeline: Pipeline) -> None:
    config = GenerationConfig(gen_length=8)
    prompts = [[5, 17, 80 + i] for i in range(6)]
    expected = [pipeline.generate(prompt_ids=prompt, config=config).token_ids for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda prompt: pipeline.generate(prompt_ids=prompt, config=config).token_ids, prompts * 3)
        assert list(found) == expected * 3


def test_logits_that_are_no_numbers(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pipeline.table.rows
    monkeypatch.setattr(HostWindow, "refresh", lambda _, wanted: np.full((1, len(wanted), rows), np.nan, np.float32))
    with pytest.raises(BackendError, match="no numbers for 8 of 8 positions"):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8))


def test_second_question_about_a_picture_skips_the_encoder(tiny_bundle: Path) -> None:
    pipe = Pipeline.load(tiny_bundle, threads=1)
    first, second = (pipe.generate("Hi", images=[picture()]) for _ in range(2))
    assert (first.reused_pictures, second.reused_pictures) == (0, 1)
    assert "vision_encoder" in first.timings_ms
    assert "vision_encoder" not in second.timings_ms
    assert first.token_ids == second.token_ids
    assert pipe.generate("Hi", images=[picture(1)]).reused_pictures == 0
    # The same crops, merged to other rows, are another picture.
    assert pipe.generate("Hi", images=[picture()], config=GenerationConfig(view="single")).reused_pictures == 0


def test_feature_cache_is_bounded(tiny_bundle: Path) -> None:
    one = Pipeline.load(tiny_bundle, threads=1).image_rows(picture()).nbytes
    pipe = Pipeline.load(tiny_bundle, threads=1, feature_cache_bytes=2 * one)
    reused = [pipe.generate("Hi", images=[picture(i)]).reused_pictures for i in (0, 1, 0, 2, 0, 1)]
    assert reused == [0, 0, 1, 0, 1, 0]
    none = Pipeline.load(tiny_bundle, threads=1, feature_cache_bytes=0)
    assert [none.generate("Hi", images=[picture()]).reused_pictures for _ in range(2)] == [0, 0]


def test_smaller_grids_and_a_single_view_take_fewer_crops(pipeline: Pipeline) -> None:
    wide = picture(0, (300, 120))
    found = [
        pipeline.generate("Hi", images=[wide], config=GenerationConfig(gen_length=4, **options))
        for options in ({}, {"max_grid": (2, 1)}, {"view": "single"}, {"preset": "realtime"})
    ]
    assert [answer.tiles for answer in found[1:]] == [(3,), (1,), (1,)]
    assert found[0].tiles > (3,)
    side = pipeline.pictures.encoder.geometry.side
    assert found[2].image_tokens == (side * side + 1,)
    assert all(sum(a.image_tokens) <= sum(b.image_tokens) for a, b in zip(found[1:], found, strict=False))
    with pytest.raises(OptionError, match="leaves no grid"):
        rule = pipeline.pictures.encoder.preprocessing
        pipeline.pictures._encoder.preprocessing = rule.model_copy(update={"grid_pinpoints": ((112, 112),)})  # type: ignore[union-attr]
        try:
            pipeline.generate("Hi", images=[wide], config=GenerationConfig(max_grid=(1, 1)))
        finally:
            pipeline.pictures._encoder.preprocessing = rule  # type: ignore[union-attr]
