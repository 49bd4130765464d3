"""A device that is the host: its memory is the process's, its kernels are the real sources, run thread by thread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from host_library import host_library

from lladav.errors import BackendError
from lladav.runtime.gpu.device import Address, Event, Graph, Size3

_ALIGNMENT = 256
_GUARD = 0xA5
_GARBAGE = 0xCB
# These stride over whatever they are given, and so need not be run with a GPU's number of fibers.
_STRIDING = frozenset({"lladav_evaluate", "lladav_guide", "lladav_write_rows"})
_FIBERS = 32


class HostDevice:
    """Implements `lladav.runtime.gpu.device.Device`.

    Memory is full of garbage when it is allocated, and has guards at both ends, which `free` and `check`
    look at. Sizes of a kernel's arguments are compared with its parameters.

    Args:
        total: bytes of memory there are.
        deferred: nothing runs before the host waits for it, as on a GPU that is slow; else
            everything runs at once.
        captures: whether `capture` works.
        repeats: whether `repeat` works.
        full_blocks: run striding kernels with as many threads as they are launched with.

    Attributes:
        allocations, uploads, downloads, launches, synchronizations: how many so far; waiting for an
            event counts as a synchronization.
        uploaded, downloaded: bytes so far.
        captures_made: graphs so far.
        kernels: names of what was run, in order.
        followed: streams that were waited for.
    """

    name = "host"
    compute_capability = "8.7"
    stream = 0
    ordinal = 0
    shares_memory = False

    def __init__(
        self,
        total: int = 1 << 30,
        *,
        deferred: bool = False,
        captures: bool = True,
        repeats: bool = True,
        full_blocks: bool = False,
    ) -> None:
        self._total = total
        self._deferred = deferred
        self._captures = captures
        self._repeats = repeats
        self._full_blocks = full_blocks
        self._memory: dict[Address, tuple[np.ndarray, int]] = {}
        self._pinned: list[np.ndarray] = []
        self._pending: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self.allocations = self.uploads = self.downloads = self.launches = self.synchronizations = 0
        self.uploaded = self.downloaded = self.captures_made = 0
        self.kernels: list[str] = []
        self.followed: list[int] = []

    @property
    def pending(self) -> int:
        """What was enqueued and has not run."""
        return len(self._pending)

    def memory(self) -> tuple[int, int]:
        return self._total - sum(size for _, size in self._memory.values()), self._total

    def allocate(self, size: int) -> Address:
        self._refuse_in_capture("allocate")
        if size > self.memory()[0]:
            raise BackendError(f"{size:,} bytes wanted, {self.memory()[0]:,} are free", cure="ask for less")
        whole = np.full(size + 3 * _ALIGNMENT, _GUARD, np.uint8)
        start = _ALIGNMENT + -whole.ctypes.data % _ALIGNMENT
        whole[start : start + size] = _GARBAGE
        address = whole.ctypes.data + start
        self._memory[address] = whole, size
        self.allocations += 1
        return address

    def free(self, address: Address) -> None:
        self._refuse_in_capture("free")
        self._flush()
        self._check(address)
        del self._memory[address]

    def check(self) -> None:
        """Fails if something was written outside of what was allocated."""
        self._flush()
        for address in self._memory:
            self._check(address)

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        self._refuse_in_capture("pinned")
        array = np.zeros(shape, dtype)
        self._pinned.append(array)
        return array

    def upload(self, address: Address, source: np.ndarray) -> None:
        assert source.flags.c_contiguous
        if not any(np.may_share_memory(source, array) for array in self._pinned):
            if self._recording is not None:
                raise BackendError("memory that is not pinned was uploaded while capturing", cure="pin it")
            source = source.copy()

        def work() -> None:
            self._move(address, source.ctypes.data, source.nbytes)
            self.uploads += 1
            self.uploaded += source.nbytes

        self._enqueue(work)

    def download(self, target: np.ndarray, address: Address) -> None:
        assert target.flags.c_contiguous
        assert target.flags.writeable

        def work() -> None:
            self._move(target.ctypes.data, address, target.nbytes)
            self.downloads += 1
            self.downloaded += target.nbytes

        self._enqueue(work)

    def copy(self, target: Address, source: Address, size: int) -> None:
        self._enqueue(lambda: self._move(target, source, size))

    def clear(self, address: Address, size: int) -> None:
        self._enqueue(lambda: ctypes.memset(address, 0, size) and None)

    def launch(self, kernel: str, grid: Size3, block: Size3, arguments: Sequence[Any], shared: int = 0) -> None:
        assert shared == 0, "no dynamic shared memory on the host"
        assert all(0 < n <= most for n, most in zip(grid, (2**31 - 1, 65535, 65535), strict=True)), grid
        assert 0 < block[0] * block[1] * block[2] <= 1024, block
        library = host_library()
        expected = (ctypes.c_int * 64)()
        count = library[f"sizes_of_{kernel}"](expected)
        assert [ctypes.sizeof(argument) for argument in arguments] == expected[:count], f"arguments of {kernel}"
        kept = tuple(arguments)
        values = (ctypes.c_void_p * len(kept))(*(ctypes.addressof(argument) for argument in kept))
        if kernel in _STRIDING and not self._full_blocks:
            block = min(block[0], _FIBERS), 1, 1
        sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]

        def work() -> None:
            assert len(kept) == len(values)
            assert library[f"launch_{kernel}"](values, *sizes) == 0, f"{kernel}: not every thread came to a barrier"
            self.launches += 1
            self.kernels.append(kernel)

        self._enqueue(work)

    def event(self) -> Event:
        return _HostEvent(self)

    def follow(self, stream: int) -> None:
        self._enqueue(lambda: self.followed.append(stream))

    def synchronize(self) -> None:
        self._refuse_in_capture("synchronize")
        self.synchronizations += 1
        self._flush()

    def capture(self, enqueue: Callable[[], None]) -> _HostGraph:
        self._refuse_in_capture("capture")
        if not self._captures:
            raise BackendError("this device captures nothing", cure="launch plainly")
        self._recording = []
        try:
            enqueue()
            self.captures_made += 1
            return _HostGraph(self, self._recording)
        finally:
            self._recording = None

    def repeat(self, enqueue: Callable[[int], None]) -> Graph:
        if not self._repeats:
            raise BackendError("this device repeats nothing", cure="launch every step")
        again = ctypes.c_uint()
        return _HostLoop(self, again, self.capture(lambda: enqueue(ctypes.addressof(again))))

    def _enqueue(self, work: Callable[[], None]) -> None:
        if self._recording is not None:
            self._recording.append(work)
        elif self._deferred:
            self._pending.append(work)
        else:
            work()

    def _flush(self) -> None:
        while self._pending:
            self._pending.pop(0)()

    def _refuse_in_capture(self, what: str) -> None:
        if self._recording is not None:
            raise BackendError(f"{what} was called while capturing", cure="call it before")

    def _move(self, target: Address, source: Address, size: int) -> None:
        ctypes.memmove(target, source, size)

    def _check(self, address: Address) -> None:
        whole, size = self._memory[address]
        start = address - whole.ctypes.data
        assert (whole[:start] == _GUARD).all(), "something was written before an allocation"
        assert (whole[start + size :] == _GUARD).all(), "something was written behind an allocation"


class _HostEvent:
    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self._reached: float | None = None

    def record(self) -> None:
        self._reached = None
        self._device._enqueue(self._reach)

    def _reach(self) -> None:
        self._reached = perf_counter()

    def wait(self) -> None:
        self._device._refuse_in_capture("wait")
        self._device.synchronizations += 1
        while self._reached is None and self._device._pending:
            self._device._pending.pop(0)()

    def ms_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _HostEvent)
        assert self._reached is not None
        assert earlier._reached is not None
        return (self._reached - earlier._reached) * 1e3


class _HostGraph:
    def __init__(self, device: HostDevice, work: list[Callable[[], None]]) -> None:
        self._device = device
        self._work = work

    def launch(self) -> None:
        for work in self._work:
            self._device._enqueue(work)

    def run(self) -> None:
        for work in self._work:
            work()


class _HostLoop:
    def __init__(self, device: HostDevice, again: ctypes.c_uint, body: _HostGraph) -> None:
        self._device = device
        self._again = again
        self._body = body

    def launch(self) -> None:
        def run() -> None:
            self._again.value = 1
            while self._again.value:
                self._body.run()

        self._device._enqueue(run)
