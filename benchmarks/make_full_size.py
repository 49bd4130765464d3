"""Writes a checkpoint with LLaDA-V's real geometry and random weights, to measure with.

    python benchmarks/make_full_size.py OUT [--layers 32] [--vision-layers 26]

16.8 GB in bfloat16 at full size, shard by shard, in less than 1 GB of memory. Answers mean
nothing; sizes, types, names, special tokens and configuration are the real ones.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from lladav.export.coverage import Shapes, expected_tensors
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.manifest import TOWER

LAYERS, VISION_LAYERS, ROWS = 32, 26, 126_464
BASE_TOKENS, TOKENS = 126_080, 126_349
SPECIAL_TOKENS = {
    126_080: "<|startoftext|>",
    126_081: "<|endoftext|>",
    126_082: "[CLS]",
    126_083: "[gMASK]",
    126_336: "<|mdm_mask|>",
    126_340: "<role>",
    126_341: "</role>",
    126_342: "<|arithmetic_start|>",
    126_343: "<|arithmetic_end|>",
    126_344: "<|number_start|>",
    126_345: "<|number_end|>",
    126_346: "<|start_header_id|>",
    126_347: "<|end_header_id|>",
    126_348: "<|eot_id|>",
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
TOWER_NAME = "siglip2-so400m-patch14-384"
SHARD_BYTES = 4_900_000_000

# All values come from a few pools of this many normal numbers. It is prime, so that a tensor
# which reads its pool over and over never has two equal rows.
POOL = 4_194_301

Values = npt.NDArray[Any]


def real_geometry(layers: int = LAYERS, vision_layers: int = VISION_LAYERS) -> Geometry:
    """Of GSAI-ML/LLaDA-V, with as many layers as are given."""
    return Geometry(
        language=LanguageGeometry(
            hidden_size=4096,
            intermediate_size=12288,
            layers=layers,
            heads=32,
            kv_heads=32,
            head_size=128,
            vocab_rows=ROWS,
            rope_theta=500_000.0,
            rms_norm_eps=1e-5,
            max_positions=16384,
        ),
        vision=VisionGeometry(
            hidden_size=1152,
            intermediate_size=4304,
            layers=vision_layers,
            heads=16,
            image_size=384,
            patch_size=14,
            layer_norm_eps=1e-6,
        ),
    )


def write_checkpoint(out: Path, layers: int, vision_layers: int, progress: Callable[[int], object]) -> None:
    geometry = real_geometry(layers, vision_layers)
    shapes = _all_tensors(geometry)
    shards = list(_shards(shapes))
    where = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(out / file, {name: shapes[name] for name in names}, progress)
        where.update(dict.fromkeys(names, file))
    write_json(
        out / "model.safetensors.index.json",
        {"metadata": {"total_size": total_bytes(geometry)}, "weight_map": where},
    )
    write_json(out / "config.json", _config(geometry))
    if vision_layers != VISION_LAYERS:
        tower = out / TOWER_NAME
        tower.mkdir()
        write_json(
            tower / "config.json", {"model_type": "siglip", "vision_config": {"num_hidden_layers": vision_layers + 1}}
        )
    write_tokenizer(out)


def total_bytes(geometry: Geometry) -> int:
    return sum(2 * math.prod(shape) for shape in _all_tensors(geometry).values())


def _all_tensors(geometry: Geometry) -> Shapes:
    assert geometry.vision is not None
    norm = (geometry.vision.hidden_size,)
    unused = {f"{TOWER}.post_layernorm.weight": norm, f"{TOWER}.post_layernorm.bias": norm}
    return expected_tensors(geometry) | unused


def _shards(shapes: Shapes) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        needed = 2 * math.prod(shape)
        if names and size + needed > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += needed
    yield names


def _write_shard(file: Path, shapes: Shapes, progress: Callable[[int], object]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for block in _values(name, shape):
                stream.write(block.view(np.uint8).data)
                progress(block.nbytes)


def _values(name: str, shape: tuple[int, ...]) -> Iterator[Values]:
    """A tensor's values, in blocks: its own stretch of a pool, or of the pool's negative."""
    code = zlib.crc32(name.encode())
    matrix = len(shape) > 1
    pool = _pool(
        mean=1.0 if "norm" in name and name.endswith(".weight") else 0.0,
        # Activations keep their size through the layers; embeddings stay apart from each other.
        std=0.02 if not matrix or ("embed" in name and "patch" not in name) else math.prod(shape[1:]) ** -0.5,
        negative=matrix and bool(code & 1),
    )
    left, at = math.prod(shape), code % POOL
    while left:
        block = pool[at : at + left]
        yield block
        left, at = left - len(block), 0


@cache
def _pool(mean: float, std: float, negative: bool) -> Values:
    draw = np.random.default_rng(20240).standard_normal(POOL, dtype=np.float32)
    return (draw * (-std if negative else std) + mean).astype(ml_dtypes.bfloat16)


def _config(geometry: Geometry) -> dict[str, Any]:
    language, vision = geometry.language, geometry.vision
    assert vision is not None
    sides = [vision.image_size * i for i in range(1, 7)]
    return {
        "add_faster_video": False,
        "add_time_instruction": False,
        "architectures": ["LlavaLLaDAModelLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 126081,
        "faster_token_stride": 10,
        "force_sample": False,
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "image_aspect_ratio": "anyres_max_4",
        "image_crop_resolution": None,
        "image_grid_pinpoints": [[width, height] for width in sides for height in sides],
        "image_split_resolution": None,
        "initializer_range": 0.02,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_positions,
        "mm_hidden_size": vision.hidden_size,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": None,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"model/{TOWER_NAME}",
        "mm_vision_tower_lr": 2e-06,
        "model_type": "llava_llada",
        "num_attention_heads": language.heads,
        "num_hidden_layers": language.layers,
        "num_key_value_heads": language.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.39.1",
        "use_cache": False,
        "use_mm_proj": True,
        "vocab_size": language.vocab_rows,
    }


def write_tokenizer(out: Path) -> None:
    """Text becomes single bytes; the other base tokens hold their ids and never occur."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    vocab = {letters[byte]: byte for byte in range(256)} | {f"<unused{n}>": n for n in range(256, BASE_TOKENS)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": n, "content": SPECIAL_TOKENS.get(n, f"<|reserved_token_{n - 126_084}|>"), "special": True, **flags}
        for n in range(BASE_TOKENS, TOKENS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(
        out / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": []},
        },
    )
    write_json(
        out / "tokenizer_config.json",
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


def write_json(path: Path, value: object) -> None:
    """Readable JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of LLaDA-V's real geometry with random weights.")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--layers", type=int, default=LAYERS, help="language layers")
    parser.add_argument("--vision-layers", type=int, default=VISION_LAYERS, help="vision layers in use")
    options = parser.parse_args()
    if min(options.layers, options.vision_layers) < 1:
        parser.error("--layers and --vision-layers must be at least 1")
    total = total_bytes(real_geometry(options.layers, options.vision_layers))
    try:
        options.out.mkdir(parents=True)
    except FileExistsError:
        parser.error(f"{options.out} exists; name a folder that does not")
    if (free := shutil.disk_usage(options.out).free) < total + (1 << 25):
        parser.error(f"{options.out} needs {total:,} bytes, but its disk has {free:,} left")
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("weights", total=total)
        write_checkpoint(options.out, options.layers, options.vision_layers, lambda done: bar.advance(task, done))


if __name__ == "__main__":
    main()
