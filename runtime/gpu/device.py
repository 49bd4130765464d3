"""What the GPU runtime asks of a GPU: memory, one stream in order, kernels by name, captured graphs.

`CudaDevice` is the real one. The tests run the same loop and the same kernels on host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Address = int
"""Of device memory."""

Size3 = tuple[int, int, int]


class Event(Protocol):
    """A point in the stream."""

    def record(self) -> None:
        """Marks what was enqueued so far."""

    def wait(self) -> None:
        """Blocks the host until the marked work is done."""

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds between two points that have both been reached."""


class Graph(Protocol):
    """Captured work that is launched as a whole."""

    def launch(self) -> None:
        """Enqueues it on the device's stream."""


class Device(Protocol):
    """One GPU, used through one stream. Everything that enqueues returns at once.

    Attributes:
        name: of the GPU.
        compute_capability: such as 8.7.
        stream: the raw handle, for libraries that enqueue by themselves.
        ordinal: the GPU's number as CUDA counts them, which arrays of other libraries carry.
        shares_memory: whether CPU and GPU have one memory.
    """

    name: str
    compute_capability: str
    stream: int
    ordinal: int
    shares_memory: bool

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""

    def allocate(self, size: int) -> Address:
        """Bytes of device memory, aligned to 256.

        Raises:
            BackendError: there is not as much.
        """

    def free(self, address: Address) -> None: ...

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Host memory that the GPU copies from and to without the host waiting; zeros."""

    def upload(self, address: Address, source: np.ndarray) -> None:
        """Enqueues a copy; `source` is contiguous and must stay until it is done, unless it is not pinned."""

    def download(self, target: np.ndarray, address: Address) -> None:
        """Enqueues a copy; `target` is contiguous."""

    def copy(self, target: Address, source: Address, size: int) -> None:
        """Enqueues a copy of bytes on the device."""

    def clear(self, address: Address, size: int) -> None:
        """Enqueues writing zeros."""

    def launch(self, kernel: str, grid: Size3, block: Size3, arguments: Sequence[Any], shared: int = 0) -> None:
        """Enqueues a kernel.

        Args:
            kernel: its C name.
            grid: blocks.
            block: threads per block.
            arguments: ctypes values in the order of the kernel's parameters; addresses as `c_void_p`.
            shared: bytes of dynamic shared memory.
        """

    def event(self) -> Event: ...

    def follow(self, stream: int) -> None:
        """Lets what is enqueued from here on wait for what another stream holds now; the host does not wait.

        Args:
            stream: its raw handle, or 1 for the legacy and 2 for the per-thread default stream.
        """

    def synchronize(self) -> None:
        """Blocks the host until all enqueued work is done."""

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Captures what `enqueue` puts on the stream, without running it.

        Raises:
            BackendError: something in it cannot be captured; the stream is as before.
        """

    def repeat(self, enqueue: Callable[[int], None]) -> Graph:
        """Captures work that the GPU does once, and again as long as a kernel at its end says so.

        Args:
            enqueue: puts the work on the stream, kernels and copies on the device; it is given the conditional
                handle that its last kernel sets.

        Raises:
            BackendError: as `capture`, or the driver knows no such graphs.
        """
