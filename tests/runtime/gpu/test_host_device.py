"""The device that is the host notices what a GPU would not, and counts."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from host_device import HostDevice
from host_library import host_library
from loop_buffers import LoopBuffers

from lladav.errors import BackendError
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.loop_state import DECISION, RESTRICTION, RULES, STATE, Rules, canvas_dtype
from lladav.runtime.selectors import Fixed

PLAIN = Rules(Schedule(gen_length=4, block_length=4, steps=4), Fixed(), GenerationConfig())


@pytest.mark.usefixtures("compiled")
def test_records_are_laid_out_as_in_the_kernels() -> None:
    sizes = (ctypes.c_int * 4)()
    host_library().probe_sizes(sizes)
    assert list(sizes) == [dtype.itemsize for dtype in (RULES, STATE, DECISION, RESTRICTION)]
    host_library().probe_canvas.restype = ctypes.c_size_t
    for capacity in (1, 7, 64, 513):
        assert host_library().probe_canvas(capacity) == canvas_dtype(capacity).itemsize


def test_captured_work_runs_when_it_is_launched_and_only_then() -> None:
    device = HostDevice()
    address, source, target = device.allocate(8), device.pinned((8,), np.uint8), np.zeros(8, np.uint8)

    def enqueue() -> None:
        device.upload(address, source)
        device.download(target, address)

    graph = device.capture(enqueue)
    source[:] = 7
    assert (device.uploads, target.tolist()) == (0, [0] * 8)
    graph.launch()
    assert target.tolist() == [7] * 8
    source[:] = 9
    graph.launch()
    assert target.tolist() == [9] * 8
    assert (device.uploaded, device.downloaded, device.synchronizations) == (16, 16, 0)


@pytest.mark.parametrize("what", ["allocate", "synchronize", "pageable"])
def test_what_cannot_be_captured_is_refused(what: str) -> None:
    device = HostDevice()
    address = device.allocate(8)

    def enqueue() -> None:
        device.clear(address, 8)
        if what == "allocate":
            device.allocate(8)
        elif what == "synchronize":
            device.synchronize()
        else:
            device.upload(address, np.zeros(8, np.uint8))

    with pytest.raises(BackendError, match="while capturing"):
        device.capture(enqueue)
    device.synchronize()


def test_deferred_work_waits_until_the_host_does() -> None:
    device = HostDevice(deferred=True)
    address, target = device.allocate(4), np.ones(4, np.uint8)
    device.clear(address, 4)
    early = device.event()
    early.record()
    device.download(target, address)
    late = device.event()
    late.record()
    early.wait()
    assert target.tolist() == [1] * 4
    late.wait()
    assert target.tolist() == [0] * 4
    assert late.ms_since(early) >= 0


def test_writing_outside_is_noticed() -> None:
    device = HostDevice()
    address = device.allocate(10)
    device.clear(address, 11)
    with pytest.raises(AssertionError, match="behind an allocation"):
        device.free(address)


def test_memory_is_counted_and_ends() -> None:
    device = HostDevice(total=1000)
    address = device.allocate(600)
    assert device.memory() == (400, 1000)
    with pytest.raises(BackendError, match="600 bytes wanted, 400 are free"):
        device.allocate(600)
    device.free(address)
    assert device.memory() == (1000, 1000)


def test_arguments_are_compared_with_the_kernels(device: HostDevice) -> None:
    loop = LoopBuffers(device, PLAIN, 4).memory
    with pytest.raises(AssertionError, match="lladav_commit"):
        device.launch("lladav_commit", (1, 1, 1), (32, 1, 1), [ctypes.c_void_p(loop.rules)])


def test_a_barrier_that_a_thread_misses_is_noticed(device: HostDevice) -> None:
    out = ctypes.c_void_p(device.allocate(32))
    with pytest.raises(AssertionError, match="not every thread came to a barrier"):
        device.launch("probe_lost_thread", (1, 1, 1), (8, 1, 1), [out])


def test_threads_run_in_both_orders(device: HostDevice) -> None:
    out, orders = np.zeros((2, 8), np.int32), []
    address = device.allocate(out.nbytes)
    for _ in range(2):
        device.clear(address, out.nbytes)
        device.launch("probe_order", (1, 1, 1), (8, 1, 1), [ctypes.c_void_p(address), ctypes.c_void_p(address + 32)])
        device.download(out, address)
        orders.append(out[1].tolist())
    assert sorted(orders) == [list(range(8)), list(range(8))[::-1]]


def test_a_step_moves_no_vocabulary_and_does_not_wait(device: HostDevice) -> None:
    vocabulary = 5000
    loop = LoopBuffers(device, PLAIN, 4, sequences=1)
    logits = loop.put(np.random.default_rng(0).random((4, vocabulary), np.float32))
    rows, table = loop.put(np.arange(4)), loop.put(np.zeros((vocabulary, 8), np.float32))
    target = loop.put(np.zeros((4, 8), np.float32))
    before = device.uploaded + device.downloaded, device.synchronizations

    kernels.evaluate(device, loop.memory, logits, rows, 4, vocabulary, first=0)
    kernels.commit(device, loop.memory)
    kernels.write_rows(device, loop.memory, table, "float32", 8, target, 32)
    assert (device.uploaded + device.downloaded, device.synchronizations) == before
    assert device.kernels == ["lladav_evaluate", "lladav_commit", "lladav_write_rows"]
