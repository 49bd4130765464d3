"""Integers of a quantised bundle beside the checkpoint's weights."""

from __future__ import annotations

import math
from operator import itemgetter

import numpy as np

from lladav.export.checkpoint import Checkpoint
from lladav.export.quantize import QuantizedRows, dequantized
from lladav.export.stored_integers import StoredIntegers
from lladav.export.verification import Row
from lladav.manifest import RoundingName

_MOST_STEPS: dict[RoundingName, float] = {"nearest": 0.5, "gptq": 1.0}
# Of the division of up to 128 steps that finds an integer.
_DIVISION = 128 * 2.0**-22
_BLOCK_ROWS = 1 << 10


def compare_integers(integers: StoredIntegers, checkpoint: Checkpoint) -> list[Row]:
    """A row per graph: how far the worst weight is from what its integer stands for, in steps."""
    worst: dict[str, tuple[float, Row]] = {}
    for linear in integers:
        error = _error(integers.rows(linear), checkpoint, f"{linear}.weight")
        tolerance = _MOST_STEPS[integers.rounding(linear)] + _DIVISION
        row = Row(integers.graph(linear), "integers, in steps", error, tolerance, error <= tolerance, linear)
        worst[row.component] = max(worst.get(row.component, (-1.0, row)), (error / tolerance, row), key=itemgetter(0))
    return [row for _, row in worst.values()]


def _error(rows: QuantizedRows, checkpoint: Checkpoint, name: str) -> float:
    """In steps; infinite where a scale is no finite number that can be divided by."""
    error = 0.0
    for start in range(0, len(rows.codes), _BLOCK_ROWS):
        chosen = slice(start, start + _BLOCK_ROWS)
        part = QuantizedRows(rows.codes[chosen], rows.scales[chosen])
        weights = checkpoint.read_rows(name, start, start + len(part.codes)).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.abs(weights - dequantized(part)).reshape(*part.scales.shape, -1).max(axis=-1)
            steps = off / part.scales.astype(np.float32)
        if not np.isfinite(steps).all():  # which no comparison would find
            return math.inf
        error = max(error, float(steps.max()))
    return error
