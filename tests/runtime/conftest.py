"""The tiny model to ask, and vocabularies for templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from template_fills import Vocab
from tiny import ROWS, tiny_tokenizer

from lladav.runtime import Pipeline

DEMO = Path(__file__).resolve().parents[2] / "benchmarks" / "demo_checkpoint" / "checkpoint" / "tokenizer.json"


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # no other test's times
        return Pipeline.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocab:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(json.dumps(tiny_tokenizer()), "utf-8")
    return Vocab(file, ROWS)


@pytest.fixture(scope="session")
def demo_vocab() -> Vocab:
    return Vocab(DEMO)


@pytest.fixture(scope="session")
def real_vocab(shared: Path) -> Vocab:
    return Vocab(shared / "reference" / "tokenizer.json", 126464)


@pytest.fixture(params=["tiny_vocab", "demo_vocab", "real_vocab"])
def vocab(request: pytest.FixtureRequest) -> Vocab:
    found: Vocab = request.getfixturevalue(request.param)
    return found
