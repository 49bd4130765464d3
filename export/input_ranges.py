"""How large the inputs of linear layers become, from the statistics of a calibration."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lladav.errors import CalibrationError
from lladav.statistics import Statistics


def input_range(statistics: Statistics, linear: str, factors: npt.NDArray[np.float32] | None = None) -> float:
    """The largest magnitude of a layer's input, whatever the pass and the number of masks.

    Args:
        statistics: of the input as the checkpoint computes it.
        linear: name of the layer.
        factors: `[in]` that it is divided by.

    Raises:
        CalibrationError: the statistics do not know the layer, or its input was always 0 or no number.
    """
    absmax = statistics.of(linear).absmax
    largest = float((absmax if factors is None else absmax / factors).max())
    if not 0 < largest < math.inf:
        raise CalibrationError(
            f"the inputs of {linear} reach {largest:g} in the statistics, which gives no scale",
            cure="calibrate again with more pictures and questions, on a bundle that `lladav verify` passes",
        )
    return largest
