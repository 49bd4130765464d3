"""Sizes and preprocessing from configurations, however they are spelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    FFN,
    HEADS,
    LAYERS,
    ROWS,
    TOKENIZER_LENGTH,
    VISION_HEADS,
    VISION_LAYERS,
    VISION_WIDTH,
    WIDTH,
    Tensors,
    write_json,
    write_tiny_checkpoint,
)

from benchmarks.make_full_size import real_geometry
from lladav.errors import CheckpointError
from lladav.export.checkpoint import Checkpoint
from lladav.export.coverage import check_coverage, expected_tensors
from lladav.export.model_config import read_geometry, read_preprocessing
from lladav.export.safetensors import TensorInfo
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.manifest import TOWER

Config = dict[str, Any]
Edit = Callable[[Config], object]

REAL = real_geometry()


def edited(folder: Path, edit: Edit) -> Checkpoint:
    return Checkpoint.open(write_tiny_checkpoint(folder, edit=lambda _, config: edit(config)))


def geometry(checkpoint: Checkpoint) -> Geometry:
    return read_geometry(checkpoint, TOKENIZER_LENGTH)


def refused(folder: Path, edit: Edit, message: str) -> None:
    checkpoint = edited(folder, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_preprocessing(checkpoint, geometry(checkpoint).vision)
    assert str(folder) in caught.value.what
    assert caught.value.cure


def as_raw_llada(config: Config) -> None:
    """The configuration under the names of the code that text-only LLaDA was trained with."""
    for name in [name for name in config if name.startswith(("mm_", "image_", "num_"))]:
        del config[name]
    for name in ("hidden_size", "intermediate_size", "hidden_act", "tie_word_embeddings", "max_position_embeddings"):
        del config[name]
    config |= {"d_model": WIDTH, "mlp_hidden_size": FFN, "n_heads": HEADS, "n_kv_heads": None, "n_layers": LAYERS}
    config |= {"embedding_size": ROWS, "vocab_size": ROWS - 1, "max_sequence_length": 4096, "weight_tying": False}
    config |= {"block_type": "llama", "layer_norm_type": "rms", "rope": True, "activation_type": "silu"}


def faked(config: Config, model: Geometry) -> Checkpoint:
    """A checkpoint whose headers alone exist."""
    infos = {n: TensorInfo(n, "bfloat16", s, Path("x"), 0, 0) for n, s in expected_tensors(model).items()}
    return Checkpoint(Path("/nowhere"), config, {}, infos)


def test_tiny_geometry(tmp_path: Path) -> None:
    found = geometry(edited(tmp_path, lambda _: None))
    assert found.language == LanguageGeometry(
        hidden_size=WIDTH,
        intermediate_size=FFN,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=HEADS,
        head_size=8,
        vocab_rows=TOKENIZER_LENGTH,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        max_positions=512,
    )
    assert found.vision is not None
    assert (found.vision.layers, found.vision.heads, found.vision.tokens) == (VISION_LAYERS, VISION_HEADS, 16)


def test_real_geometry(shared: Path) -> None:
    checkpoint = faked(json.loads((shared / "reference" / "config.llada-v.json").read_text()), REAL)
    assert read_geometry(checkpoint, 126464) == REAL
    assert check_coverage(checkpoint, read_geometry(checkpoint, 126349)) == {}
    preprocessing = read_preprocessing(checkpoint, REAL.vision)
    assert preprocessing is not None
    assert (preprocessing.crop_size, preprocessing.max_tiles, len(preprocessing.grid_pinpoints)) == (384, 4, 36)
    assert (preprocessing.video_newline, preprocessing.video_pool_mode) == ("grid", "bilinear")
    assert preprocessing.video_pool_stride == 2


def test_real_geometry_with_the_towers_own_last_layer(shared: Path) -> None:
    config = json.loads((shared / "reference" / "config.llada-v.json").read_text())
    assert REAL.vision is not None
    longer = REAL.model_copy(update={"vision": REAL.vision.model_copy(update={"layers": 27})})
    checkpoint = faked(config, longer)
    assert read_geometry(checkpoint, 126464) == REAL
    assert all(f"{TOWER}.encoder.layers.26." in name for name in check_coverage(checkpoint, REAL))


def test_golden_geometry(golden_checkpoint: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint("bf16"))
    found = read_geometry(checkpoint, 126349)
    assert checkpoint.dtype == "bfloat16"
    assert (found.language.hidden_size, found.language.layers, found.language.head_size) == (64, 3, 16)
    assert found.vision == VisionGeometry(
        hidden_size=32, intermediate_size=80, layers=3, heads=2, image_size=384, patch_size=14, layer_norm_eps=1e-6
    )
    check_coverage(checkpoint, found)


def test_text_only_llada_under_its_raw_names(tmp_path: Path) -> None:
    raw = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "q_proj",
        "self_attn.k_proj": "k_proj",
        "self_attn.v_proj": "v_proj",
        "self_attn.o_proj": "attn_out",
        "post_attention_layernorm": "ff_norm",
        "mlp.gate_proj": "ff_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "ff_out",
    }
    plain = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}

    def edit(tensors: Tensors, config: Config) -> None:
        as_raw_llada(config)
        kept = {n.removesuffix(".weight"): t for n, t in tensors.items() if n.startswith(("model.layers", *plain))}
        tensors.clear()
        for name, tensor in kept.items():
            if name in plain:
                tensors[f"model.transformer.{plain[name]}.weight"] = tensor
            else:
                number, part = name.removeprefix("model.layers.").split(".", 1)
                tensors[f"model.transformer.blocks.{number}.{raw[part]}.weight"] = tensor

    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, edit=edit))
    found = geometry(checkpoint)
    assert found.vision is None
    assert (found.language.kv_heads, found.language.max_positions) == (HEADS, 4096)
    assert check_coverage(checkpoint, found) == {}
    assert read_preprocessing(checkpoint, None) is None


@pytest.mark.parametrize("name", ["layer_norm_eps", "norm_eps"])
def test_spellings_of_the_epsilon(tmp_path: Path, name: str) -> None:
    def edit(config: Config) -> None:
        config[name] = config.pop("rms_norm_eps") * 2

    assert geometry(edited(tmp_path, edit)).language.rms_norm_eps == 2e-5


def test_key_value_heads_default_to_heads(tmp_path: Path) -> None:
    assert geometry(edited(tmp_path, lambda c: c.pop("num_key_value_heads"))).language.kv_heads == HEADS


@pytest.mark.parametrize(
    "name",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rope_theta",
        "rms_norm_eps",
        "vocab_size",
        "image_aspect_ratio",
    ],
)
def test_required_fields(tmp_path: Path, name: str) -> None:
    refused(tmp_path, lambda c: c.pop(name), f"has no .*{name}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size .* is '32', but must be a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers .* is 0"),
        ({"num_attention_heads": True}, "num_attention_heads .* is True"),
        ({"rope_theta": -1}, "rope_theta .* is -1"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps .* is inf"),
        ({"mm_vision_tower": 5}, "mm_vision_tower .* is 5, but must be text"),
        ({"n_layers": 7}, "contradicts itself: num_hidden_layers 2, n_layers 7"),
        ({"num_attention_heads": 5}, "32 is not a multiple of 5"),
        ({"num_attention_heads": 32}, "even head size"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
    ],
)
def test_refuses_impossible_values(tmp_path: Path, change: Config, message: str) -> None:
    refused(tmp_path, lambda c: c.update(change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, r"hidden_size is 64, but model.embed_tokens.weight has shape \[320, 32\]"),
        ({"vocab_size": 321}, "vocab_size is 321, but .*320"),
        ({"intermediate_size": 49}, r"intermediate_size is 49, but .*gate_proj.weight has shape \[48, 32\]"),
        ({"head_dim": 16}, "heads x head size is 64, but .*q_proj"),
        ({"num_key_value_heads": 2}, "key-value heads x head size is 16, but .*k_proj"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, but the tensors have 2 layers"),
        ({"mm_hidden_size": 25}, "mm_hidden_size is 25, but .*patch_embedding"),
    ],
)
def test_configuration_must_fit_the_tensors(tmp_path: Path, change: Config, message: str) -> None:
    refused(tmp_path, lambda c: c.update(change), message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_bias", True),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", True),
        ("quantization_config", {"bits": 4}),
        ("block_type", "sequential"),
        ("layer_norm_type", "default"),
        ("alibi", True),
        ("mm_projector_type", "linear"),
        ("mm_patch_merge_type", "flat"),
        ("mm_resampler_type", "qformer"),
        ("mm_use_im_start_end", True),
        ("mm_use_im_patch_token", True),
        ("add_faster_video", True),
        ("mm_newline_position", "row"),
        ("mm_spatial_pool_mode", "max"),
    ],
)
def test_refuses_what_it_cannot_compute(tmp_path: Path, name: str, value: object) -> None:
    refused(tmp_path, lambda c: c.update({name: value}), f"cannot compute: {name} is ")


@pytest.mark.parametrize(("ratio", "tiles"), [("anyres", None), ("anyres_max_4", 4), ("anyres_max_12", 12)])
def test_aspect_ratios(tmp_path: Path, ratio: str, tiles: int | None) -> None:
    checkpoint = edited(tmp_path, lambda c: c.update(image_aspect_ratio=ratio))
    preprocessing = read_preprocessing(checkpoint, geometry(checkpoint).vision)
    assert preprocessing is not None
    assert preprocessing.max_tiles == tiles


@pytest.mark.parametrize("ratio", ["pad", "square", "highres", "anyres_max_0", "anyres_max_", "anyres_max_4x"])
def test_refuses_other_aspect_ratios(tmp_path: Path, ratio: str) -> None:
    refused(tmp_path, lambda c: c.update(image_aspect_ratio=ratio), f"image_aspect_ratio .* is '{ratio}'")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([[56, 112], [112, 56]], ((56, 112), (112, 56))),
        ("[(56, 112), [112, 56]]", ((56, 112), (112, 56))),
        ("(1x1),...,(2x2)", ((56, 56), (56, 112), (112, 56), (112, 112))),
    ],
)
def test_spellings_of_the_grid(tmp_path: Path, written: object, expected: object) -> None:
    checkpoint = edited(tmp_path, lambda c: c.update(image_grid_pinpoints=written))
    preprocessing = read_preprocessing(checkpoint, geometry(checkpoint).vision)
    assert preprocessing is not None
    assert preprocessing.grid_pinpoints == expected


@pytest.mark.parametrize(
    "written", [None, [], "x", "__import__('os')", 3, [[56]], [[56, 57]], [[56, 0]], [[56.0, 56]], "(0x0),(1x1)"]
)
def test_refuses_a_grid_of_partial_crops(tmp_path: Path, written: object) -> None:
    refused(tmp_path, lambda c: c.update(image_grid_pinpoints=written), "multiples of the crop size 56")


def tower_of(folder: Path, change: Config) -> Checkpoint:
    write_tiny_checkpoint(folder)
    file = folder / "siglip_tiny" / "config.json"
    tower = json.loads(file.read_text())
    tower["vision_config"] |= change
    write_json(file, tower)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("described", [VISION_LAYERS, VISION_LAYERS + 1])
def test_last_layer_of_the_tower_is_never_used(tmp_path: Path, described: int) -> None:
    vision = geometry(tower_of(tmp_path, {"num_hidden_layers": described})).vision
    assert vision is not None
    assert vision.layers == described - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 5}, "described with 5 layers, but the tensors have 2"),
        ({"num_hidden_layers": 1}, "described with 1 layers, but the tensors have 2"),
        ({"hidden_size": 26}, f"vision hidden_size is 26, but .*{VISION_WIDTH}"),
        ({"patch_size": 28}, "vision patch_size is 28"),
        ({"image_size": 70}, "patches per crop is 25, but .*position_embedding"),
        ({"intermediate_size": 41}, "vision intermediate_size is 41"),
        ({"num_attention_heads": 5}, "24 is not a multiple of 5 heads"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_channels": 1}, "num_channels is 1"),
    ],
)
def test_tower_must_fit_its_tensors(tmp_path: Path, change: Config, message: str) -> None:
    checkpoint = tower_of(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        geometry(checkpoint)


def test_tower_defaults_fill_what_its_configuration_leaves_out(tmp_path: Path) -> None:
    vision = geometry(tower_of(tmp_path, {"layer_norm_eps": None, "hidden_act": None})).vision
    assert vision is not None
    assert vision.layer_norm_eps == 1e-6


@pytest.mark.parametrize("name", ["/data/towers/siglip_tiny", "./siglip_tiny", "google/siglip_tiny"])
def test_tower_folder_is_found_by_its_last_name(tmp_path: Path, name: str) -> None:
    assert geometry(edited(tmp_path, lambda c: c.update(mm_vision_tower=name))).vision is not None


def test_tower_outside_the_checkpoint_is_not_read(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "other")
    checkpoint = edited(tmp_path / "this", lambda c: c.update(mm_vision_tower="../other/siglip_tiny/."))
    (tmp_path / "this" / "siglip_tiny" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no configuration of it"):
        geometry(checkpoint)


def test_tower_described_in_the_main_configuration(tmp_path: Path) -> None:
    checkpoint = edited(tmp_path, lambda c: c.pop("mm_vision_tower"))
    file = tmp_path / "siglip_tiny" / "config.json"
    inner = json.loads(file.read_text())["vision_config"]
    file.unlink()
    with pytest.raises(CheckpointError, match="no configuration of it"):
        geometry(checkpoint)
    for value, works in ((inner, True), ([], False)):
        write_json(tmp_path / "config.json", {**checkpoint.config, "vision_config": value})
        again = Checkpoint.open(tmp_path)
        if works:
            assert geometry(again).vision is not None
        else:
            with pytest.raises(CheckpointError, match="must be an object"):
                geometry(again)


def test_tower_without_tensors_is_refused(tmp_path: Path) -> None:
    def edit(tensors: Tensors, _: Config) -> None:
        for name in [name for name in tensors if name.startswith(TOWER)]:
            del tensors[name]

    with pytest.raises(CheckpointError, match="none of its tensors"):
        geometry(Checkpoint.open(write_tiny_checkpoint(tmp_path, edit=edit)))
