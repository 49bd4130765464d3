"""Weights in integers that make up for one another's rounding (GPTQ, arXiv 2210.17323).

One column after another is rounded, and what it is off is carried to the columns that are not rounded yet, as
far as the second moments of the inputs say that these can make up for it. Three things are not the paper's: moments
are known in blocks of inputs, so nothing is carried from one block to another, and all are done side by side;
scales stay those of rounding to nearest; and every integer is one of the two next to its weight. That costs
nothing on inputs that were not seen, and leaves something that a bundle can be held to (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lladav.export.graph_form import LinearForm
from lladav.export.quantize import LEVELS, Codes, Floats, QuantizedRows, round_to_nearest

# Of the mean square, added to every input's: inputs that were not seen are not quite like those that were.
_DAMPING = 0.05
# Rows that are rounded together, and columns after which errors are carried further as one product.
_ROWS, _COLUMNS = 128, 16


@dataclass(frozen=True)
class Compensation:
    """How far each column of a weight takes over the errors of those before it.

    Attributes:
        order: `[in]` int64 columns as they are rounded: by block, those of the largest inputs first.
        carried: `[blocks, b, b]` float32; above the diagonal the share of a row's error that a column takes over.
    """

    order: npt.NDArray[np.int64]
    carried: Floats

    @classmethod
    def of(cls, moments: Floats, factors: Floats | None = None) -> Compensation:
        """For inputs with these second moments.

        Args:
            moments: `[blocks, b, b]` float32 or float64, symmetric, sums or means over positions.
            factors: `[in]` float32, with `in = blocks * b`, by which inputs were divided since.
        """
        blocks, size, _ = moments.shape
        hessian = moments.astype(np.float64)
        if factors is not None:
            by_block = factors.astype(np.float64).reshape(blocks, size)
            hessian /= by_block[:, :, None] * by_block[:, None, :]
        power = np.einsum("nii->ni", hessian)
        mean = power.mean(axis=1, keepdims=True)
        power += np.where(mean > 0, _DAMPING * mean, 1)  # 1 where a block was never seen
        order = np.argsort(-power, axis=1, kind="stable")
        hessian = np.take_along_axis(hessian, order[:, :, None], axis=1)
        hessian = np.take_along_axis(hessian, order[:, None, :], axis=2)
        upper = np.linalg.cholesky(np.linalg.inv(hessian)).transpose(0, 2, 1)
        carried = (upper / np.einsum("nii->ni", upper)[:, :, None]).astype(np.float32)
        return cls((order + size * np.arange(blocks)[:, None]).ravel(), carried)

    def round(self, rows: Floats, form: LinearForm, dtype: npt.DTypeLike) -> QuantizedRows:
        """Codes whose values are at most a step away from `rows`, with the scales of `round_to_nearest`.

        Args:
            rows: `[rows, in]` float32 finite weights, as they multiply what the moments are of.
            form: `block` divides `in`.
            dtype: of the scales.

        Returns:
            int8 codes `[rows, in]` and scales `[rows, in / block]`.
        """
        nearest = round_to_nearest(rows, form, dtype)
        codes = np.empty_like(nearest.codes)
        for start in range(0, len(rows), _ROWS):
            chosen = slice(start, start + _ROWS)
            codes[chosen] = self._codes(rows[chosen], nearest.scales[chosen], form)
        return QuantizedRows(codes, nearest.scales)

    def _codes(self, rows: Floats, scales: npt.NDArray[np.generic], form: LinearForm) -> Codes:
        lowest, highest = LEVELS[form.weights]
        blocks, size, _ = self.carried.shape
        steps = np.repeat(scales.astype(np.float32), rows.shape[1] // scales.shape[1], axis=1)
        # By column, `[blocks, b, rows]`; where a column is done, values become what they are off.
        values, steps = (np.ascontiguousarray(of.T[self.order]).reshape(blocks, size, -1) for of in (rows, steps))
        below = np.clip(np.floor(values / steps), lowest, highest - 1)
        middle = (below + np.float32(0.5)) * steps
        above = np.empty(values.shape, np.bool_)
        for start in range(0, size, _COLUMNS):
            stop = min(start + _COLUMNS, size)
            for column in range(start, stop):
                value = values[:, column]
                before = self.carried[:, None, start:column, column]
                value -= (before @ values[:, start:column])[:, 0]
                np.greater(value, middle[:, column], out=above[:, column])
                value -= (below[:, column] + above[:, column]) * steps[:, column]
            after = self.carried[:, start:stop, stop:].transpose(0, 2, 1)
            values[:, stop:] -= after @ values[:, start:stop]
        found = np.empty((rows.shape[1], len(rows)), np.int8)
        found[self.order] = (below + above).reshape(found.shape)
        return found.T
