"""Opening a checkpoint: names, shards and index, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tiny import Tensors, tiny_tensors, write_json, write_safetensors, write_tiny_checkpoint

from lladav.errors import CheckpointError
from lladav.export.checkpoint import Checkpoint, canonical_name, finite

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"

RAW_NAMES = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.blocks.7.attn_norm.weight": "model.layers.7.input_layernorm.weight",
    "model.transformer.blocks.7.q_proj.weight": "model.layers.7.self_attn.q_proj.weight",
    "model.transformer.blocks.7.k_proj.weight": "model.layers.7.self_attn.k_proj.weight",
    "model.transformer.blocks.7.v_proj.weight": "model.layers.7.self_attn.v_proj.weight",
    "model.transformer.blocks.7.attn_out.weight": "model.layers.7.self_attn.o_proj.weight",
    "model.transformer.blocks.7.ff_norm.weight": "model.layers.7.post_attention_layernorm.weight",
    "model.transformer.blocks.7.ff_proj.weight": "model.layers.7.mlp.gate_proj.weight",
    "model.transformer.blocks.7.up_proj.weight": "model.layers.7.mlp.up_proj.weight",
    "model.transformer.blocks.7.ff_out.weight": "model.layers.7.mlp.down_proj.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "checkpoint")


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def refused(folder: Path, message: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    assert str(folder) in caught.value.what
    return caught.value


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_every_tensor(tmp_path: Path, dtype: str) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, dtype=dtype, seed=3))
    written = tiny_tensors(3)
    assert checkpoint.dtype == dtype
    assert checkpoint.config["torch_dtype"] == dtype
    assert checkpoint.tensors.keys() == written.keys()
    for name, values in written.items():
        got = checkpoint.read(name)
        np.testing.assert_array_equal(got, values.astype(got.dtype))
        np.testing.assert_array_equal(checkpoint.read_rows(name, 1, 3), got[1:3])


def test_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    def norms_in_half(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors.update({n: t.astype(np.float16) for n, t in tensors.items() if "norm" in n})

    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, dtype="bfloat16", edit=norms_in_half))
    assert checkpoint.dtype == "bfloat16"
    assert checkpoint.read("model.norm.weight").dtype == np.float16


def test_reads_a_single_file_without_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    for shard in (FIRST, SECOND):
        (folder / shard).unlink()
    write_safetensors(folder / "model.safetensors", tiny_tensors(0))
    assert Checkpoint.open(folder).tensors.keys() == tiny_tensors(0).keys()


def test_generation_config_is_optional(folder: Path) -> None:
    assert Checkpoint.open(folder).generation_config == {}
    write_json(folder / "generation_config.json", {"gen_length": 64})
    assert Checkpoint.open(folder).generation_config == {"gen_length": 64}


@pytest.mark.parametrize(("raw", "name"), RAW_NAMES.items())
def test_names_of_text_only_llada_are_mapped(raw: str, name: str) -> None:
    assert canonical_name(raw) == name
    assert canonical_name(name) == name


@pytest.mark.parametrize(
    "name", ["model.transformer.blocks.0.router.weight", "model.transformer.blocks.x.q_proj.weight"]
)
def test_unknown_names_stay(name: str) -> None:
    assert canonical_name(name) == name


def test_raw_and_mapped_name_of_one_tensor_collide(tmp_path: Path) -> None:
    def twice(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors["model.transformer.ln_f.weight"] = tensors["model.norm.weight"]

    refused(write_tiny_checkpoint(tmp_path, edit=twice), "name the same tensor")


def test_refuses_what_is_no_folder(tmp_path: Path) -> None:
    assert "hf download" in refused(tmp_path / "GSAI-ML" / "LLaDA-V", "is no folder").cure


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no config.json"), (b"{", "JSON"), (b"\xff", "JSON"), (b"[]", "no object")]
)
def test_refuses_a_missing_or_broken_config(folder: Path, content: bytes | None, message: str) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    refused(folder, message)


def test_lists_every_missing_shard(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / SECOND).unlink()
    refused(folder, f"lacks 2 of 2 shards: {FIRST}, {SECOND}")


def test_refuses_a_damaged_shard(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])
    refused(folder, SECOND)


def test_lists_every_disagreement_of_index_and_shards(folder: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        where = index["weight_map"]
        where["model.extra.weight"] = FIRST
        where["model.norm.weight"] = FIRST if where["model.norm.weight"] == SECOND else SECOND
        del where["lm_head.weight"]

    edit_json(folder / INDEX, change)
    what = refused(folder, "in 4 places").what
    assert f"model.extra.weight is not in {FIRST}" in what
    assert f"lm_head.weight is in {FIRST}, where the index has none" in what
    assert what.count("model.norm.weight") == 2


def test_a_long_disagreement_is_cut(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({f"x.{n}": FIRST for n in range(40)}))
    refused(folder, "in 40 places: .*; and 30 more")


@pytest.mark.parametrize("where", [None, [], {"a": 1}, {"a": "../outside.safetensors"}, {"a": "/etc/passwd"}])
def test_refuses_an_index_that_leads_outside(folder: Path, where: object) -> None:
    edit_json(folder / INDEX, lambda index: index.update(weight_map=where))
    refused(folder, "weight_map")


def test_refuses_a_folder_without_tensors(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index.update(weight_map={}))
    refused(folder, "holds no tensors")


def test_never_opens_a_pickle(folder: Path) -> None:
    (folder / INDEX).unlink()
    for shard in (FIRST, SECOND):
        (folder / shard).unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert "safe_serialization=True" in refused(folder, "can run any code").cure


def test_refuses_shards_without_an_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    refused(folder, "2 .safetensors files, but neither")


def test_refuses_a_folder_without_weights(folder: Path) -> None:
    config = (folder / "config.json").read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_bytes(config)
    refused(folder, "neither model.safetensors nor")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_finite_finds_nan_and_infinity(dtype: type) -> None:
    largest = ml_dtypes.finfo(dtype).max
    block = np.array([[0.0, -0.0], [largest, -largest]], dtype)
    assert finite(block)
    assert finite(block[:0])
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        block[1, 0] = bad
        assert not finite(block)
        assert not finite(block[:, :1])
        assert finite(block[:1])
