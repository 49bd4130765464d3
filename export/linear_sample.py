"""What the output error of a linear layer in integers is estimated from: some of its rows, and sizes of its inputs.

No activation is needed: channels count as uncorrelated, and rounding an input as noise of a twelfth of a squared
step. A few huge values, as positions with massive activations have them, make steps so large that all other positions
are lost, and the mean output so large that this would not show. So it is the others' error, beside their output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lladav.export.checkpoint import Checkpoint
from lladav.export.gelu import Passed
from lladav.export.graph_form import LinearForm
from lladav.export.quantize import LEVELS, dequantized, round_to_nearest
from lladav.reductions import bin_edges
from lladav.statistics import Activations

Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
_Values = TypeVar("_Values", bound=np.generic)

# The share of an input's values that are not huge.
_ORDINARY = 0.999
# How many standard deviations the largest of thousands of normal values is away from the mean.
_FARTHEST = 4
# Errors are means over rows of a weight, so some from all over it show them: 25 MB at the real size.
_ROWS, _RUNS = 512, 16


class InputSizes(NamedTuple):
    """How large the channels of a layer's input are.

    Attributes:
        power: `[in]` float64 mean squares at ordinary positions.
        largest: `[in]` float32 absolute values that are not exceeded.
    """

    power: Sums
    largest: Floats

    @classmethod
    def of(cls, seen: Activations) -> InputSizes:
        """As a calibration saw them."""
        return cls(ordinary_power(seen), seen.absmax)

    @property
    def deviation(self) -> Sums:
        """`[in]` float64 standard deviations, about: what hardly exceeds its root mean square hardly varies."""
        root = np.sqrt(self.power)
        largest = np.clip(self.largest, root, _FARTHEST * root, dtype=np.float64)
        total = 1 + _FARTHEST**2
        varies: Sums = (_FARTHEST * largest - np.sqrt(total * self.power - np.square(largest))) / total
        return np.where(largest < _FARTHEST * root, varies, root)


@dataclass(frozen=True)
class LinearSample:
    """What the output error of a linear layer is estimated from.

    Attributes:
        weights: `[rows, in]` float32, some of its rows.
        inputs: of the layer.
        form: in which it is rounded.
        passed: what the nonlinearity behind these rows gives, where the error is that of its output.
    """

    weights: Floats
    inputs: InputSizes
    form: LinearForm
    passed: Passed | None = None

    def error(self, factors: Floats) -> float:
        """Mean square error of the output, summed over the rows.

        Args:
            factors: `[in]`, which inputs are divided by and columns multiplied by before both are rounded.
        """
        scaled = self.weights * factors
        power = self.inputs.power / np.square(factors, dtype=np.float64)
        lost = dequantized(round_to_nearest(scaled, self.form, np.float32)) - scaled
        error = power @ self._squares(lost)
        if self.form.input_range is not None:
            step = float((self.inputs.largest / factors).max()) / LEVELS["int8"][1]
            # What is smaller than half a step is lost, and no more than that.
            error += np.minimum(step**2 / 12, power) @ self._squares(scaled)
        return float(error)

    def relative_error(self, factors: Floats) -> float:
        """Root of `error` over the root mean square of the output; infinite where that is 0 and the error is not."""
        output = self.passed.power.sum() if self.passed else self.inputs.power @ self._squares(self.weights)
        error = self.error(factors)
        if not output:
            return math.inf if error else 0.0
        return float(np.sqrt(error / output))

    @property
    def magnitudes(self) -> Floats:
        """`[in]`: by what its input's channels are told large from small."""
        if self.form.input_range is not None:
            return self.inputs.largest
        return np.sqrt(self.inputs.power).astype(np.float32)

    def _squares(self, weights: Floats) -> Floats:
        """Summed over the rows `[in]`, each counting as much as shows of it."""
        squares = np.square(weights)
        summed: Floats = squares.sum(axis=0) if self.passed is None else self.passed.slope.astype(np.float32) @ squares
        return summed


def ordinary_power(seen: Activations) -> Sums:
    """Mean squares `[in]` without an input's largest values.

    A histogram says how much less they are in all; this is taken from the largest channels.
    """
    counts, squares = seen.histogram, np.square(bin_edges(), dtype=np.float64)
    ordinary = np.diff(np.minimum(np.cumsum(counts), _ORDINARY * counts.sum()), prepend=0)
    share = float(ordinary @ squares / (counts @ squares))
    ordered = np.sort(seen.mean_square)
    # What all channels have together if none has more than this one.
    together = np.cumsum(ordered) + ordered * np.arange(len(ordered))[::-1]
    most = np.interp(share * ordered.sum(), np.append(0, together), np.append(0, ordered))
    power: Sums = np.minimum(seen.mean_square, most)
    return power


def sampled_rows(checkpoint: Checkpoint, tensor: str) -> Floats:
    """Some rows of a weight, in runs from all over it; all where it is small."""
    runs = _runs(checkpoint.tensors[tensor].shape[0])
    return np.concatenate([checkpoint.read_rows(tensor, run.start, run.stop) for run in runs]).astype(np.float32)


def sampled(values: npt.NDArray[_Values]) -> npt.NDArray[_Values]:
    """The values of the rows that `sampled_rows` reads, of those of all rows."""
    return np.concatenate([values[run] for run in _runs(len(values))])


def _runs(count: int) -> list[slice]:
    if count <= _ROWS:
        return [slice(0, count)]
    length = _ROWS // _RUNS
    return [slice(start, start + length) for start in np.linspace(0, count - length, _RUNS).astype(int).tolist()]
