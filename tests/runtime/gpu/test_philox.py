"""The kernels' random numbers."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from host_library import host_library
from hypothesis import given
from hypothesis import strategies as st
from loop_buffers import LoopBuffers
from philox import philox, words

from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.loop_state import Rules
from lladav.runtime.selectors import Fixed

WORD = st.integers(0, 2**32 - 1)


@pytest.fixture
def device(kernel_device: Device) -> Device:
    return kernel_device


def of_the_kernels(counter: list[int], key: list[int]) -> list[int]:
    out = (ctypes.c_uint32 * 4)()
    host_library().probe_philox((ctypes.c_uint32 * 4)(*counter), (ctypes.c_uint32 * 2)(*key), out)
    return list(out)


# Counters, keys and results that the authors publish with Random123 (`kat_vectors`, philox4x32 10).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
@pytest.mark.usefixtures("compiled")
def test_published_vectors(counter: str, key: str, expected: str) -> None:
    numbers, keys = ([int(word, 16) for word in text.split()] for text in (counter, key))
    found = of_the_kernels(numbers, keys)
    assert found == [int(word, 16) for word in expected.split()]
    assert philox(np.array([numbers], np.uint32), (keys[0], keys[1])).tolist() == [found]


@given(st.lists(WORD, min_size=4, max_size=4), st.lists(WORD, min_size=2, max_size=2))
@pytest.mark.usefixtures("compiled")
def test_numpy_gives_the_same(counter: list[int], key: list[int]) -> None:
    assert philox(np.array([counter], np.uint32), (key[0], key[1])).tolist() == [of_the_kernels(counter, key)]


def test_random_remasking_ranks_by_a_uniform_number(device: Device) -> None:
    schedule, seed, step = Schedule(gen_length=40, block_length=40, steps=4), 77 << 31, 2
    loop = LoopBuffers(device, Rules(schedule, Fixed(), GenerationConfig(remasking="random", seed=seed)), 40)
    canvases = loop.canvases
    canvases["state"]["step"] = step
    canvases["confidences"] = np.linspace(0, 1, 40)
    loop.canvases = canvases
    kernels.commit(device, loop.memory)
    drawn = np.concatenate([words(seed, step, position, np.zeros(1), 1) for position in range(40)]).astype(np.float64)
    uniform = ((drawn[:, 0] // 32) * 2**26 + drawn[:, 1] // 64) / 2**53
    expected = np.argsort(-uniform)[:10]
    decided = loop.log[0, 0]["decided"][:10]
    assert decided["position"].tolist() == expected.tolist()
    assert decided["confidence"].tolist() == np.linspace(0, 1, 40)[expected].tolist()
