"""Integers of a quantised bundle beside the checkpoint's weights."""

from __future__ import annotations

import numpy as np

from lladav.export.checkpoint import Checkpoint
from lladav.export.quantize import QuantizedRows, dequantized
from lladav.export.stored_integers import StoredIntegers
from lladav.export.verification import Row

# Rounding to the nearest integer, and of the division of up to 128 steps that finds it.
_HALF_A_STEP = 0.5 + 128 * 2.0**-22
_BLOCK_ROWS = 1 << 10


def compare_integers(integers: StoredIntegers, checkpoint: Checkpoint) -> list[Row]:
    """A row per graph: how far the worst weight is from what its integer stands for, in steps."""
    worst: dict[str, tuple[float, str]] = {}
    for linear in integers:
        graph, error = integers.graph(linear), _error(integers.rows(linear), checkpoint, f"{linear}.weight")
        worst[graph] = max(worst.get(graph, (-1.0, "")), (error, linear))
    return [
        Row(graph, "integers, in steps", error, _HALF_A_STEP, error <= _HALF_A_STEP, linear)
        for graph, (error, linear) in worst.items()
    ]


def _error(rows: QuantizedRows, checkpoint: Checkpoint, name: str) -> float:
    error = 0.0
    for start in range(0, len(rows.codes), _BLOCK_ROWS):
        chosen = slice(start, start + _BLOCK_ROWS)
        part = QuantizedRows(rows.codes[chosen], rows.scales[chosen])
        weights = checkpoint.read_rows(name, start, start + len(part.codes)).astype(np.float32)
        off = np.abs(weights - dequantized(part)).reshape(*part.scales.shape, -1).max(axis=-1)
        error = max(error, float((off / part.scales.astype(np.float32)).max()))
    return error
