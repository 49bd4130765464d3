"""Uses all of a device, on the real CUDA bindings and a driver of host memory; run by `test_cuda_bindings.py`."""

from __future__ import annotations

import ctypes
import gc
import threading

import numpy as np
import pytest
from cuda.bindings import driver

import lladav.runtime.gpu.cuda_device as module
from lladav.errors import BackendError
from lladav.runtime.gpu.cuda_device import CudaDevice

with pytest.raises(BackendError, match=r"do not load on Played.* CUDA_ERROR_NO_BINARY_FOR_GPU"):
    CudaDevice(b"thin")
device = CudaDevice(b"fat")
assert (device.name, device.compute_capability, device.memory()) == ("Played", "8.7", (3000, 10000))

address, array = device.allocate(16), device.pinned((4,), np.float32)
array[:] = range(4)
device.upload(address, array)
device.copy(address, address + 8, 8)
device.clear(address + 8, 4)
device.download(array, address)
assert array.tolist() == [2, 3, 0, 3]

arguments = [ctypes.c_void_p(address), ctypes.c_int(4), ctypes.c_float(2.5)]
device.launch("fill", (1, 1, 1), (4, 1, 1), arguments, shared=64)
device.download(array, address)
assert array.tolist() == [2.5] * 4

with pytest.raises(BackendError, match="5,000 bytes of GPU memory were refused, 3,000 of 10,000 are free"):
    device.allocate(5000)
with pytest.raises(BackendError, match="there is no kernel none"):
    device.launch("none", (1, 1, 1), (1, 1, 1), [])

array[:] = 1
graph = device.capture(lambda: device.upload(address, array))
device.download(array, address)
assert array.tolist() == [2.5] * 4
graph.launch()
graph.launch()
assert ctypes.CDLL("libcuda.so.1").played_launches() == 2


def fail() -> None:
    raise BackendError("refused", cure="none")


with pytest.raises(BackendError, match="refused"):
    device.capture(fail)
device.upload(address, array)

handles: list[int] = []
repeated = device.repeat(lambda handle: (handles.append(handle), device.clear(address, 16)))
device.download(array, address)
assert (handles, array.tolist()) == ([4321], [2.5] * 4)
repeated.launch()
assert ctypes.CDLL("libcuda.so.1").played_launches() == 3
with pytest.raises(BackendError, match="refused"):
    device.repeat(lambda _: fail())
device.upload(address, array)

first, second = device.event(), device.event()
first.record()
second.record()
second.wait()
assert second.ms_since(first) == 1.5
device.follow(2)
thread = threading.Thread(target=device.synchronize)
thread.start()
thread.join()
device.free(address)
del first, second, graph, repeated
gc.collect()
device.close()

unknown = [name for name in module._CURES if not hasattr(driver.CUresult, name)]
assert not unknown, unknown
