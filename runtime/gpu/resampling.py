"""Pillow's bicubic resampling of 8-bit pictures as tables that a kernel can follow to the byte.

Pillow computes the weights of every target pixel in double precision, rounds them to 22 binary
places, and sums in integers; so whoever has its weights gets its pixels. They depend on two
lengths alone. Source: `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's
`src/libImaging/Resample.c`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lladav.runtime.images import Pixels

Integers = npt.NDArray[np.int32]
_Doubles = npt.NDArray[np.float64]

WEIGHT_BITS = 22
"""Binary places of a weight: 32 less 8 of a pixel and 2 for what overshoots."""

_SUPPORT = 2.0


@dataclass(frozen=True)
class Axis:
    """How one axis of a picture is resampled: target i is a weighted sum of neighbouring sources.

    Attributes:
        source: pixels before.
        target: pixels after.
        first: int32 `[target]`, the first source pixel of each sum.
        weights: int32 `[taps, target]`, fixed-point; 0 where a sum is shorter.
    """

    source: int
    target: int
    first: Integers
    weights: Integers


def bicubic(source: int, target: int) -> Axis:
    """The axis from `source` to `target` pixels; wider than the filter where it shrinks (antialiased)."""
    scale = source / target
    widening = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    begin = np.maximum((centre - _SUPPORT * widening + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + _SUPPORT * widening + 0.5).astype(np.int64), source)
    taps = int((end - begin).max())
    # Shifted so that all sums are equally long and none leaves the picture.
    first = np.minimum(begin, source - taps)
    pixel = first + np.arange(taps)[:, None]
    weights = _cubic((pixel - centre + 0.5) * (1.0 / widening))
    weights[(pixel < begin) | (pixel >= end)] = 0
    # One after the other, as Pillow adds them; numpy's own sum would round differently.
    weights /= np.cumsum(weights, axis=0)[-1]
    fixed = np.trunc(weights * (1 << WEIGHT_BITS) + np.copysign(0.5, weights))
    return Axis(source, target, first.astype(np.int32), fixed.astype(np.int32))


def _cubic(distance: _Doubles) -> _Doubles:
    """Keys' kernel with a = -0.5, evaluated in Pillow's order."""
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0))


def resample(pixels: Pixels, axis: Axis) -> Pixels:
    """Carries out an axis on the host: uint8 `[source, ...]` to `[target, ...]`. The kernels' reference."""
    sums = np.full((axis.target, *pixels.shape[1:]), 1 << (WEIGHT_BITS - 1), np.int32)
    for offset, weights in enumerate(axis.weights):
        sums += pixels[axis.first + offset] * weights.reshape(-1, *[1] * (pixels.ndim - 1))
    return (sums >> WEIGHT_BITS).clip(0, 255).astype(np.uint8)
