"""Arrays that lie in a GPU's memory as one."""

from __future__ import annotations

import numpy as np
import pytest
from host_device import HostDevice

from lladav.errors import BackendError
from lladav.runtime.gpu.tables import Tables


def test_arrays_lie_aligned_one_after_the_other_with_scratch_behind() -> None:
    device = HostDevice()
    arrays = [
        np.arange(5, dtype=np.float32),
        np.arange(200, dtype=np.int32).reshape(2, 100)[:, ::2],
        np.ones(1, np.uint8),
    ]
    tables = Tables(device, arrays, scratch=10)
    assert (device.allocations, device.uploads) == (1, 1)
    for address, array in zip(tables.addresses, arrays, strict=True):
        assert address % 256 == 0
        found = np.empty(array.shape, array.dtype)
        device.download(found, address)
        np.testing.assert_array_equal(found, array)
    device.clear(tables.scratch, 10)
    device.check()
    tables.free()
    assert device.memory()[0] == device.memory()[1]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BackendError):
        Tables(HostDevice(total=100), [np.zeros(3)], scratch=1000)
