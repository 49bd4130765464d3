"""Arrays that kernels read, put on the device once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.runtime.gpu.device import Device

_ALIGNMENT = 256


class Tables:
    """Arrays on the device, in one piece with scratch behind them.

    Args:
        device: gets them.
        arrays: of any types and shapes.
        scratch: bytes that kernels may write.

    Attributes:
        addresses: of the arrays, in their order; aligned to 256 bytes.
        scratch: address of it.

    Raises:
        BackendError: too little memory.
    """

    def __init__(self, device: Device, arrays: Sequence[npt.NDArray[Any]], scratch: int = 0) -> None:
        self._device = device
        aligned = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
        starts = [sum(aligned[:i]) for i in range(len(arrays) + 1)]
        packed = np.zeros(starts[-1], np.uint8)
        for start, array in zip(starts, arrays, strict=False):
            packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._address = device.allocate(packed.nbytes + scratch)
        device.upload(self._address, packed)
        *self.addresses, self.scratch = (self._address + start for start in starts)

    def free(self) -> None:
        """Gives the memory back; what was enqueued must be done."""
        self._device.free(self._address)
