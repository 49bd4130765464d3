"""A checkpoint folder: its configuration and its tensors, under LLaDA-V's names.

Only JSON and .safetensors files are opened: nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.errors import CheckpointError
from lladav.export.safetensors import FloatType, TensorInfo, read_header, read_rows

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DOWNLOAD = "download the whole checkpoint again, e.g. with `hf download`"

# The text-only LLaDA is published under the names of the code it was trained with.
_PLAIN_NAMES = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight")

# Of each 16-bit or 32-bit pattern: all bits but the sign, and infinity; NaN lies above it.
_MAGNITUDE = {"bfloat16": (0x7FFF, 0x7F80), "float16": (0x7FFF, 0x7C00), "float32": (0x7FFFFFFF, 0x7F800000)}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; values are read from its files when they are asked for.

    Attributes:
        config: config.json.
        generation_config: generation_config.json, empty without one.
        tensors: by LLaDA-V name, whatever the files call them.
    """

    path: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Reads the configuration and all headers.

        Raises:
            CheckpointError: a file is missing or damaged, or the index and the shards
                contradict each other.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder} is no folder",
                cure="pass the folder that holds config.json; a model on the Hub is fetched with `hf download`",
            )
        config = read_json(folder / "config.json")
        stored = _shards(folder) if (folder / _INDEX).exists() else _single(folder)
        if not stored:
            raise CheckpointError(f"{folder} holds no tensors", cure=_DOWNLOAD)
        tensors: dict[str, TensorInfo] = {}
        for name, info in stored.items():
            known = tensors.setdefault(canonical_name(name), info)
            if known is not info:
                raise CheckpointError(
                    f"{known.name} and {name} in {folder} name the same tensor", cure="keep only one of them"
                )
        generation = folder / "generation_config.json"
        return cls(folder, config, read_json(generation) if generation.exists() else {}, tensors)

    @property
    def dtype(self) -> FloatType:
        """The dtype of most bytes; single tensors may have another."""
        sizes: Counter[FloatType] = Counter()
        for info in self.tensors.values():
            sizes[info.dtype] += info.bytes
        return sizes.most_common(1)[0][0]

    def read(self, name: str) -> npt.NDArray[Any]:
        """A whole tensor in its own dtype."""
        info = self.tensors[name]
        return read_rows(info, 0, info.rows).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows `start` to `stop` of a tensor: `[stop - start, *shape[1:]]` in its own dtype."""
        return read_rows(self.tensors[name], start, stop)


def canonical_name(name: str) -> str:
    """The LLaDA-V name of a tensor; a name that follows no known rule stays as it is."""
    if (block := _BLOCK.fullmatch(name)) and block[2] in _BLOCK_NAMES:
        return f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}.weight"
    return _PLAIN_NAMES.get(name, name)


def finite(block: npt.NDArray[Any]) -> bool:
    """Whether a bfloat16, float16 or float32 array is free of NaN and infinity.

    Looks at the bits, since NumPy tests the two 16-bit types value by value.
    """
    magnitude, infinity = _MAGNITUDE[str(block.dtype)]
    bits: npt.NDArray[Any] = block.view(np.uint16 if block.dtype.itemsize == 2 else np.uint32)
    return bits.size == 0 or int(np.bitwise_and(bits, bits.dtype.type(magnitude)).max()) < infinity


def read_json(file: Path) -> dict[str, Any]:
    """One of a checkpoint's JSON files.

    Raises:
        CheckpointError: it is missing, or not a JSON object.
    """
    try:
        value = json.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.parent} holds no {file.name}", cure=_DOWNLOAD) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}", cure=_DOWNLOAD) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is JSON, but no object", cure=_DOWNLOAD)
    return value


def _shards(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint with an index, which must agree with its shards."""
    index = folder / _INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) and f == Path(f).name for f in where.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files of its folder", cure=_DOWNLOAD)
    files = sorted(set(where.values()))
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(files)} shards: {', '.join(missing)}", cure=_DOWNLOAD
        )
    tensors = {}
    faults = []
    for file in files:
        found = read_header(folder / file)
        indexed = {name for name, holder in where.items() if holder == file}
        faults += [f"{name} is not in {file}, where the index places it" for name in sorted(indexed - found.keys())]
        faults += [f"{name} is in {file}, where the index has none" for name in sorted(found.keys() - indexed)]
        tensors.update(found)
    if faults:
        shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise CheckpointError(f"{index} disagrees with its shards in {len(faults)} places: {shown}", cure=_DOWNLOAD)
    return tensors


def _single(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint without an index."""
    if (folder / _SINGLE).exists():
        return read_header(folder / _SINGLE)
    if shards := sorted(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds {len(shards)} .safetensors files, but neither {_SINGLE} nor {_INDEX}", cure=_DOWNLOAD
        )
    if pickles := sorted(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder} holds its weights as {pickles[0].name}; such files can run any code, so lladav never opens them",
            cure="if you trust it, load it with PyTorch and write it again with "
            "`model.save_pretrained(FOLDER, safe_serialization=True)`",
        )
    raise CheckpointError(f"{folder} holds neither {_SINGLE} nor {_INDEX}", cure=_DOWNLOAD)
