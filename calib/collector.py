"""Reduces activations to statistics as they come; none is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.errors import CalibrationError
from lladav.reductions import BINS, bin_numbers, block_moments
from lladav.statistics import Statistics
from lladav.statistics_header import Condition

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

# Rows that are reduced at once: with 12,288 channels, 25 MB for each of their copies in float64.
_ROWS = 256


class Collector:
    """Largest values, squares and histograms of activations by condition, and second moments over all of them.

    Args:
        conditions: of each graph.
        arrays: of nothing yet, or of an interrupted calibration; see `Statistics.arrays`. They are
            counted on in place, and do not grow.
    """

    def __init__(self, conditions: Mapping[str, Sequence[Condition]], arrays: Mapping[str, Array]) -> None:
        self._numbers = {
            graph: {condition: number for number, condition in enumerate(own)} for graph, own in conditions.items()
        }
        self._arrays = arrays

    def counting(self, graph: str, *rows: Sequence[Condition]) -> Callable[[str, Floats], None]:
        """What `ObservedGraph.run` takes: counts every activation of one pass.

        It raises `CalibrationError` where a value is not a finite number.

        Args:
            graph: it is a pass of.
            rows: conditions of each row, for every number of rows that activations of the pass have.
        """
        numbers = self._numbers[graph]
        by_count = {len(conditions): np.array([numbers[c] for c in conditions]) for conditions in rows}

        def count(tensor: str, values: Floats) -> None:
            flat = values.reshape(-1, values.shape[-1])
            own = by_count[len(flat)]
            for number in np.unique(own):
                chosen = np.flatnonzero(own == number)
                for start in range(0, len(chosen), _ROWS):
                    self._reduce(tensor, number, np.abs(flat[chosen[start : start + _ROWS]]))
            if (moments := self._arrays.get(f"{tensor}/moments")) is not None:
                moments += block_moments(flat)

        return count

    def _reduce(self, tensor: str, number: int, absolute: Floats) -> None:
        largest, square_sum, histogram = (
            self._arrays[f"{tensor}/{kind}"][number] for kind in ("absmax", "square_sum", "histogram")
        )
        found = absolute.max(axis=0)
        if not np.isfinite(found).all():
            wrong = np.flatnonzero(~np.isfinite(found))
            raise CalibrationError(
                f"the input of {tensor} is not a finite number in {len(wrong)} of {len(found)} channels, "
                f"channel {wrong[0]} first",
                cure="run `lladav verify BUNDLE CHECKPOINT`; export with --dtype fp32 if float16 overflows",
            )
        np.maximum(largest, found, out=largest)
        square_sum += np.square(absolute, dtype=np.float64).sum(axis=0)
        histogram += np.bincount(bin_numbers(absolute).ravel(), minlength=BINS)


def refuse_constant(statistics: Statistics) -> None:
    """Looks whether every input differs from one position to another.

    Raises:
        CalibrationError: one has the same absolute values at all positions.
    """
    for tensor in statistics.header.tensors:
        seen = statistics.of(tensor)
        largest = np.square(seen.absmax, dtype=np.float64)
        if seen.rows > 1 and np.allclose(seen.mean_square, largest, rtol=1e-6, atol=0):
            what = "has the same absolute values" if seen.absmax.any() else "is 0"
            raise CalibrationError(
                f"the input of {tensor} {what} at all {seen.rows:,} positions, so no range can be chosen for it",
                cure="check the checkpoint with `lladav verify`, or calibrate with other pictures and prompts",
            )
