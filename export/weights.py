"""Weights streamed from a checkpoint's shards into a bundle's files, never all in memory."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import ml_dtypes
import numpy as np

from lladav.errors import CheckpointError, ExportError
from lladav.export.checkpoint import Checkpoint, finite
from lladav.export.gptq import Compensation
from lladav.export.migration import Migration
from lladav.export.quantize import Rounding, packed, round_to_nearest
from lladav.export.stored_weight import StoredType, Weight
from lladav.manifest import FileEntry, TensorType
from lladav.statistics import Statistics

NUMPY_TYPES: dict[StoredType, np.dtype[np.generic]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
BLOCK_BYTES = 1 << 25


class WeightStream:
    """Reads each tensor once, checks, converts and fingerprints it on the way.

    Args:
        checkpoint: the source.
        progress: called with the number of source bytes read since the last call.
        migration: changes tensors on the way, after their fingerprint was taken.
        statistics: by which weights in 4 bits are rounded; None rounds them to nearest, as all others.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        progress: Callable[[int], None],
        migration: Migration | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._progress = progress
        self._migration = migration or Migration()
        self._statistics = statistics
        self._digests: dict[str, str] = {}

    def fingerprint(self) -> str:
        """sha256 over name, type, shape and values of every tensor read so far, in name order."""
        total = hashlib.sha256()
        for name in sorted(self._digests):
            info = self._checkpoint.tensors[name]
            total.update(f"{name} {info.dtype} {list(info.shape)} {self._digests[name]}\n".encode())
        return total.hexdigest()

    def blocks(self, source: str, rows: int) -> Iterator[np.ndarray]:
        """The first `rows` rows of a tensor in blocks, of its own type unless they were changed.

        Raises:
            CheckpointError: a value is not finite.
        """
        info = self._checkpoint.tensors[source]
        count = info.shape[0]
        step = max(1, BLOCK_BYTES * count // max(info.bytes, 1))
        digest = hashlib.sha256()
        for start in range(0, count, step):
            block = self._checkpoint.read_rows(source, start, min(start + step, count))
            self._progress(block.nbytes)
            digest.update(np.ascontiguousarray(block).view(np.uint8).data)
            if not finite(block):
                raise CheckpointError(
                    f"tensor {source} holds NaN or infinity between rows {start} and {start + len(block) - 1}",
                    cure="fetch the shard again; if it stays, the checkpoint itself is broken",
                )
            if start < rows:
                yield self._migration.applied(source, block[: rows - start], start)
        self._digests[source] = digest.hexdigest()

    def converted(self, source: str, rows: int, dtype: StoredType) -> Iterator[np.ndarray]:
        """As `blocks`, converted.

        Raises:
            ExportError: a value does not fit `dtype`.
        """
        kind = NUMPY_TYPES[dtype]
        for block in self.blocks(source, rows):
            if block.dtype == kind:
                yield block
                continue
            wide = block.astype(np.float32)
            with np.errstate(over="ignore"):
                narrow = wide.astype(kind)
            if not finite(narrow):
                raise _does_not_fit(source, wide, dtype)
            yield narrow

    def row(self, source: str, index: int, dtype: TensorType) -> np.ndarray:
        """One row as it will be stored, widened to float32 `[D]`; it counts as no progress."""
        row = self._checkpoint.read_rows(source, index, index + 1)[0]
        stored: np.ndarray = row.astype(np.float32).astype(NUMPY_TYPES[dtype]).astype(np.float32)
        return stored

    def write(self, weights: Iterable[Weight], path: Path) -> FileEntry:
        """Writes the weights at their offsets into one file."""
        with HashedFile(path) as file:
            for _, group in groupby(weights, key=lambda weight: weight.source):
                parts = tuple(group)
                arrays = self._quantized(parts) if parts[0].form else self._plain(parts)
                for part, array in zip(parts, arrays, strict=True):
                    file.pad_to(part.offset)
                    file.write(array)
        return file.entry

    def _plain(self, parts: tuple[Weight, ...]) -> Iterator[np.ndarray]:
        """Parts of a tensor as they lie in the file."""
        blocks = self.converted(parts[0].source, parts[-1].stop, parts[0].dtype)
        rows = _Rows(blocks)
        for part in parts:
            array = np.empty(part.shape, NUMPY_TYPES[part.dtype])
            by_row, done = _by_row(part, array), 0
            for block in rows.take(part.stop - part.start):
                by_row[done : done + len(block)] = block
                done += len(block)
            yield array
        deque(blocks, maxlen=0)  # to the end of the tensor, for its fingerprint

    def _quantized(self, parts: tuple[Weight, ...]) -> Iterator[np.ndarray]:
        """Codes and scales of parts of a tensor as they lie in the file, in turn.

        Raises:
            ExportError: a scale does not fit its type.
        """
        blocks = self.blocks(parts[0].source, parts[-1].stop)
        rows = _Rows(blocks)
        rounded = self._rounding(parts[0])
        for codes, scales in zip(parts[::2], parts[1::2], strict=True):
            assert codes.form is not None
            integers = np.empty(codes.shape, np.int8)
            steps = np.empty(scales.shape, NUMPY_TYPES[scales.dtype])
            integer_rows, step_rows, done = _by_row(codes, integers), _by_row(scales, steps), 0
            for block in rows.take(codes.stop - codes.start):
                wide = block.astype(np.float32)
                with np.errstate(over="ignore", invalid="ignore"):
                    found = rounded(wide, codes.form, steps.dtype)
                if not finite(found.scales):
                    raise _does_not_fit(codes.source, wide, scales.dtype)
                end = done + len(block)
                integer_rows[done:end] = found.codes
                step_rows[done:end] = found.scales.reshape(len(block), *step_rows.shape[1:])
                done = end
            yield packed(integers) if codes.dtype == "int4" else integers
            yield steps
        deque(blocks, maxlen=0)  # to the end of the tensor, for its fingerprint

    def _rounding(self, weight: Weight) -> Rounding:
        """How the integers of a tensor are chosen."""
        if self._statistics is None or weight.dtype != "int4":
            return round_to_nearest
        linear = weight.source.removesuffix(".weight")
        return Compensation.of(self._statistics.moments(linear), self._migration.linears.get(linear)).round


def _does_not_fit(source: str, values: np.ndarray, dtype: StoredType) -> ExportError:
    return ExportError(
        f"tensor {source} reaches {np.abs(values).max():.4g}, which does not fit {dtype}",
        cure="export with --dtype bf16 or --dtype fp32",
    )


class _Rows:
    """Hands out rows in the numbers that are asked for, from blocks of any number."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self._left = np.empty(0)

    def take(self, count: int) -> Iterator[np.ndarray]:
        """The next `count` rows."""
        while count:
            if not len(self._left):
                self._left = next(self._blocks)
            block, self._left = self._left[:count], self._left[count:]
            count -= len(block)
            yield block


def _by_row(weight: Weight, array: np.ndarray) -> np.ndarray:
    """A view whose first dimension is the checkpoint's rows."""
    return array.T if weight.transposed else array


class HashedFile:
    """A new file whose sha256 is taken while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._stream = path.open("xb")

    def write(self, data: np.ndarray | bytes) -> None:
        raw = (
            memoryview(data) if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        )
        for start in range(0, len(raw), BLOCK_BYTES):
            piece = raw[start : start + BLOCK_BYTES]
            self._stream.write(piece)
            self._digest.update(piece)
        self._size += len(raw)

    def pad_to(self, offset: int) -> None:
        self.write(bytes(offset - self._size))

    @property
    def entry(self) -> FileEntry:
        return FileEntry(path=self._path.name, bytes=self._size, sha256=self._digest.hexdigest())

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
