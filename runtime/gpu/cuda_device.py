"""A real GPU, through the driver API of CUDA.

The package cuda-bindings is imported when a device is opened, so that everything else works
without it. The device's primary context is used, which libraries of engines and those that hand
over arrays use as well.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from lladav.errors import BackendError
from lladav.machine import system_memory
from lladav.runtime.gpu.device import Address, Event, Size3

_INSTALL = "pip install 'lladav[cuda]'; for a driver of CUDA 12 also 'cuda-bindings<13'"
_DRIVER = (
    "install NVIDIA's driver, in a container pass the GPU through (`docker run --gpus all`), and look with `nvidia-smi`"
)
_KERNELS = "run `make kernels` where nvcc knows this GPU, and install lladav again"
_LOST = "start the process again, and report this with the message: nothing computes on this GPU after such an error"
_UNCAPTURED = "nothing, if the passes run without a graph; report it with the message, for they are slower"
_CURES = {
    "CUDA_ERROR_NO_DEVICE": _DRIVER,
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "restart the machine: the driver was upgraded while it ran",
    "CUDA_ERROR_OUT_OF_MEMORY": "stop other programs on the GPU, or export again with smaller --prompt-buckets and "
    "--canvas-buckets",
    "CUDA_ERROR_INVALID_IMAGE": _KERNELS,
    "CUDA_ERROR_NO_BINARY_FOR_GPU": _KERNELS,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": _KERNELS,
    "CUDA_ERROR_NOT_FOUND": _KERNELS,
    "CUDA_ERROR_ILLEGAL_ADDRESS": _LOST,
    "CUDA_ERROR_LAUNCH_FAILED": _LOST,
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": _UNCAPTURED,
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": _UNCAPTURED,
}


class CudaEvent:
    """A point in a device's stream; made by `CudaDevice.event`."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._handle = device.call("cuEventCreate", 0)
        device.release_with(self, "cuEventDestroy", self._handle)

    def record(self) -> None:
        self._device.call("cuEventRecord", self._handle, self._device.stream)

    def wait(self) -> None:
        self._device.call("cuEventSynchronize", self._handle)

    def ms_since(self, earlier: Event) -> float:
        assert isinstance(earlier, CudaEvent)
        return float(self._device.call("cuEventElapsedTime", earlier._handle, self._handle))


