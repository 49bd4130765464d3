"""The anyres merge on the GPU: feature rows to rows of the prompt without the host."""

from __future__ import annotations

import numpy as np

from lladav.runtime.gpu import frame_kernels
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.tables import Tables
from lladav.runtime.merge import Floats, MergePlan


class DeviceMerge:
    """A merge plan on the device, for all pictures of one size.

    Args:
        device: that has the features.
        plan: what to do.
        newline: `[D]`, what ends a row of a picture.

    Attributes:
        rows: of the prompt that it makes.

    Raises:
        BackendError: too little memory.
    """

    def __init__(self, device: Device, plan: MergePlan, newline: Floats) -> None:
        self.rows = len(plan)
        self._device = device
        self._plan = plan
        self._width = len(newline)
        self._tables = Tables(device, [plan.indices.astype(np.int32), plan.weights, newline])

    def enqueue(self, features: Address, out: Address) -> None:
        """Enqueues `merge.apply`; the same numbers come out where the features are finite.

        Args:
            features: float32 `[T, N, D]`, connector output of all crops.
            out: float32 `[rows, D]`.
        """
        indices, weights, newline = self._tables.addresses
        taps = self._plan.weights.shape[1]
        sizes = self.rows, taps, self._plan.feature_rows, self._width
        frame_kernels.merge(self._device, features, newline, indices, weights, *sizes, out)

    def free(self) -> None:
        """Gives its memory back; what was enqueued must be done."""
        self._tables.free()
