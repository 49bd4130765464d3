"""A random text model between the demo checkpoint and the real one, to measure with on two cores.

Width 1024, 8 layers of 8 heads, FFN 3072 and the real vocabulary, in float32: 0.95 GB of weights for
passes and 0.52 GB of embedding table. Answers mean nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np

from benchmarks.make_full_size import ROWS, write_json, write_tokenizer
from lladav.export.coverage import expected_tensors
from lladav.geometry import Geometry, LanguageGeometry

GEOMETRY = LanguageGeometry(
    hidden_size=1024,
    intermediate_size=3072,
    layers=8,
    heads=8,
    kv_heads=8,
    head_size=128,
    vocab_rows=ROWS,
    rope_theta=500_000.0,
    rms_norm_eps=1e-5,
    max_positions=16384,
)
_SHARD = "model-00001-of-00001.safetensors"


def write_checkpoint(folder: Path, geometry: LanguageGeometry | None = None, tokenizer: Path | None = None) -> Path:
    """Writes it in Hugging Face layout into a new folder, which is returned.

    Args:
        folder: to make.
        geometry: of another random text model.
        tokenizer: checkpoint whose tokenizer it has, for a smaller vocabulary than the real one.
    """
    folder.mkdir(parents=True)
    geometry = geometry or GEOMETRY
    shapes = expected_tensors(Geometry(language=geometry, vision=None))
    header, start = {}, 0
    for name, shape in shapes.items():
        stop = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / _SHARD).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            stream.write(_values(name, shape).data)
    index = {"metadata": {"total_size": start}, "weight_map": dict.fromkeys(shapes, _SHARD)}
    write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", _config(geometry))
    if tokenizer is None:
        write_tokenizer(folder)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, folder / name)
    return folder


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.02) * draw
    # Activations keep their size through the layers; embeddings stay apart from each other.
    return draw * np.float32(0.02 if "embed" in name else shape[1] ** -0.5)


def _config(g: LanguageGeometry) -> dict[str, object]:
    return {
        "model_type": "llada",
        "hidden_act": "silu",
        "hidden_size": g.hidden_size,
        "intermediate_size": g.intermediate_size,
        "max_position_embeddings": g.max_positions,
        "num_attention_heads": g.heads,
        "num_hidden_layers": g.layers,
        "num_key_value_heads": g.kv_heads,
        "rms_norm_eps": g.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": g.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": g.vocab_rows,
    }
