"""The demo checkpoint, exported as `make demo` does it, answers its example pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lladav.export import ExportConfig, export
from lladav.runtime import GenerationConfig, Pipeline

DEMO = Path(__file__).resolve().parents[1] / "benchmarks" / "demo_checkpoint"
QUESTIONS = json.loads((DEMO / "pictures" / "questions.json").read_text("utf8"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    return Pipeline.load(export(DEMO / "checkpoint", bundle, ExportConfig(verify=False)).path)


@pytest.mark.parametrize("asked", QUESTIONS, ids=[q["image"] for q in QUESTIONS])
def test_example_pictures_are_answered(pipeline: Pipeline, asked: dict[str, str]) -> None:
    answer = pipeline.generate(
        asked["question"],
        images=[DEMO / "pictures" / asked["image"]],
        config=GenerationConfig(gen_length=16, block_length=16, steps=16),
    )
    assert answer.text == asked["answer"]
