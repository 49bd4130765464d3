"""Laws of the denoising loop that hold for any model."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from asked import PROMPT

from benchmarks.golden import GoldenSet, config_of, request_of
from lladav.errors import OptionError, PromptError
from lladav.runtime import Answer, GenerationConfig, Pipeline, StepEvent
from lladav.runtime.config import Schedule
from lladav.runtime.denoise import DenoisingLoop
from lladav.runtime.embedding import merge_prompt


@pytest.mark.parametrize(
    "options",
    [
        {"gen_length": 12},
        {"gen_length": 12, "block_length": 4, "steps": 6},
        {"gen_length": 12, "steps": 5},
        {"gen_length": 12, "steps": 1},
        {"gen_length": 12, "temperature": 0.7, "seed": 3},
        {"gen_length": 12, "remasking": "random", "seed": 3},
        {"gen_length": 12, "cfg_scale": 0.5, "suffix_ids": (9, 8)},
    ],
)
def test_every_step_commits_masks_of_its_block_or_before(pipeline: Pipeline, options: dict[str, Any]) -> None:
    config = GenerationConfig(**options)
    schedule = Schedule.of(config, 12)
    committed: set[int] = set()
    events = list(pipeline.stream(prompt_ids=PROMPT, config=config))
    answer = events.pop()
    assert isinstance(answer, Answer)
    for number, event in enumerate(events):
        assert isinstance(event, StepEvent)
        assert event.step == number
        assert max(event.positions, default=0) < (event.block + 1) * schedule.block_length
        assert not committed & set(event.positions)
        committed |= set(event.positions)
        assert list(event.confidences) == sorted(event.confidences, reverse=True)
        for position, token in zip(event.positions, event.tokens, strict=True):
            assert event.canvas[position] == token
        assert event.masks_left == 12 - len(committed)
    assert answer.token_ids == (*events[-1].canvas, *config.suffix_ids)  # type: ignore[union-attr]
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(("interval", "kinds"), [(1, "rrrrrrrr"), (3, "rssrssrs"), (8, "rsssssss"), (0, "rsssssss")])
def test_refresh_interval(pipeline: Pipeline, interval: int, kinds: str) -> None:
    config = GenerationConfig(gen_length=8, block_length=4, refresh_interval=interval)
    steps = pipeline.generate(prompt_ids=PROMPT, config=config).steps
    assert "".join(step.kind[0] for step in steps) == kinds


def test_step_after_refresh_of_the_same_canvas_computes_the_same(pipeline: Pipeline) -> None:
    """What the step pass reads is what the refresh wrote, with guidance and padding too."""
    window = pipeline.denoiser.window([21, 17], 6, 6, cached=True)
    draw = np.random.default_rng(0)
    window.prompt[0, :21] = draw.normal(0, 0.5, (21, 32))
    window.prompt[1, :17] = draw.normal(0, 0.5, (17, 32))
    window.canvas[:, :6] = draw.normal(0, 0.5, (2, 6, 32))
    rows = window.canvas_start + np.arange(6)
    whole = window.refresh(rows).copy()
    np.testing.assert_allclose(window.step(rows), whole, atol=1e-5)


def test_prompt_cache_is_kept_apart_from_the_canvas(pipeline: Pipeline) -> None:
    """Between refreshes the canvas sees the prompt as it was, and its own changes at once."""
    window = pipeline.denoiser.window([21], 6, 6, cached=True)
    draw = np.random.default_rng(0)
    window.prompt[:, :21] = draw.normal(0, 0.5, (1, 21, 32))
    window.canvas[:, :6] = draw.normal(0, 0.5, (1, 6, 32))
    rows = window.canvas_start + np.arange(6)
    window.refresh(rows)
    before = window.step(rows).copy()
    window.prompt[:, :21] += 1
    np.testing.assert_array_equal(window.step(rows), before)
    window.canvas[0, 3] += 1
    assert np.abs(window.step(rows) - before).max() > 1e-2


def test_same_seed_same_answer(pipeline: Pipeline) -> None:
    def ids(seed: int) -> tuple[int, ...]:
        config = GenerationConfig(gen_length=16, temperature=1.0, seed=seed)
        return pipeline.generate(prompt_ids=PROMPT, config=config).token_ids

    assert ids(1) == ids(1)
    assert len({ids(seed) for seed in range(4)}) > 1


def test_answers_do_not_depend_on_what_was_asked_before(pipeline: Pipeline) -> None:
    """Buffers are used again, so nothing of a longer prompt may remain in them."""
    config = GenerationConfig(gen_length=8, cfg_scale=1.0)
    before = pipeline.generate(prompt_ids=PROMPT, config=config).token_ids
    pipeline.generate(prompt_ids=list(range(60)), config=GenerationConfig(gen_length=8, cfg_scale=1.0, suffix_ids=(3,)))
    assert pipeline.generate(prompt_ids=PROMPT, config=config).token_ids == before


def test_stop_ends_the_answer(pipeline: Pipeline) -> None:
    config = GenerationConfig(gen_length=16)
    free = pipeline.generate(prompt_ids=PROMPT, config=config)
    stop = free.token_ids[6]
    first = free.token_ids.index(stop)
    stopped = pipeline.generate(prompt_ids=PROMPT, config=config.model_copy(update={"stop_ids": ((stop,),)}))
    assert stopped.finish_reason == "stop"
    assert stop not in stopped.token_ids
    assert len(stopped.token_ids) <= first
    assert len(stopped.steps) <= len(free.steps)


def test_prompt_without_bucket_names_what_would_fit(pipeline: Pipeline) -> None:
    limit = pipeline.bundle.manifest.buckets.prompt[-1]
    window = pipeline.denoiser.window
    with pytest.raises(PromptError, match=rf"the largest is {limit:,}"):
        window([limit + 1], 8, 8)


def test_canvas_without_bucket_names_what_would_fit(pipeline: Pipeline) -> None:
    with pytest.raises(OptionError, match=r"canvas of 600 positions.*\n.*--canvas-buckets \.\.\.,600"):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=600))


@pytest.mark.parametrize("ids", [[], [99999], [-1], [-200]])
def test_impossible_prompts_are_refused(pipeline: Pipeline, ids: list[int]) -> None:
    with pytest.raises(PromptError):
        pipeline.generate(prompt_ids=ids)


def test_prompt_is_needed_once(pipeline: Pipeline) -> None:
    with pytest.raises(PromptError):
        pipeline.generate()
    with pytest.raises(PromptError):
        pipeline.generate("a", prompt_ids=[1])


def test_steps_allocate_nothing_of_the_vocabulary_s_size(golden_set: GoldenSet) -> None:
    """A row of logits has 505,856 bytes here and the full pass of this prompt 61 MB."""
    pipeline = golden_set.pipeline()
    case = golden_set.cases["cfg_32_32_32"]
    config = config_of(case)
    rows, _ = merge_prompt(case["ids"], pipeline.table, [], 8192)
    tokens = pipeline.bundle.manifest.tokens
    steps = iter(DenoisingLoop(pipeline.denoiser, pipeline.table, tokens, request_of(rows, config)))
    next(steps)
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        for _ in range(5):
            next(steps)
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    assert peak < 48_000


def test_padding_changes_no_logits(pipeline: Pipeline) -> None:
    """The same sequence in a window without padding and in one that is mostly padding."""
    manifest = pipeline.bundle.manifest
    embeds = np.random.default_rng(0).normal(0, 0.5, (72, manifest.geometry.language.hidden_size)).astype(np.float32)
    found = []
    for prompt, canvas in ((64, 8), (65, 7)):
        window = pipeline.denoiser.window([prompt], canvas, canvas)
        window.prompt[0, :prompt], window.canvas[0, :canvas] = embeds[:prompt], embeds[prompt:]
        found.append(window.refresh(window.canvas_start + np.arange(canvas - 7, canvas))[0].copy())
        assert (window.size[1] == prompt) == (prompt == 64)
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
