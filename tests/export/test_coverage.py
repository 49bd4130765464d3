"""Every tensor is used or known to be unused; what is missing or of another shape is listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ROWS, TOKENIZER_LENGTH, VISION_LAYERS, Tensors, tiny_tensors, write_tiny_checkpoint

from lladav.errors import CheckpointError
from lladav.export.checkpoint import Checkpoint
from lladav.export.coverage import check_coverage, expected_tensors
from lladav.export.model_config import read_geometry
from lladav.manifest import TOWER

NORM = "model.layers.1.input_layernorm.weight"


def checked(folder: Path, edit: Callable[[Tensors], object], rows: int = TOKENIZER_LENGTH) -> dict[str, str]:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(folder, edit=lambda tensors, _: edit(tensors)))
    return check_coverage(checkpoint, read_geometry(checkpoint, rows))


def refused(folder: Path, edit: Callable[[Tensors], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        checked(folder, edit)
    return caught.value.what


def test_whole_checkpoint_passes(tmp_path: Path) -> None:
    left = checked(tmp_path, lambda _: None)
    assert left.keys() == {f"{TOWER}.post_layernorm.{part}" for part in ("weight", "bias")}
    assert all(left.values())


def test_expected_tensors_are_the_parameters_of_the_reference(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lladav.export.reference import LladaV

    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path))
    geometry = read_geometry(checkpoint, ROWS)
    for text_only in (False, True):
        wanted = geometry.model_copy(update={"vision": None}) if text_only else geometry
        with torch.device("meta"):
            model = LladaV(wanted)
        assert expected_tensors(wanted) == {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_expected_tensors_are_those_of_the_published_language_model(shared: Path) -> None:
    index = json.loads((shared / "reference" / "model.safetensors.index.llada-8b.json").read_text())
    config = json.loads((shared / "reference" / "config.llada-8b.json").read_text())
    geometry = read_geometry(_without_tensors(config, index["weight_map"]), 126349)
    assert geometry.vision is None
    assert expected_tensors(geometry).keys() == index["weight_map"].keys()
    whole = geometry.language.model_copy(update={"vocab_rows": 126464})
    shapes = expected_tensors(geometry.model_copy(update={"language": whole}))
    assert 2 * sum(int(np.prod(shape)) for shape in shapes.values()) == index["metadata"]["total_size"]


def _without_tensors(config: dict[str, Any], names: dict[str, str]) -> Checkpoint:
    from lladav.export.safetensors import TensorInfo

    return Checkpoint(Path(), config, {}, {n: TensorInfo(n, "bfloat16", (), Path(f), 0, 2) for n, f in names.items()})


def test_lists_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        del tensors["model.norm.weight"]
        del tensors[NORM]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        tensors["model.image_newline"] = np.zeros(31, np.float32)

    what = refused(tmp_path, edit)
    assert "2 tensors missing, 1 unknown, 1 of a wrong shape" in what
    for line in (
        "missing: model.norm.weight",
        f"missing: {NORM}",
        "unknown: model.layers.0.self_attn.q_proj.bias",
        "wrong shape: model.image_newline [31] instead of [32]",
    ):
        assert f"\n  {line}" in what


def test_long_lists_are_folded_by_pattern(tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors |= {f"model.layers.{n}.mlp.experts.gate": np.zeros(1, np.float32) for n in (0, 1)}
        tensors |= {f"adapter.{n}.lora_A": np.zeros(1, np.float32) for n in range(60)}

    what = refused(tmp_path, edit)
    assert "62 unknown" in what
    assert "unknown: adapter.N.lora_A (60 times)" in what
    assert "unknown: model.layers.N.mlp.experts.gate (2 times)" in what


def test_accepts_what_is_known_to_be_unused(tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        first, last = f"{TOWER}.encoder.layers.0.", f"{TOWER}.encoder.layers.{VISION_LAYERS}."
        tensors |= {name.replace(first, last): t for name, t in tensors.items() if name.startswith(first)}
        tensors[f"{TOWER}.head.probe"] = np.zeros((1, 1, 24), np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    left = checked(tmp_path, edit)
    assert f"{TOWER}.head.probe" in left
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in left
    assert sum(f"layers.{VISION_LAYERS}." in name for name in left) == 16


@pytest.mark.parametrize("rows", [TOKENIZER_LENGTH, ROWS])
def test_rows_beyond_those_in_use_are_cut(tmp_path: Path, rows: int) -> None:
    checked(tmp_path, lambda _: None, rows)


def test_refuses_fewer_rows_than_are_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight \[320, 32\] instead of \[321, 32\]"):
        checked(tmp_path, lambda _: None, ROWS + 1)


def test_embedding_and_head_must_have_equal_rows(tmp_path: Path) -> None:
    what = refused(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:-4]}))
    assert "model.embed_tokens.weight has 320 rows, but lm_head.weight has 316" in what


def test_text_only_model_has_no_use_for_a_connector(tmp_path: Path) -> None:
    def edit(tensors: Tensors, config: dict[str, Any]) -> None:
        for name in tiny_tensors(0):
            if name.startswith(TOWER):
                del tensors[name]
        del config["mm_vision_tower"]

    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, edit=edit))
    with pytest.raises(CheckpointError, match="5 unknown"):
        check_coverage(checkpoint, read_geometry(checkpoint, ROWS))
