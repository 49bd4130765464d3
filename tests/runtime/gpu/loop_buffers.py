"""The loop's records on a device, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.loop_state import LoopMemory, Rules, canvas_dtype, log_dtype


class LoopBuffers:
    """Allocates, uploads and downloads them.

    Attributes:
        memory: where they are.
    """

    def __init__(
        self,
        device: Device,
        rules: Rules,
        capacity: int,
        *,
        sequences: int = 1,
        slots: int = 1,
        mask: int = 0,
        every_row: bool = False,
        restrictions: np.ndarray | None = None,
        restriction_ids: np.ndarray | None = None,
    ) -> None:
        self._device = device
        self._capacity, self._sequences, self._slots = capacity, sequences, slots
        ids = rules.ids() if restriction_ids is None else np.concatenate((rules.ids(), restriction_ids))
        allowed = 0 if restrictions is None else self.put(restrictions)
        self.memory = LoopMemory(
            rules=self.put(rules.record(self.put(ids), allowed, every_row=every_row)),
            canvases=self.put(rules.canvases(capacity, sequences, mask)),
            whole=self.put(np.zeros(1, np.int32)),
            log=device.allocate(slots * sequences * log_dtype(capacity).itemsize),
            capacity=capacity,
            sequences=sequences,
            slots=slots,
        )

    def put(self, array: np.ndarray) -> Address:
        """Memory of its own for an array."""
        address = self._device.allocate(max(1, array.nbytes))
        self._device.upload(address, np.ascontiguousarray(array))
        return address

    def get(self, address: Address, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        out = np.zeros(shape, dtype)
        self._device.download(out, address)
        self._device.synchronize()
        return out

    @property
    def canvases(self) -> np.ndarray:
        """`[sequences]`, as it is now."""
        return self.get(self.memory.canvases, self._sequences, canvas_dtype(self._capacity))

    @canvases.setter
    def canvases(self, canvases: np.ndarray) -> None:
        self._device.upload(self.memory.canvases, canvases)

    @property
    def log(self) -> np.ndarray:
        """`[slots, sequences]`."""
        return self.get(self.memory.log, (self._slots, self._sequences), log_dtype(self._capacity))

    def set_whole(self, whole: bool) -> None:
        self._device.upload(self.memory.whole, np.array([whole], np.int32))
