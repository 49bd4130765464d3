"""Selectors and templates: what the loop does beyond the authors' procedure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pydantic
import pytest
from asked import PROMPT, TEMPLATE

from lladav.errors import BackendError, OptionError
from lladav.runtime import Answer, GenerationConfig, Pipeline, StepEvent
from lladav.runtime.config import generation_config
from lladav.runtime.denoiser import HostWindow

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


def test_logits_that_are_no_numbers(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pipeline.table.rows
    monkeypatch.setattr(HostWindow, "refresh", lambda _, wanted: np.full((1, len(wanted), rows), np.nan, np.float32))
    with pytest.raises(BackendError, match="no numbers for 8 of 8 positions"):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"selector": "entropy"}, {"cfg_scale": 1.0}])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_infinite_logit_is_no_number(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    run = HostWindow._run

    def overflowing(window: HostWindow, *args: Any) -> np.ndarray:
        logits = run(window, *args)
        logits[0, 0, 5] = np.inf
        return logits

    monkeypatch.setattr(HostWindow, "_run", overflowing)
    with pytest.raises(BackendError, match="no numbers for 1 of 4 positions"):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=4, **options))


@pytest.mark.parametrize("template", ['{"n": {{1|2}}, "m": {{3|4}}}', '{"n": {{int:1}}}', '{"a": "{{4}}"}'])
@pytest.mark.parametrize("preset", ["exact", "quality", "balanced", "realtime"])
def test_masks_in_the_prompt_take_no_steps_of_a_template(pipeline: Pipeline, preset: Any, template: str) -> None:
    mask = pipeline.bundle.manifest.tokens.mask
    for first in range(12):
        config = GenerationConfig(template=template, preset=preset)
        answer = pipeline.generate(prompt_ids=[first, mask, 7, mask, mask, 9], config=config)
        assert json.loads(answer.text) == answer.values
        assert answer.steps[-1].masks_left == 0
