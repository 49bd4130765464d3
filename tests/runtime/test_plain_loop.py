"""Questions that are drawn, answered as by a loop that is written to be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import Draw
from plain_loop import PlainLoop, PlainModel, Story
from tiny import sharing_heads, write_tiny_checkpoint

from lladav.export import ExportConfig, export
from lladav.runtime import Pipeline

_QUESTIONS = 80


@pytest.fixture(scope="module")
def shared_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared-heads")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint", seed=4, edit=sharing_heads(2))
    return export(checkpoint, folder / "bundle", ExportConfig(dtype="fp32", verify=False)).path


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_bundle_int8_kv", "shared_heads"])
def test_answers_are_the_plain_loops(bundle: str, request: pytest.FixtureRequest) -> None:
    pipeline = Pipeline.load(request.getfixturevalue(bundle), threads=1)
    model = PlainModel(pipeline.bundle)
    compared = 0
    for seed in range(_QUESTIONS):
        draw = Draw(seed, pipeline.bundle.manifest.tokens.mask)
        config = draw.config()
        prompt = draw.prompt(masks=config.template is None)
        if config.template is None:
            config = draw.stopped(config, pipeline.generate(prompt_ids=prompt, config=config).token_ids)
        expected = PlainLoop(model, pipeline, prompt, config).certain()
        if expected is not None:
            answer = pipeline.generate(prompt_ids=prompt, config=config)
            Story.of(answer).assert_same(expected, (prompt, config))
            compared += 1
    assert compared > 0.9 * _QUESTIONS
