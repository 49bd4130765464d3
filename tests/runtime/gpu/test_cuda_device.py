"""The device on a fake driver that can fail at any call; `test_cuda_bindings.py` has the real bindings."""

from __future__ import annotations

import ctypes
import enum
import gc
import itertools
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lladav.runtime.gpu.cuda_device as module
from lladav.errors import BackendError
from lladav.machine import Memory
from lladav.runtime.gpu.cuda_device import CudaDevice

KERNELS = b"a fat binary"
CUresult = enum.IntEnum(
    "CUresult",
    {
        "CUDA_SUCCESS": 0,
        "CUDA_ERROR_OUT_OF_MEMORY": 2,
        "CUDA_ERROR_NO_DEVICE": 100,
        "CUDA_ERROR_INVALID_IMAGE": 200,
        "CUDA_ERROR_NO_BINARY_FOR_GPU": 209,
        "CUDA_ERROR_INVALID_HANDLE": 400,
        "CUDA_ERROR_NOT_FOUND": 500,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901,
    },
)
STREAM, GRAPH, EXECUTABLE, CONTEXT, MODULE = 77, 88, 99, 11, 55
KERNEL_NAMES = [b"lladav_evaluate", b"lladav_commit"]


class FakeDriver:
    """Calls that move host memory at once.

    Attributes:
        calls: names and arguments of all calls.
        failing: what a call shall return instead of success, by its name.
        attributes: of the device.
    """

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_INTEGRATED=18,
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failing: dict[str, CUresult] = {}
        self.attributes = {75: 8, 76: 7, 18: 0}
        self._memory: dict[int, Any] = {}
        self._events = itertools.count(1000)
        self._values: dict[str, Callable[..., tuple[Any, ...]]] = {
            "cuDeviceGetCount": lambda: (1,),
            "cuDeviceGet": lambda ordinal: (ordinal,),
            "cuDeviceGetName": lambda _size, _device: (b"Orin\0\0\0",),
            "cuDeviceGetAttribute": lambda attribute, _device: (self.attributes[attribute],),
            "cuDevicePrimaryCtxRetain": lambda _device: (CONTEXT,),
            "cuCtxGetStreamPriorityRange": lambda: (0, -5),
            "cuStreamCreateWithPriority": lambda _flags, _priority: (STREAM,),
            "cuModuleLoadData": self._load,
            "cuModuleGetFunction": lambda _module, name: (KERNEL_NAMES.index(name),),
            "cuMemGetInfo": lambda: (3_000, 10_000),
            "cuMemAlloc": self._allocate,
            "cuMemHostAlloc": lambda size, _flags: self._allocate(size),
            "cuEventCreate": lambda _flags: (next(self._events),),
            "cuEventElapsedTime": lambda _start, _end: (1.5,),
            "cuStreamEndCapture": lambda _stream: (GRAPH,),
            "cuGraphInstantiate": lambda _graph, _flags: (EXECUTABLE,),
        }

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name in self.failing:
                return (self.failing[name],)
            if name.startswith(("cuMemcpy", "cuMemset")):
                (ctypes.memset if name == "cuMemsetD8Async" else ctypes.memmove)(*arguments[:3])
            return (CUresult.CUDA_SUCCESS, *self._values.get(name, lambda *_: ())(*arguments))

        return call

    def _load(self, address: int) -> tuple[int]:
        assert ctypes.string_at(address, len(KERNELS)) == KERNELS
        return (MODULE,)

    def _allocate(self, size: int) -> tuple[int]:
        # What was there before, so that nobody counts on zeros.
        block = ctypes.create_string_buffer(b"\xa5" * size, size)
        self._memory[ctypes.addressof(block)] = block
        return (ctypes.addressof(block),)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def device(driver: FakeDriver) -> CudaDevice:
    return CudaDevice(KERNELS, driver=driver)


def test_what_it_is(device: CudaDevice, driver: FakeDriver) -> None:
    assert (device.name, device.compute_capability, device.stream, device.ordinal) == ("Orin", "8.7", STREAM, 0)
    assert ("cuStreamCreateWithPriority", (1, -5)) in driver.calls
    assert device.memory() == (3_000, 10_000)


