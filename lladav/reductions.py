"""What activations are reduced to: absolute values in bins, and second moments in blocks of channels.

In the core, since whoever counts and whoever reads counts have to use the same bins and blocks (docs/calibration.md).
"""

from __future__ import annotations

from math import gcd

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

# A bin is what a float32's exponent and the highest bits of its fraction have in common.
_FRACTION_BITS = 3
_SHIFT = np.uint32(23 - _FRACTION_BITS)
_EXPONENTS = (-24, 20)
_FIRST, _LAST = ((127 + exponent) << _FRACTION_BITS for exponent in _EXPONENTS)
BINS = 1 + _LAST - _FIRST
"""Of a histogram of absolute values: 8 per octave from 2**-24 to 2**20, after one for all that is smaller."""
# Channels of a block at most.
_MOMENT_BLOCK = 256


def bin_numbers(absolute: Floats) -> Counts:
    """The bin of every value of `absolute`, which is not negative."""
    return np.clip((absolute.view(np.uint32) >> _SHIFT).astype(np.int64) - (_FIRST - 1), 0, BINS - 1)


def bin_edges() -> Floats:
    """Upper edges of the bins `[BINS]` float32; the last bin also has what is larger."""
    return (np.arange(_FIRST, _LAST + 1, dtype=np.uint32) << _SHIFT).view(np.float32)


def block_moments(rows: Floats) -> Floats:
    """Sums of products of channels `[channels / b, b, b]` over `rows` `[n, channels]`; see `Statistics.moments`."""
    blocks = rows.reshape(len(rows), *moment_shape(rows.shape[1])[:2]).transpose(1, 0, 2)
    sums: Floats = blocks.transpose(0, 2, 1) @ blocks
    return sums


def moment_shape(channels: int) -> tuple[int, int, int]:
    """Of the moments `[channels / b, b, b]` of so many channels."""
    block = gcd(channels, _MOMENT_BLOCK)
    return channels // block, block, block
