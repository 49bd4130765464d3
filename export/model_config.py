"""Sizes and preprocessing of a model, from what its checkpoint says and holds.

Spellings are read leniently; whatever decides a shape must agree with the tensors.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lladav.errors import CheckpointError, faults_of
from lladav.export.checkpoint import Checkpoint, read_json
from lladav.export.config_fields import MATCHING, Fields
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.manifest import TOWER, Preprocessing

# Fields that select another computation. Both naming schemes of LLaDA are covered.
_LANGUAGE_RULES: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "quantization_config": (),
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False,),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "multi_query_attention": (False,),
    "rope": (True,),
    "scale_logits": (False,),
    "weight_tying": (False,),
}
_VISION_RULES: Mapping[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_resampler_type": (),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "add_faster_video": (False,),
    "s2": (False,),
}
_PICTURE_RULES: Mapping[str, tuple[Any, ...]] = {
    "mm_newline_position": ("grid", "frame", "one_token", "no_token"),
    "mm_spatial_pool_mode": ("bilinear", "average"),
}
_TOWER_RULES: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,)}

# What the authors' tower assumes for fields that a tower's configuration leaves out, and all
# there is where a checkpoint only names its tower: both are SigLIP so400m/14 at 384 pixels.
_SO400M: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
_KNOWN_TOWERS = ("siglip2-so400m-patch14-384", "siglip-so400m-patch14-384")


def read_geometry(checkpoint: Checkpoint, vocab_rows: int) -> Geometry:
    """The sizes of the model, compared with the tensors that show them.

    Args:
        checkpoint: LLaDA-V or a text-only LLaDA.
        vocab_rows: rows of embedding and head to use, at most those of the checkpoint.

    Raises:
        CheckpointError: the configuration lacks a size, contradicts the tensors, or asks for
            something that is not supported.
    """
    try:
        return Geometry(language=_language(checkpoint, vocab_rows), vision=_vision(checkpoint))
    except ValidationError as error:
        raise CheckpointError(
            f"{checkpoint.path} describes an impossible model: {faults_of(error, 'model')}", cure=MATCHING
        ) from error


def read_preprocessing(checkpoint: Checkpoint, vision: VisionGeometry | None) -> Preprocessing | None:
    """How pictures and video become crops; None without a vision tower.

    Raises:
        CheckpointError: a value is missing or not supported.
    """
    if vision is None:
        return None
    fields = _fields(checkpoint)
    fields.only(_PICTURE_RULES)
    ratio = fields.text("image_aspect_ratio")
    anyres = re.fullmatch(r"anyres(?:_max_([1-9]\d*))?", ratio)
    if anyres is None:
        raise CheckpointError(
            f"image_aspect_ratio in {checkpoint.path / 'config.json'} is {ratio!r}; lladav prepares pictures by "
            "anyres or anyres_max_N",
            cure="export a checkpoint that was trained with one of these, as LLaDA-V was",
        )
    # mm_spatial_pool_stride is not read: the authors' code pools video by 2 whatever it says.
    return Preprocessing.model_validate(
        {
            "crop_size": vision.image_size,
            "grid_pinpoints": _grid(checkpoint, vision.image_size),
            "max_tiles": int(anyres[1]) if anyres[1] else None,
            "video_pool_mode": fields.text("mm_spatial_pool_mode", default="bilinear"),
            "video_newline": fields.text("mm_newline_position", default="one_token"),
        }
    )


def _fields(checkpoint: Checkpoint) -> Fields:
    return Fields(checkpoint.config, checkpoint.path / "config.json")


def _language(checkpoint: Checkpoint, vocab_rows: int) -> LanguageGeometry:
    fields = _fields(checkpoint)
    fields.only(_LANGUAGE_RULES)
    hidden = fields.integer("hidden_size", "d_model")
    heads = fields.integer("num_attention_heads", "n_heads")
    if hidden % heads and "head_dim" not in fields:
        raise _contradiction(checkpoint, f"hidden_size {hidden} is not a multiple of {heads} heads")
    language = LanguageGeometry(
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", "mlp_hidden_size"),
        layers=fields.integer("num_hidden_layers", "n_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", "n_kv_heads", default=heads),
        head_size=fields.integer("head_dim", default=hidden // heads),
        vocab_rows=vocab_rows,
        rope_theta=fields.number("rope_theta"),
        rms_norm_eps=fields.number("rms_norm_eps", "layer_norm_eps", "norm_eps"),
        max_positions=fields.integer(_present(fields, "max_position_embeddings", "max_sequence_length")),
    )
    embedding, layer = "model.embed_tokens.weight", "model.layers.0"
    _compare(checkpoint, "hidden_size", language.hidden_size, embedding, 1)
    _compare(checkpoint, "vocab_size", fields.integer(_present(fields, "embedding_size", "vocab_size")), embedding, 0)
    _compare(checkpoint, "intermediate_size", language.intermediate_size, f"{layer}.mlp.gate_proj.weight", 0)
    q_size, kv_size = language.heads * language.head_size, language.kv_heads * language.head_size
    _compare(checkpoint, "heads x head size", q_size, f"{layer}.self_attn.q_proj.weight", 0)
    _compare(checkpoint, "key-value heads x head size", kv_size, f"{layer}.self_attn.k_proj.weight", 0)
    found = _layers(checkpoint, "model.layers.")
    if found != language.layers:
        raise _contradiction(checkpoint, f"num_hidden_layers is {language.layers}, but the tensors have {found} layers")
    return language


def _vision(checkpoint: Checkpoint) -> VisionGeometry | None:
    fields = _fields(checkpoint)
    described = any(name in fields for name in ("mm_vision_tower", "vision_tower", "vision_config"))
    found = _layers(checkpoint, f"{TOWER}.encoder.layers.")
    if not described and not found:
        return None
    if not found:
        raise CheckpointError(
            f"{checkpoint.path} names a vision tower, but none of its tensors begins with {TOWER}",
            cure="use a checkpoint that was saved with its tower, as LLaDA-V is: "
            "the tower was trained with the rest, so another copy of it would not fit",
        )
    fields.only(_VISION_RULES)
    tower = _tower(checkpoint)
    tower.only(_TOWER_RULES)
    described_layers = tower.integer("num_hidden_layers")
    if described_layers - found not in (0, 1):
        raise _contradiction(
            checkpoint, f"the vision tower is described with {described_layers} layers, but the tensors have {found}"
        )
    vision = VisionGeometry(
        hidden_size=tower.integer("hidden_size"),
        intermediate_size=tower.integer("intermediate_size"),
        # The authors' code removes the last layer before it loads the tuned tower.
        layers=described_layers - 1,
        heads=tower.integer("num_attention_heads"),
        image_size=tower.integer("image_size"),
        patch_size=tower.integer("patch_size"),
        layer_norm_eps=tower.number("layer_norm_eps"),
    )
    patches, positions = f"{TOWER}.embeddings.patch_embedding.weight", f"{TOWER}.embeddings.position_embedding.weight"
    _compare(checkpoint, "mm_hidden_size", fields.integer("mm_hidden_size", default=vision.hidden_size), patches, 0)
    _compare(checkpoint, "vision hidden_size", vision.hidden_size, patches, 0)
    _compare(checkpoint, "vision patch_size", vision.patch_size, patches, 2)
    _compare(checkpoint, "patches per crop", vision.tokens, positions, 0)
    fc1 = f"{TOWER}.encoder.layers.0.mlp.fc1.weight"
    _compare(checkpoint, "vision intermediate_size", vision.intermediate_size, fc1, 0)
    return vision


def _tower(checkpoint: Checkpoint) -> Fields:
    """The tower's configuration: from its own folder, from config.json, or known by its name."""
    fields = _fields(checkpoint)
    name = fields.text("mm_vision_tower", "vision_tower", default="")
    for folder in (checkpoint.path / name, checkpoint.path / Path(name).name):
        file = folder / "config.json"
        inside = checkpoint.path.resolve() in folder.resolve().parents
        if inside and file.is_file():
            values = read_json(file)
            return _tower_fields(values.get("vision_config", values), file)
    if "vision_config" in fields:
        return _tower_fields(checkpoint.config["vision_config"], checkpoint.path / "config.json")
    if Path(name).name.lower() in _KNOWN_TOWERS:
        return Fields(_SO400M, checkpoint.path / "config.json")
    raise CheckpointError(
        f"{checkpoint.path} has a vision tower {name!r}, and no configuration of it",
        cure=f"put the tower's config.json into {checkpoint.path / (Path(name).name or 'vision_tower')}; "
        f"known without one: {', '.join(_KNOWN_TOWERS)}",
    )


