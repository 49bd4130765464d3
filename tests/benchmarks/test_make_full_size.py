"""A checkpoint of the real geometry, as far as it can be tried without its size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import make_full_size
from lladav.export.checkpoint import Checkpoint, finite
from lladav.export.coverage import check_coverage
from lladav.export.model_config import read_geometry, read_preprocessing
from lladav.export.tokenizer_config import read_tokens, tokenizer_length


def test_configuration_is_the_real_one(shared: Path) -> None:
    assert make_full_size._config(make_full_size.real_geometry()) == json.loads(
        (shared / "reference" / "config.llada-v.json").read_text()
    )
    assert make_full_size.total_bytes(make_full_size.real_geometry()) == 16_869_674_048


def test_exporter_accepts_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_full_size.real_geometry(2, 1)
    narrow = {"hidden_size": 64, "intermediate_size": 96, "heads": 4, "kv_heads": 4, "head_size": 16}
    small = whole.model_copy(update={"language": whole.language.model_copy(update=narrow)})
    monkeypatch.setattr(make_full_size, "real_geometry", lambda *_: small)
    monkeypatch.setattr(make_full_size, "SHARD_BYTES", 1 << 24)
    done: list[int] = []
    make_full_size.write_checkpoint(tmp_path, 2, 1, done.append)

    checkpoint = Checkpoint.open(tmp_path)
    assert sum(done) == make_full_size.total_bytes(small)
    assert len({info.file for info in checkpoint.tensors.values()}) > 1
    assert tokenizer_length(checkpoint) == 126349
    assert read_tokens(checkpoint).suppressed == (126080, 126081, 126346, 126347)
    assert read_geometry(checkpoint, 126464) == small
    assert read_preprocessing(checkpoint, small.vision) is not None
    check_coverage(checkpoint, small)
    embedding = checkpoint.read("model.embed_tokens.weight")
    assert finite(embedding)
    assert len(np.unique(embedding.view(np.uint16), axis=0)) == len(embedding)