class CudaGraph:
    """Captured work, ready to be launched; made by `CudaDevice.capture`."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device = device
        self._executable = executable
        device.release_with(self, "cuGraphExecDestroy", executable)

    def launch(self) -> None:
        self._device.call("cuGraphLaunch", self._executable, self._device.stream)


class CudaDevice:
    """One GPU and one stream of the highest priority.

    Args:
        kernels: the fat binary.
        ordinal: the GPU's number as CUDA counts them.
        driver: the module `cuda.bindings.driver`, if it shall not be imported.

    Raises:
        BackendError: there is no driver or no such GPU, or the kernels were not built for it.
    """

    def __init__(self, kernels: bytes, ordinal: int = 0, driver: Any = None) -> None:
        self._driver = driver or _import_driver()
        self._thread = threading.local()
        self._thread.has_context = True  # until there is one
        self._functions: dict[str, Any] = {}
        self.ordinal = ordinal
        self.call("cuInit", 0)
        if ordinal >= (count := self.call("cuDeviceGetCount")):
            raise BackendError(f"there is no GPU {ordinal}: CUDA counts {count}", cure=_DRIVER)
        self._device = self.call("cuDeviceGet", ordinal)
        name: bytes = self.call("cuDeviceGetName", 128, self._device)
        self.name = name.partition(b"\0")[0].decode("utf-8", "replace")
        wanted = self._driver.CUdevice_attribute
        major = self._attribute(wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self._attribute(wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.compute_capability = f"{major}.{minor}"
        self.shares_memory = bool(self._attribute(wanted.CU_DEVICE_ATTRIBUTE_INTEGRATED))
        with ExitStack() as taken:
            self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
            taken.callback(self.call, "cuDevicePrimaryCtxRelease", self._device)
            self.call("cuCtxSetCurrent", self._context)
            _, highest = self.call("cuCtxGetStreamPriorityRange")
            flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self.stream = int(self.call("cuStreamCreateWithPriority", flags, highest))
            taken.callback(self.call, "cuStreamDestroy", self.stream)
            self._module = self.call("cuModuleLoadData", np.frombuffer(kernels, np.uint8).ctypes.data)
            taken.callback(self.call, "cuModuleUnload", self._module)
            self._taken = taken.pop_all()

    def close(self) -> None:
        """Gives back what was taken but `allocate`d memory, once the enqueued work is done.

        Graphs and events must be gone by then, and pinned arrays are used no more.
        """
        self.synchronize()
        self._taken.close()

    def memory(self) -> tuple[int, int]:
        free, total = self.call("cuMemGetInfo")
        # Where CPU and GPU share memory, CUDA does not count what the kernel would give up of its file cache.
        if self.shares_memory and (system := system_memory()) is not None:
            free = max(free, system.available)
        return free, total

    def allocate(self, size: int) -> Address:
        return int(self.call("cuMemAlloc", size))

    def free(self, address: Address) -> None:
        self.call("cuMemFree", address)

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Host memory that the GPU copies from and to without the host waiting; zeros; lasts until `close`."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        pointer = int(self.call("cuMemHostAlloc", max(size, 1), 0))
        self._taken.callback(self.call, "cuMemFreeHost", pointer)
        ctypes.memset(pointer, 0, size)
        array: np.ndarray = np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), kind).reshape(shape)
        return array

    def upload(self, address: Address, source: np.ndarray) -> None:
        self.call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self.stream)

    def download(self, target: np.ndarray, address: Address) -> None:
        self.call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self.stream)

    def copy(self, target: Address, source: Address, size: int) -> None:
        self.call("cuMemcpyDtoDAsync", target, source, size, self.stream)

    def clear(self, address: Address, size: int) -> None:
        self.call("cuMemsetD8Async", address, 0, size, self.stream)

    def launch(self, kernel: str, grid: Size3, block: Size3, arguments: Sequence[Any], shared: int = 0) -> None:
        if kernel not in self._functions:
            self._functions[kernel] = self.call("cuModuleGetFunction", self._module, kernel.encode())
        values = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self.call(
            "cuLaunchKernel", self._functions[kernel], *grid, *block, shared, self.stream, ctypes.addressof(values), 0
        )

    def event(self) -> CudaEvent:
        return CudaEvent(self)

    def follow(self, stream: int) -> None:
        event = CudaEvent(self)
        self.call("cuEventRecord", event._handle, stream)
        self.call("cuStreamWaitEvent", self.stream, event._handle, 0)

    def synchronize(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Captures what `enqueue` puts on the stream, without running it.

        What a library only does when it first sees a shape, such as allocating, must have been done before.

        Raises:
            BackendError: something in it cannot be captured; the stream is as before.
        """
        # Other threads may go on allocating.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        except BaseException:
            # What went wrong is in the exception, not in what ending such a capture says.
            with suppress(BackendError):
                self.call("cuGraphDestroy", self.call("cuStreamEndCapture", self.stream))
            raise
        graph = self.call("cuStreamEndCapture", self.stream)
        try:
            return CudaGraph(self, self.call("cuGraphInstantiate", graph, 0))
        finally:
            self.call("cuGraphDestroy", graph)

    def repeat(self, enqueue: Callable[[int], None]) -> CudaGraph:
        """Captures work as the body of a conditional WHILE node; needs a driver of CUDA 12.4 or newer.

        Raises:
            BackendError: as `capture`, or the driver knows no such nodes.
        """
        driver = self._driver
        graph = self.call("cuGraphCreate", 0)
        try:
            # Every launch begins with the value 1, for the first time.
            handle = self.call("cuGraphConditionalHandleCreate", graph, self._context, 1, 1)
            node = driver.CUgraphNodeParams()
            node.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
            node.conditional.handle = handle
            node.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_WHILE
            node.conditional.size = 1
            node.conditional.ctx = self._context
            # The bindings of CUDA 12 have an older function under the plain name.
            add = "cuGraphAddNode_v2" if hasattr(driver, "cuGraphAddNode_v2") else "cuGraphAddNode"
            self.call(add, graph, None, None, 0, node)
            self._capture_into(node.conditional.phGraph_out[0], lambda: enqueue(int(handle)))
            return CudaGraph(self, self.call("cuGraphInstantiate", graph, 0))
        finally:
            self.call("cuGraphDestroy", graph)

    def _capture_into(self, graph: Any, enqueue: Callable[[], None]) -> None:
        """As `capture`, into an empty graph."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCaptureToGraph", self.stream, graph, None, None, 0, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(BackendError):
                self.call("cuStreamEndCapture", self.stream)
            raise
        self.call("cuStreamEndCapture", self.stream)

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls the driver.

        Returns:
            What it gives beside its status: nothing, a value or a tuple.

        Raises:
            BackendError: any status but success.
        """
        if not hasattr(self._thread, "has_context"):
            self._thread.has_context = True
            self.call("cuCtxSetCurrent", self._context)
        try:
            status, *values = getattr(self._driver, name)(*arguments)
        except RuntimeError as error:  # the library cannot be loaded, or is too old for the bindings
            raise BackendError(f"NVIDIA's driver has no {name}: {error}", cure=f"{_DRIVER}; or {_INSTALL}") from error
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise self._fault(name, status, arguments)
        return values[0] if len(values) == 1 else tuple(values)

    def release_with(self, owner: object, destroy: str, handle: Any) -> None:
        """Has a handle destroyed when its owner is gone, but not as the process ends, which destroys all."""
        weakref.finalize(owner, getattr(self._driver, destroy), handle).atexit = False

    def _attribute(self, attribute: Any) -> int:
        return int(self.call("cuDeviceGetAttribute", attribute, self._device))

    def _fault(self, name: str, status: Any, arguments: tuple[Any, ...]) -> BackendError:
        what = f"{name} failed with {status.name}"
        if name == "cuMemAlloc":
            free, total = self.memory()
            what = f"{arguments[0]:,} bytes of GPU memory were refused, {free:,} of {total:,} are free: {what}"
        if name == "cuModuleLoadData":
            what = f"the kernels do not load on {self.name}, compute capability {self.compute_capability}: {what}"
        if name == "cuModuleGetFunction":
            what = f"there is no kernel {arguments[1].decode()}: {what}"
        return BackendError(what, cure=_CURES.get(status.name, "run `lladav doctor`, and report this with the message"))


def _import_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendError(f"cuda-bindings cannot be imported: {error}", cure=_INSTALL) from error
    return driver