def _tower_fields(values: Any, file: Path) -> Fields:
    if not isinstance(values, dict):
        raise CheckpointError(f"vision_config in {file} is {values!r}, but must be an object", cure=MATCHING)
    return Fields({**_SO400M, **{name: value for name, value in values.items() if value is not None}}, file)


def _grid(checkpoint: Checkpoint, crop: int) -> list[tuple[int, int]]:
    """Candidate canvases in pixels, from a list, its text, or a range like `(1x1),...,(6x6)`."""
    written = checkpoint.config.get("image_grid_pinpoints")
    pairs = written
    if isinstance(written, str):
        corners = [(int(w), int(h)) for w, h in re.findall(r"\((\d{1,4})x(\d{1,4})\)", written)]
        if corners:
            (left, top), (right, bottom) = corners[0], corners[-1]
            pairs = [[crop * i, crop * j] for i in range(left, right + 1) for j in range(top, bottom + 1)]
        else:
            try:
                pairs = ast.literal_eval(written)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                pairs = None
    valid = isinstance(pairs, list) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(type(n) is int and n > 0 and n % crop == 0 for n in pair)
        for pair in pairs
    )
    if not pairs or not valid:
        raise CheckpointError(
            f"image_grid_pinpoints in {checkpoint.path / 'config.json'} is {written!r:.200}, "
            f"but must list pairs of multiples of the crop size {crop}",
            cure=MATCHING,
        )
    return [(width, height) for width, height in pairs]


def _present(fields: Fields, first: str, second: str) -> str:
    return first if first in fields else second


def _layers(checkpoint: Checkpoint, prefix: str) -> int:
    """How many layers the tensor names number."""
    return len({n.removeprefix(prefix).split(".")[0] for n in checkpoint.tensors if n.startswith(prefix)})


def _compare(checkpoint: Checkpoint, what: str, configured: int, name: str, axis: int) -> None:
    """Missing tensors and axes pass: `check_coverage` lists them all."""
    info = checkpoint.tensors.get(name)
    if info is not None and axis < len(info.shape) and info.shape[axis] != configured:
        raise _contradiction(checkpoint, f"{what} is {configured}, but {info.name} has shape {list(info.shape)}")


def _contradiction(checkpoint: Checkpoint, what: str) -> CheckpointError:
    return CheckpointError(f"the configuration of {checkpoint.path} does not fit: {what}", cure=MATCHING)
