"""A checkpoint of the real geometry, as far as it can be tried without its size."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lladav.export.checkpoint import Checkpoint, finite
from lladav.export.coverage import check_coverage
from lladav.export.model_config import read_geometry, read_preprocessing
from lladav.export.tokenizer_config import read_tokens, tokenizer_length

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "make_full_size.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_full_size", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_is_the_real_one(script: ModuleType, shared: Path) -> None:
    assert script._config(script.real_geometry()) == json.loads(
        (shared / "reference" / "config.llada-v.json").read_text()
    )
    assert script.total_bytes(script.real_geometry()) == 16_869_674_048


def test_exporter_accepts_what_it_writes(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = script.real_geometry(2, 1)
    narrow = {"hidden_size": 64, "intermediate_size": 96, "heads": 4, "kv_heads": 4, "head_size": 16}
    small = whole.model_copy(update={"language": whole.language.model_copy(update=narrow)})
    monkeypatch.setattr(script, "real_geometry", lambda *_: small)
    monkeypatch.setattr(script, "SHARD_BYTES", 1 << 24)
    done: list[int] = []
    script.write_checkpoint(tmp_path, 2, 1, done.append)

    checkpoint = Checkpoint.open(tmp_path)
    assert sum(done) == script.total_bytes(small)
    assert len({info.file for info in checkpoint.tensors.values()}) > 1
    assert tokenizer_length(checkpoint) == 126349
    assert read_tokens(checkpoint).suppressed == (126080, 126081, 126346, 126347)
    assert read_geometry(checkpoint, 126464) == small
    assert read_preprocessing(checkpoint, small.vision) is not None
    check_coverage(checkpoint, small)
    embedding = checkpoint.read("model.embed_tokens.weight")
    assert finite(embedding)
    assert len(np.unique(embedding.view(np.uint16), axis=0)) == len(embedding)
