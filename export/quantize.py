"""Weights in integers: round to nearest, with scales that the graph's narrow types can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lladav.export.graph_form import LinearForm

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

LEVELS = {"int8": (-127, 127), "int4": (-8, 7)}
"""Smallest and largest integer in use; int8 is symmetric, as the products of engines want it."""


class QuantizedRows(NamedTuple):
    """Rows of a weight; each value stands for its code times its scale.

    Attributes:
        codes: int8 `[rows, in]`.
        scales: `[rows, in / block]`, of the type that the graph holds them in.
    """

    codes: Codes
    scales: npt.NDArray[np.generic]


Rounding = Callable[[Floats, LinearForm, npt.DTypeLike], QuantizedRows]
"""A way from weights to integers: takes rows, their form and the type of scales."""


def round_to_nearest(rows: Floats, form: LinearForm, dtype: npt.DTypeLike) -> QuantizedRows:
    """Codes whose values are at most half a step away from `rows`.

    Args:
        rows: `[rows, in]` finite weights.
        form: `block` divides `in`.
        dtype: of the scales.
    """
    lowest, highest = LEVELS[form.weights]
    blocks = rows.reshape(len(rows), -1, form.block or rows.shape[1])
    largest, smallest = blocks.max(-1), blocks.min(-1)
    scales = scales_for(np.maximum(largest / highest, smallest / lowest), dtype)
    # Among numbers too small to be normal a quotient may have been rounded down by much of itself.
    steps = scales.astype(np.float32)
    beyond = (np.rint(largest / steps) > highest) | (np.rint(smallest / steps) < lowest)
    scales.view(np.dtype(f"u{scales.dtype.itemsize}"))[beyond] += 1
    codes = np.rint(blocks / scales.astype(np.float32)[..., None])
    return QuantizedRows(codes.astype(np.int8).reshape(rows.shape), scales)


def dequantized(rows: QuantizedRows) -> Floats:
    """The values `[rows, in]` that codes and scales stand for."""
    blocks = rows.codes.reshape(*rows.scales.shape, -1).astype(np.float32)
    values: Floats = (blocks * rows.scales.astype(np.float32)[..., None]).reshape(rows.codes.shape)
    return values


def scales_for(steps: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    """Steps as a float type holds them: rounded up, so that no code leaves its range; 1 where a step is 0."""
    wanted = np.asarray(steps, np.float32)
    stored = wanted.astype(dtype)
    # Of positive numbers the next larger one has the next larger pattern.
    bits = stored.view(np.dtype(f"u{stored.dtype.itemsize}"))
    bits += stored.astype(np.float32) < wanted
    stored[wanted == 0] = 1
    return stored


def packed(codes: Codes) -> npt.NDArray[np.uint8]:
    """4-bit codes as ONNX stores them: two in a byte, the first in the lower half."""
    first, second = np.append(codes, np.zeros(codes.size % 2, np.int8)).view(np.uint8).reshape(-1, 2).T
    both: npt.NDArray[np.uint8] = np.bitwise_or(first & np.uint8(0xF), second << np.uint8(4), dtype=np.uint8)
    return both


def unpacked(stored: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    """What `packed` was made from."""
    upper = np.stack((stored << np.uint8(4), stored & np.uint8(0xF0)), axis=-1)
    codes: Codes = np.right_shift(upper.view(np.int8), np.int8(4)).ravel()[: int(np.prod(shape))].reshape(shape)
    return codes
