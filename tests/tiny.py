"""A whole LLaDA-V checkpoint of a few hundred kilobytes, made from nothing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]

WIDTH, FFN, LAYERS, HEADS = 32, 48, 2, 4
VISION_WIDTH, VISION_FFN, VISION_LAYERS, VISION_HEADS = 24, 40, 2, 2
IMAGE_SIZE, PATCH_SIZE = 56, 14
ROWS = 320
"""Rows of embedding and head in the file; the tokenizer needs fewer (`TOKENIZER_LENGTH`)."""

MERGED_WORDS = (" the", " and", " image", "user", "assistant", "system", "\n\n")
SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "[CLS]",
    "<|reserved_token_0|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def write_tiny_checkpoint(
    path: str | Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    edit: Callable[[Tensors, dict[str, Any]], object] | None = None,
) -> Path:
    """Writes a LLaDA-V checkpoint in Hugging Face layout: two shards, index, configs, tokenizer.

    Language model of 2 layers, width 32, 4 heads of 8, 320 rows; vision tower of 2 layers in
    use (3 by its config), width 24, 56-pixel crops of 16 tokens; grid of up to 3 x 3 crops.

    Args:
        path: folder to create.
        dtype: "float32", "float16" or "bfloat16".
        seed: equal seeds give equal values; the three dtypes hold the same values, rounded.
        edit: called with the float32 tensors by name and with config.json's values before
            anything is written; may change, add and remove entries. A tensor that is not
            float32 afterwards is stored in its own dtype.

    Returns:
        `path`.
    """
    folder = Path(path)
    tensors, config = tiny_tensors(seed), tiny_config(dtype)
    if edit is not None:
        edit(tensors, config)
    stored = {n: t.astype(_DTYPES[dtype]) if t.dtype == np.float32 else t for n, t in sorted(tensors.items())}
    names = list(stored)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    where = {}
    (folder / "siglip_tiny").mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, {name: stored[name] for name in shard})
        where.update(dict.fromkeys(shard, file))
    total = sum(t.nbytes for t in stored.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    write_json(folder / "config.json", config)
    write_json(folder / "siglip_tiny" / "config.json", {"model_type": "siglip", "vision_config": tower_config()})
    write_json(folder / "tokenizer.json", tiny_tokenizer())
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return folder


def sharing_heads(kv_heads: int) -> Callable[[Tensors, dict[str, Any]], None]:
    """An `edit` that leaves the language model that many heads of keys and values."""

    def edit(tensors: Tensors, config: dict[str, Any]) -> None:
        config["num_key_value_heads"] = kv_heads
        for name, tensor in tensors.items():
            if name.endswith(("k_proj.weight", "v_proj.weight")) and "vision" not in name:
                tensors[name] = tensor[: WIDTH // HEADS * kv_heads]

    return edit


def without_pictures(tensors: Tensors, config: dict[str, Any]) -> None:
    """An `edit` that leaves the language model alone."""
    for name in [name for name in tensors if "vision" in name or "mm_projector" in name or "image" in name]:
        del tensors[name]
    for key in [key for key in config if key.startswith(("mm_", "image_"))]:
        del config[key]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.nbytes
        header[name] = {"dtype": _NAMES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor).tobytes())


def tiny_tensors(seed: int) -> Tensors:
    """All tensors, float32. Norm scales lie near one, so that activations stay moderate."""
    tensors: Tensors = {}

    def add(name: str, *shape: int, std: float = 0.1, mean: float = 0.0) -> None:
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
        tensors[name] = draw.normal(mean, std, shape).astype(np.float32)

    def linear(name: str, rows: int, columns: int, *, bias: bool = False, gain: float = 1.0) -> None:
        add(f"{name}.weight", rows, columns, std=gain / columns**0.5)
        if bias:
            add(f"{name}.bias", rows)

    add("model.embed_tokens.weight", ROWS, WIDTH, std=0.5)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        add(f"{layer}.input_layernorm.weight", WIDTH, mean=1.0)
        add(f"{layer}.post_attention_layernorm.weight", WIDTH, mean=1.0)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear(f"{layer}.self_attn.{part}", WIDTH, WIDTH, gain=3.0 if part in ("q_proj", "k_proj") else 1.0)
        linear(f"{layer}.mlp.gate_proj", FFN, WIDTH)
        linear(f"{layer}.mlp.up_proj", FFN, WIDTH)
        linear(f"{layer}.mlp.down_proj", WIDTH, FFN)
    add("model.norm.weight", WIDTH, mean=1.0)
    linear("lm_head", ROWS, WIDTH, gain=3.0)

    add("model.image_newline", WIDTH, std=0.5)
    linear("model.mm_projector.0", WIDTH, VISION_WIDTH, bias=True)
    linear("model.mm_projector.2", WIDTH, WIDTH, bias=True)
    tower = "model.vision_tower.vision_tower.vision_model"
    add(f"{tower}.embeddings.patch_embedding.weight", VISION_WIDTH, 3, PATCH_SIZE, PATCH_SIZE, std=0.12)
    add(f"{tower}.embeddings.patch_embedding.bias", VISION_WIDTH)
    add(f"{tower}.embeddings.position_embedding.weight", (IMAGE_SIZE // PATCH_SIZE) ** 2, VISION_WIDTH, std=0.5)
    for i in range(VISION_LAYERS):
        layer = f"{tower}.encoder.layers.{i}"
        for norm in ("layer_norm1", "layer_norm2"):
            add(f"{layer}.{norm}.weight", VISION_WIDTH, mean=1.0)
            add(f"{layer}.{norm}.bias", VISION_WIDTH)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{part}", VISION_WIDTH, VISION_WIDTH, bias=True)
        linear(f"{layer}.mlp.fc1", VISION_FFN, VISION_WIDTH, bias=True)
        linear(f"{layer}.mlp.fc2", VISION_WIDTH, VISION_FFN, bias=True)
    add(f"{tower}.post_layernorm.weight", VISION_WIDTH, mean=1.0)
    add(f"{tower}.post_layernorm.bias", VISION_WIDTH)
    return tensors


def tiny_config(dtype: str) -> dict[str, Any]:
    return {
        "add_faster_video": False,
        "architectures": ["LlavaLLaDAModelLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": [[IMAGE_SIZE * i, IMAGE_SIZE * j] for i in range(1, 4) for j in range(1, 4)],
        "intermediate_size": FFN,
        "max_position_embeddings": 512,
        "mm_hidden_size": VISION_WIDTH,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_tower": "siglip_tiny",
        "model_type": "llava_llada",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 384,
        "torch_dtype": dtype,
        "vocab_size": ROWS,
    }


def tower_config() -> dict[str, Any]:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": VISION_WIDTH,
        "image_size": IMAGE_SIZE,
        "intermediate_size": VISION_FFN,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": VISION_HEADS,
        "num_channels": 3,
        "num_hidden_layers": VISION_LAYERS + 1,
        "patch_size": PATCH_SIZE,
    }


def tiny_tokenizer() -> dict[str, Any]:
    """tokenizer.json: every byte, a few merges, and the special tokens at the end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    vocab = {letters[byte]: byte for byte in range(256)}
    merges: list[str] = []
    for word in MERGED_WORDS:
        left, *rest = (letters[byte] for byte in word.encode())
        for right in rest:
            if left + right not in vocab:
                merges.append(f"{left} {right}")
                vocab[left + right] = len(vocab)
            left += right
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": len(vocab) + n, "content": t, "special": True, **flags} for n, t in enumerate(SPECIAL_TOKENS)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges},
    }


TOKENIZER_LENGTH = len(tiny_tokenizer()["model"]["vocab"]) + len(SPECIAL_TOKENS)
