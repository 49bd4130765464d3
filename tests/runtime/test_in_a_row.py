"""A pipeline that was asked other things before answers as one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import Draw
from plain_loop import Story

from lladav.runtime import Pipeline, Question


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_bundle_int8_kv"])
def test_nothing_remains_of_earlier_questions(
    bundle: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of other sizes, of batches, of passes that are padded for a deadline, of streams that were dropped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = request.getfixturevalue(bundle)
    used = Pipeline.load(path, threads=1)
    for seed in range(50):
        draw = Draw(seed, used.bundle.manifest.tokens.mask)
        prompt, config = draw.prompt(), draw.config()
        match draw.one_of(["alone", "dropped", "in time", "beside others"]):
            case "dropped":
                next(used.stream(prompt_ids=draw.prompt(), config=draw.config()))
            case "in time":
                other = draw.config().model_copy(update={"preset": "balanced", "deadline_ms": 1e5})
                used.generate(prompt_ids=draw.prompt(), config=other)
            case "beside others":
                questions = [Question(prompt_ids=draw.prompt()) for _ in range(3)]
                list(used.generate_batch(questions, draw.config()))
        found, expected = (p.generate(prompt_ids=prompt, config=config) for p in (used, Pipeline.load(path, threads=1)))
        assert Story.of(found) == Story.of(expected), (seed, prompt, config)
