"""Reads .safetensors files piece by piece, and trusts nothing that they say.

Blocks are read with `preadv` into arrays of their own: memory stays bounded by the block,
and a file that changes while it is read gives an error instead of a bus error, which a
memory map would.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lladav.errors import CheckpointError

FloatType = Literal["bfloat16", "float16", "float32"]

NUMPY_TYPES: Mapping[FloatType, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_STORED_TYPES: Mapping[str, FloatType] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

# The format's own limit; a longer header is a damaged length field.
_MAX_HEADER_BYTES = 100_000_000
_FETCH_AGAIN = "fetch the file again, and compare its size and sha256 with those its publisher lists"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: as written in the file.
        offset: of the first value, from the start of the file.
    """

    name: str
    dtype: FloatType
    shape: tuple[int, ...]
    file: Path
    offset: int
    bytes: int

    @property
    def rows(self) -> int:
        """Length of the first axis; a tensor without axes counts as one row."""
        return self.shape[0] if self.shape else 1


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Finds all tensors of a file, by name in order of their offsets.

    Raises:
        CheckpointError: the file cannot be opened, is cut short, or its header contradicts
            itself or the size of the file.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            _check_length(file, prefix, length, size)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}", cure="check the path and its permissions") from error
    if len(text) < length:
        raise _damaged(file, f"its header of {length:,} bytes ends after {len(text):,}")
    entries = _parse(file, text)
    data = 8 + length
    tensors = [_tensor(file, name, entry, data) for name, entry in entries.items() if name != "__metadata__"]
    tensors.sort(key=lambda t: (t.offset, t.bytes))
    _check_layout(file, tensors, data, size)
    return {t.name: t for t in tensors}


def read_rows(info: TensorInfo, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows `start` to `stop` of a tensor: `[stop - start, *shape[1:]]` in its own dtype.

    Raises:
        CheckpointError: the file has become shorter or unreadable.
        IndexError: the tensor has no such rows.
    """
    if not 0 <= start <= stop <= info.rows:
        raise IndexError(f"{info.name} has {info.rows} rows, so none from {start} to {stop}")
    block = np.empty((stop - start, *info.shape[1:]), NUMPY_TYPES[info.dtype])
    row_bytes = info.bytes // max(info.rows, 1)
    rest = block.reshape(-1).view(np.uint8).data
    offset = info.offset + start * row_bytes
    try:
        with info.file.open("rb", buffering=0) as stream:
            # One call returns at most 2 GiB.
            while rest and (got := os.preadv(stream.fileno(), [rest], offset)):
                rest, offset = rest[got:], offset + got
    except OSError as error:
        raise CheckpointError(f"{info.file} cannot be read: {error}", cure="check the disk it lies on") from error
    if rest:
        raise _damaged(info.file, f"it ends {len(rest):,} bytes before the end of rows {start}-{stop} of {info.name}")
    return block


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged: {what}", cure=_FETCH_AGAIN)


def _check_length(file: Path, prefix: bytes, length: int, size: int) -> None:
    if prefix == b"version ":
        raise CheckpointError(
            f"{file} is a Git LFS pointer of {size:,} bytes, not the weights",
            cure="run `git lfs pull` in the checkpoint, or download it with `hf download`",
        )
    if len(prefix) < 8:
        raise _damaged(file, f"it has {size:,} bytes, fewer than the 8 that every .safetensors file starts with")
    if length > _MAX_HEADER_BYTES:
        raise _damaged(file, f"it announces a header of {length:,} bytes; the format allows {_MAX_HEADER_BYTES:,}")
    if length > size - 8:
        raise _damaged(file, f"it announces a header of {length:,} bytes, but has {size:,} bytes in all")


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a name occurs twice")
        return values

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is JSON, but no object")
    return header


def _tensor(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """One header entry, checked by itself; `data` is where the values begin."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"tensor {name} is not described by dtype, shape and data_offsets")
    stored, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _STORED_TYPES.get(stored) if isinstance(stored, str) else None
    if dtype is None:
        raise CheckpointError(
            f"tensor {name} in {file} has dtype {stored!r}; lladav reads {', '.join(_STORED_TYPES)}",
            cure="use the checkpoint as published: neither quantized nor converted to another type",
        )
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise _damaged(file, f"tensor {name} has shape {shape!r} and data_offsets {offsets!r}")
    start, stop = offsets
    expected = math.prod(shape) * NUMPY_TYPES[dtype].itemsize
    if stop - start != expected:
        raise _damaged(
            file, f"tensor {name} of shape {shape} in {stored} needs {expected:,} bytes, but has {stop - start:,}"
        )
    return TensorInfo(name, dtype, tuple(shape), file, data + start, expected)


def _is_sizes(value: Any) -> bool:
    # The bounds keep products of hostile sizes small enough to compute and to print.
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _check_layout(file: Path, tensors: list[TensorInfo], data: int, size: int) -> None:
    """Values must follow one another without gap or overlap, up to the last byte of the file."""
    end = data
    for t in tensors:
        if t.offset + t.bytes > size:
            raise _damaged(file, f"tensor {t.name} ends at byte {t.offset + t.bytes:,}, but the file has {size:,}")
        if t.offset != end:
            kind = "overlaps the tensor before it" if t.offset < end else "leaves a gap after the tensor before it"
            raise _damaged(file, f"tensor {t.name} starts at byte {t.offset:,} instead of {end:,}: it {kind}")
        end += t.bytes
    if end != size:
        raise _damaged(file, f"{size - end:,} bytes after its last tensor belong to none")
