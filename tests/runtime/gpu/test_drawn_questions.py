"""Questions that are drawn, answered by the GPU's loop on the host as by a loop that is written to be read."""

from __future__ import annotations

from answers import MakeGpu
from drawn import Draw
from plain_loop import PlainLoop, PlainModel, Story

from lladav.runtime import Pipeline

_QUESTIONS = 40


def test_answers_are_the_plain_loops(make: MakeGpu, cpu: Pipeline) -> None:
    model = PlainModel(cpu.bundle)
    gpu, device = make(deferred=True)
    compared = 0
    for seed in range(_QUESTIONS):
        draw = Draw(seed, cpu.bundle.manifest.tokens.mask)
        config = draw.config(noise=False)
        prompt = draw.prompt(masks=config.template is None)
        if config.template is None:
            config = draw.stopped(config, cpu.generate(prompt_ids=prompt, config=config).token_ids)
        expected = PlainLoop(model, cpu, prompt, config).certain()
        if expected is not None:
            Story.of(gpu.generate(prompt_ids=prompt, config=config)).assert_same(expected, (prompt, config))
            compared += 1
    assert compared > 0.9 * _QUESTIONS
    device.check()