def test_a_board_may_use_what_the_kernel_would_free(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.attributes[18] = 1
    monkeypatch.setattr(module, "system_memory", lambda: Memory(10_000, 8_000, 0, 0, 0))
    assert CudaDevice(KERNELS, driver=driver).memory() == (8_000, 10_000)


def test_memory_goes_there_and_back(device: CudaDevice) -> None:
    sent, back = device.pinned((2, 3), np.float32), device.pinned((2, 3), np.float32)
    assert not sent.any()
    assert sent.shape == (2, 3)
    assert device.pinned((0,), np.int64).shape == (0,)
    sent[:] = np.arange(6).reshape(2, 3)
    first, second = device.allocate(24), device.allocate(24)
    device.upload(first, sent)
    device.copy(second, first, 24)
    device.clear(second, 8)
    device.download(back, second)
    assert back.tolist() == [[0, 0, 2], [3, 4, 5]]


def test_kernels_are_looked_up_once_and_given_their_arguments(device: CudaDevice, driver: FakeDriver) -> None:
    arguments = [ctypes.c_void_p(1234), ctypes.c_int(-5), ctypes.c_double(0.25)]
    given = []

    def launched(*call: Any) -> tuple[Any, ...]:
        places = (ctypes.c_void_p * 3).from_address(call[9])
        kinds = (ctypes.c_void_p, ctypes.c_int, ctypes.c_double)
        given.append((*call[:9], [kind.from_address(place).value for kind, place in zip(kinds, places, strict=True)]))
        return (CUresult.CUDA_SUCCESS,)

    driver.cuLaunchKernel = launched
    for _ in range(2):
        device.launch("lladav_commit", (2, 1, 1), (128, 1, 1), arguments, shared=64)
    assert given == [(1, 2, 1, 1, 128, 1, 1, 64, STREAM, [1234, -5, 0.25])] * 2
    assert driver.names().count("cuModuleGetFunction") == 1


def test_events(device: CudaDevice, driver: FakeDriver) -> None:
    first, second = device.event(), device.event()
    first.record()
    second.record()
    second.wait()
    assert second.ms_since(first) == 1.5
    device.follow(2)
    (name, (stream, waited, _)) = driver.calls[-2 if driver.names()[-1] == "cuEventDestroy" else -1]
    assert (name, stream) == ("cuStreamWaitEvent", STREAM)
    assert ("cuEventRecord", (waited, 2)) in driver.calls


def test_what_is_gone_is_destroyed(device: CudaDevice, driver: FakeDriver) -> None:
    event, graph = device.event(), device.capture(lambda: None)
    del event, graph
    gc.collect()
    assert {"cuEventDestroy", "cuGraphExecDestroy"} <= set(driver.names())


def test_closing_gives_back_in_reverse(device: CudaDevice, driver: FakeDriver) -> None:
    device.pinned((4,), np.int64)
    driver.calls.clear()
    device.close()
    assert driver.names() == [
        "cuStreamSynchronize",
        "cuMemFreeHost",
        "cuModuleUnload",
        "cuStreamDestroy",
        "cuDevicePrimaryCtxRelease",
    ]


def test_another_thread_gets_the_context(device: CudaDevice, driver: FakeDriver) -> None:
    driver.calls.clear()
    device.synchronize()
    thread = threading.Thread(target=lambda: [device.synchronize() for _ in range(2)])
    thread.start()
    thread.join()
    assert driver.names() == ["cuStreamSynchronize", "cuCtxSetCurrent", "cuStreamSynchronize", "cuStreamSynchronize"]


def test_capture(device: CudaDevice, driver: FakeDriver) -> None:
    driver.calls.clear()
    graph = device.capture(lambda: device.copy(1, 1, 0))
    assert driver.calls[0] == ("cuStreamBeginCapture", (STREAM, 1))
    assert driver.names()[1:] == ["cuMemcpyDtoDAsync", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"]
    graph.launch()
    assert driver.calls[-1] == ("cuGraphLaunch", (EXECUTABLE, STREAM))


def test_failure_inside_a_capture_ends_it_and_is_raised(device: CudaDevice, driver: FakeDriver) -> None:
    def enqueue() -> None:
        raise BackendError("the engine refuses", cure="none")

    for ending in ({}, {"cuStreamEndCapture": CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED}):
        driver.calls.clear()
        driver.failing = ending
        with pytest.raises(BackendError, match="the engine refuses"):
            device.capture(enqueue)
        assert driver.names()[:2] == ["cuStreamBeginCapture", "cuStreamEndCapture"]
        assert ("cuGraphDestroy" in driver.names()) == (not ending)


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_failing_capture(device: CudaDevice, driver: FakeDriver, call: str) -> None:
    driver.failing = {call: CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED}
    with pytest.raises(BackendError, match=f"{call} failed with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED") as caught:
        device.capture(lambda: None)
    assert "without a graph" in caught.value.cure
    assert ("cuGraphDestroy" in driver.names()) == (call == "cuGraphInstantiate")


def test_too_little_memory(device: CudaDevice, driver: FakeDriver) -> None:
    driver.failing = {"cuMemAlloc": CUresult.CUDA_ERROR_OUT_OF_MEMORY}
    with pytest.raises(
        BackendError, match="5,000 bytes of GPU memory were refused, 3,000 of 10,000 are free"
    ) as caught:
        device.allocate(5_000)
    assert "--prompt-buckets" in caught.value.cure


@pytest.mark.parametrize(
    ("call", "status", "said", "cure"),
    [
        ("cuInit", "CUDA_ERROR_NO_DEVICE", "cuInit failed with CUDA_ERROR_NO_DEVICE", "nvidia-smi"),
        (
            "cuModuleLoadData",
            "CUDA_ERROR_NO_BINARY_FOR_GPU",
            "the kernels do not load on Orin, compute capability 8.7: ",
            "make kernels",
        ),
        ("cuModuleLoadData", "CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_INVALID_IMAGE", "make kernels"),
        ("cuCtxGetStreamPriorityRange", "CUDA_ERROR_INVALID_HANDLE", "CUDA_ERROR_INVALID_HANDLE", "lladav doctor"),
    ],
)
def test_gpu_that_cannot_be_opened(driver: FakeDriver, call: str, status: str, said: str, cure: str) -> None:
    driver.failing = {call: CUresult[status]}
    with pytest.raises(BackendError, match=said) as caught:
        CudaDevice(KERNELS, driver=driver)
    assert cure in caught.value.cure
    retained = driver.names().count("cuDevicePrimaryCtxRetain")
    assert driver.names().count("cuDevicePrimaryCtxRelease") == retained
    assert driver.names().count("cuStreamDestroy") == driver.names().count("cuStreamCreateWithPriority")


def test_gpu_that_is_not_there(driver: FakeDriver) -> None:
    with pytest.raises(BackendError, match="there is no GPU 1: CUDA counts 1"):
        CudaDevice(KERNELS, ordinal=1, driver=driver)


def test_kernel_that_was_not_built(device: CudaDevice, driver: FakeDriver) -> None:
    driver.failing = {"cuModuleGetFunction": CUresult.CUDA_ERROR_NOT_FOUND}
    with pytest.raises(BackendError, match="there is no kernel lladav_commit: ") as caught:
        device.launch("lladav_commit", (1, 1, 1), (1, 1, 1), [])
    assert "make kernels" in caught.value.cure


def test_machine_without_a_driver() -> None:
    def missing(*_: Any) -> tuple[Any, ...]:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    with pytest.raises(BackendError, match="NVIDIA's driver has no cuInit: libcuda") as caught:
        CudaDevice(KERNELS, driver=SimpleNamespace(cuInit=missing))
    assert "install NVIDIA's driver" in caught.value.cure


def test_machine_without_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match="cuda-bindings cannot be imported") as caught:
        CudaDevice(KERNELS)
    assert "pip install 'lladav[cuda]'" in caught.value.cure
