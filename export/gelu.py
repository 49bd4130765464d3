"""GELU of normally distributed values: how large it lets them be, and how much of their errors it lets through.

Both are means over a normal distribution, summed on an even grid. The tanh form stands for both forms of GELU,
which differ by less than 0.0005.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.float64]

_NODES = np.linspace(-6, 6, 97)
_DENSITY = np.exp(-np.square(_NODES) / 2)
_SHARES = _DENSITY / _DENSITY.sum()
_INNER, _CUBIC = np.sqrt(2 / np.pi), 0.044715
_HALVINGS = 24


class Passed(NamedTuple):
    """What a nonlinearity makes of each feature.

    Attributes:
        power: `[features]` float64 mean squares of what it gives.
        slope: `[features]` float64 mean squares of its slope, by which squares of small errors grow.
    """

    power: Sums
    slope: Sums


def through_gelu(mean: npt.NDArray[np.floating], deviation: npt.NDArray[np.floating]) -> Passed:
    """Of normal values.

    Args:
        mean: `[features]`.
        deviation: `[features]` standard deviations.
    """
    x = mean[:, None] + deviation[:, None] * _NODES
    tanh = np.tanh(_INNER * (x + _CUBIC * x**3))
    slope = (1 + tanh) / 2 + x * (1 - tanh**2) * _INNER * (1 + 3 * _CUBIC * x**2) / 2
    return Passed(np.square(x * (1 + tanh) / 2) @ _SHARES, np.square(slope) @ _SHARES)


def mean_before_gelu(deviation: npt.NDArray[np.floating], power: Sums) -> Sums:
    """Means of normal values `[features]` that leave GELU with this power.

    Args:
        deviation: `[features]` of the values.
        power: `[features]` mean squares behind GELU.
    """
    lowest, highest = -8 * deviation - 8, np.sqrt(power) + 1
    for _ in range(_HALVINGS):
        middle = (lowest + highest) / 2
        too_large = through_gelu(middle, deviation).power > power
        lowest, highest = np.where(too_large, lowest, middle), np.where(too_large, middle, highest)
    mean: Sums = (lowest + highest) / 2
    return mean
