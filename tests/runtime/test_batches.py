"""Several answers: in one batch, or of streams and threads that share a pipeline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asked import PROMPT, TEMPLATE, picture

from lladav.errors import OptionError, PromptError
from lladav.runtime import GenerationConfig, Pipeline, Question

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


@pytest.mark.parametrize("length", [8, 64])
def test_interrupted_stream_says_so_whatever_came_between(pipeline: Pipeline, length: int) -> None:
    stream = pipeline.stream(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8))
    next(stream)
    pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=length, selector="factor"))
    with pytest.raises(OptionError, match="interrupted by another"):
        list(stream)
