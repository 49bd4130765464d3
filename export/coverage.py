"""Every tensor of a checkpoint is used, or known to be unused, before anything is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from lladav.errors import CheckpointError
from lladav.export.checkpoint import Checkpoint
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.manifest import CONNECTOR, HEAD, TOWER

Shapes = dict[str, tuple[int, ...]]

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
"""The tensors with one row per token; a checkpoint may have more rows than are used."""

KNOWN_UNUSED = {
    rf"{re.escape(TOWER)}\.post_layernorm\.(weight|bias)": "the model takes the tower's last layer as it is",
    rf"{re.escape(TOWER)}\.head\..+": "the tower's pooling head serves classification only",
    rf"{re.escape(TOWER)}\.encoder\.layers\.LAST\..+": "the model takes the layer before the tower's last one",
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "computed from rope_theta",
}
"""Patterns of tensors that may be left over, and why. LAST is the tower layer after those in use."""

_FOLD_BEYOND = 50


def expected_tensors(geometry: Geometry) -> Shapes:
    """Names and shapes of all tensors that the model computes with."""
    shapes = _language_tensors(geometry.language)
    if geometry.vision is not None:
        shapes |= _vision_tensors(geometry.vision)
        shapes |= _connector_tensors(geometry.vision.hidden_size, geometry.language.hidden_size)
    return shapes


def linear_layers(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """Names and sizes `[out, in]` of the linear layers of the model's blocks and of the connector, without the head."""
    matrices = {name: shape for name, shape in expected_tensors(geometry).items() if len(shape) == 2}
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in matrices.items()
        if name not in VOCABULARY and "embedding" not in name
    }


def layers_with_head(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """`linear_layers` and the head."""
    language = geometry.language
    return linear_layers(geometry) | {HEAD: (language.vocab_rows, language.hidden_size)}


def check_coverage(checkpoint: Checkpoint, geometry: Geometry) -> dict[str, str]:
    """Compares the checkpoint's tensors with those the model needs.

    Returns:
        The tensors that are left over, with the reason.

    Raises:
        CheckpointError: listing all that are missing, unknown or of a wrong shape.
    """
    expected = expected_tensors(geometry)
    found = {name: info.shape for name, info in checkpoint.tensors.items()}
    last = str(geometry.vision.layers) if geometry.vision is not None else "none"
    reasons = {re.compile(pattern.replace("LAST", last)): reason for pattern, reason in KNOWN_UNUSED.items()}
    left = {
        name: next((reason for pattern, reason in reasons.items() if pattern.fullmatch(name)), None)
        for name in found.keys() - expected.keys()
    }
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(name for name, reason in left.items() if reason is None)
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and not _fits(name, found[name], shape)
    ]
    embedding, head = (found.get(name, ())[:1] for name in VOCABULARY)
    if embedding and head and embedding != head:
        wrong.append(f"{VOCABULARY[0]} has {embedding[0]} rows, but {VOCABULARY[1]} has {head[0]}")
    if missing or unknown or wrong:
        raise CheckpointError(
            f"{checkpoint.path} does not hold this model: {len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(wrong)} of a wrong shape"
            + _listed("missing", missing)
            + _listed("unknown", unknown)
            + _listed("wrong shape", wrong),
            cure="pass a whole checkpoint of LLaDA-V or LLaDA, with the config.json it was saved with and no adapters",
        )
    return {name: reason for name, reason in sorted(left.items()) if reason is not None}


def _fits(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if name in VOCABULARY:
        return len(found) == 2 and found[0] >= wanted[0] and found[1] == wanted[1]
    return found == wanted


def _listed(label: str, entries: Sequence[str]) -> str:
    """One line per entry; a long list by pattern, with layer numbers as N."""
    if len(entries) > _FOLD_BEYOND:
        patterns = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "N", entry) for entry in entries)
        entries = [f"{pattern} ({count} times)" for pattern, count in patterns.items()]
    return "".join(f"\n  {label}: {entry}" for entry in entries)


def _language_tensors(g: LanguageGeometry) -> Shapes:
    wide, q_size, kv_size = g.hidden_size, g.heads * g.head_size, g.kv_heads * g.head_size
    shapes: Shapes = dict.fromkeys(VOCABULARY, (g.vocab_rows, wide))
    for i in range(g.layers):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (wide,),
            f"{layer}.self_attn.q_proj.weight": (q_size, wide),
            f"{layer}.self_attn.k_proj.weight": (kv_size, wide),
            f"{layer}.self_attn.v_proj.weight": (kv_size, wide),
            f"{layer}.self_attn.o_proj.weight": (wide, q_size),
            f"{layer}.post_attention_layernorm.weight": (wide,),
            f"{layer}.mlp.gate_proj.weight": (g.intermediate_size, wide),
            f"{layer}.mlp.up_proj.weight": (g.intermediate_size, wide),
            f"{layer}.mlp.down_proj.weight": (wide, g.intermediate_size),
        }
    shapes["model.norm.weight"] = (wide,)
    return shapes


def _vision_tensors(g: VisionGeometry) -> Shapes:
    wide, inner = g.hidden_size, g.intermediate_size
    shapes: Shapes = {
        f"{TOWER}.embeddings.patch_embedding.weight": (wide, 3, g.patch_size, g.patch_size),
        f"{TOWER}.embeddings.patch_embedding.bias": (wide,),
        f"{TOWER}.embeddings.position_embedding.weight": (g.tokens, wide),
    }
    for i in range(g.layers):
        layer = f"{TOWER}.encoder.layers.{i}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": (wide,), f"{layer}.{norm}.bias": (wide,)}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{part}", wide, wide)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, wide) | _linear(f"{layer}.mlp.fc2", wide, inner)
    return shapes


def _connector_tensors(vision: int, language: int) -> Shapes:
    return {
        "model.image_newline": (language,),
        **_linear(f"{CONNECTOR}.0", language, vision),
        **_linear(f"{CONNECTOR}.2", language, language),
    }


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
