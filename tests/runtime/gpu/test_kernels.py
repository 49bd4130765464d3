"""The smaller kernels, and what their launches refuse."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from loop_buffers import LoopBuffers

from lladav.errors import BackendError
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.loop_state import Rules
from lladav.runtime.sampling import guide
from lladav.runtime.selectors import Fixed, Threshold

ONE_BLOCK = Schedule(gen_length=6, block_length=6, steps=6)
PLAIN = Rules(ONE_BLOCK, Fixed(), GenerationConfig())


@pytest.fixture
def device(kernel_device: Device) -> Device:
    return kernel_device


@pytest.mark.parametrize("count", [1, 255, 70_000])
def test_guidance_is_the_hosts_to_the_bit(device: Device, count: int) -> None:
    conditional, unconditional = np.random.default_rng(count).normal(0, 5, (2, count)).astype(np.float32)
    loop = LoopBuffers(device, Rules(ONE_BLOCK, Fixed(), GenerationConfig(cfg_scale=1.7)), 6)
    address = loop.put(conditional)
    kernels.guide(device, loop.memory, address, loop.put(unconditional), count)
    found = loop.get(address, count, np.float32)
    guide(conditional, unconditional, 1.7)
    assert found.tolist() == conditional.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("guided", "whole"), [(False, False), (True, False), (False, True)])
def test_decided_rows_get_their_embeddings(device: Device, dtype: str, guided: bool, whole: bool) -> None:
    rng = np.random.default_rng(0)
    width, vocabulary, stride = 300, 11, 8 * 300
    table = rng.normal(0, 1, (vocabulary, width)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    loop = LoopBuffers(device, Rules(ONE_BLOCK, Threshold(0.5), GenerationConfig()), 6, sequences=2)
    canvases = loop.canvases
    canvases["tokens"] = rng.integers(0, vocabulary, (2, 6))
    canvases["confidences"] = rng.random((2, 6))
    loop.canvases = canvases
    loop.set_whole(whole)
    kernels.commit(device, loop.memory)
    expected = rng.normal(0, 1, (4 if guided else 2, 8, width)).astype(np.float32)
    target = loop.put(expected)
    first_row = target + width * 4  # the canvas begins at the second row of what each sequence has
    kernels.write_rows(device, loop.memory, loop.put(table), dtype, width, first_row, stride, guided=guided)
    for sequence in range(len(expected)):
        decided = np.flatnonzero(canvases["confidences"][sequence % 2] >= (0.0 if whole else 0.5))
        expected[sequence, 1 + decided] = table[canvases["tokens"][sequence % 2, decided]].astype(np.float32)
    np.testing.assert_array_equal(loop.get(target, expected.shape, np.float32), expected)


def test_every_finite_half_is_widened_exactly(device: Device) -> None:
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    table[~np.isfinite(table)] = 0
    loop = LoopBuffers(device, Rules(ONE_BLOCK, Fixed(), GenerationConfig()), 6)
    canvases = loop.canvases
    canvases["tokens"] = 0
    loop.canvases = canvases
    kernels.commit(device, loop.memory)
    target = loop.put(np.zeros((6, len(table)), np.float32))
    kernels.write_rows(device, loop.memory, loop.put(table), "float16", len(table), target, 6 * len(table))
    np.testing.assert_array_equal(loop.get(target, len(table), np.float32), table.astype(np.float32))


def test_logits_that_are_no_numbers_end_the_canvas_undecided(device: Device) -> None:
    loop = LoopBuffers(device, PLAIN, 6)
    canvases = loop.canvases
    canvases["confidences"][0] = [0.5, np.nan, 0.5, np.inf, 0.5, 0.5]
    loop.canvases = canvases
    kernels.commit(device, loop.memory)
    state = loop.log[0, 0]["state"]
    assert (state["invalid"], state["chosen"], state["forced"], state["done"]) == (2, 0, 0, 1)
    assert loop.canvases["masked"].all()


def test_a_step_too_many_changes_nothing(device: Device) -> None:
    """As a graph that is replayed once more than there was something to decide."""
    loop = LoopBuffers(device, Rules(ONE_BLOCK, Threshold(0.5), GenerationConfig()), 6, slots=2)
    canvases = loop.canvases
    canvases["confidences"] = 0.9
    loop.canvases = canvases
    logits, rows = loop.put(np.ones((6, 9), np.float32)), loop.put(np.arange(6))

    def step() -> None:
        kernels.evaluate(device, loop.memory, logits, rows, 6, 9, first=0)
        kernels.commit(device, loop.memory)

    kernels.commit(device, loop.memory)
    canvases, log = loop.canvases, loop.log[0]
    assert canvases["state"]["done"] == 1
    graph = device.capture(step)
    for _ in range(3):
        graph.launch()
    assert loop.canvases.tobytes() == canvases.tobytes()
    assert loop.log[0].tobytes() == log.tobytes()


def test_a_canvas_larger_than_a_block_is_refused(device: Device) -> None:
    length = 1025
    rules = Rules(Schedule(gen_length=length, block_length=length, steps=1), Fixed(), GenerationConfig())
    with pytest.raises(BackendError, match="1,025 positions"):
        kernels.commit(device, LoopBuffers(device, rules, length).memory)


def test_kernels_that_were_not_built_have_a_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "FAT_BINARY", tmp_path / "absent.fatbin")
    with pytest.raises(BackendError, match="not built") as caught:
        kernels.load_kernels()
    assert "make kernels" in caught.value.cure
