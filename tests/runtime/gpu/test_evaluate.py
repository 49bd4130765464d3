"""The kernel that picks tokens, beside the host's sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
from host_device import HostDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_buffers import LoopBuffers
from philox import gumbel_noise

from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.loop_state import ALL_BUT, FREE, ONLY, RESTRICTION, Rules
from lladav.runtime.sampling import Picks, Sampler, restrict
from lladav.runtime.selectors import Fixed
from lladav.runtime.template import Restriction


@pytest.fixture
def device(kernel_device: Device) -> Device:
    return kernel_device


def rules(length: int, suppressed: tuple[int, ...] = (), **options: float) -> Rules:
    schedule = Schedule(gen_length=length, block_length=length, steps=length)
    return Rules(schedule, Fixed(), GenerationConfig(**options), suppressed=suppressed)  # type: ignore[arg-type]


def evaluated(
    device: Device, loop: LoopBuffers, logits: np.ndarray, rows: np.ndarray | None = None, *, first: int = 0
) -> Picks:
    """Picks of `[R, V]` logits of one sequence, for rows that are positions 0 to R - 1 where not given."""
    count, vocabulary = logits.shape
    rows = np.arange(count) if rows is None else rows
    kernels.evaluate(device, loop.memory, loop.put(logits), loop.put(rows), count, vocabulary, first=first)
    canvas = loop.canvases[0]
    return Picks(canvas["tokens"][:count], canvas["confidences"][:count], canvas["entropies"][:count])


def on_the_host(logits: np.ndarray, suppressed: tuple[int, ...] = ()) -> Picks:
    draw = np.random.default_rng(0)
    return Sampler(logits.shape[1], suppressed, 0.0, draw, entropy=True).pick(logits.copy())


def assert_same(found: Picks, expected: Picks) -> None:
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.entropies is not None
    assert expected.entropies is not None
    # What is left of 1 ranks confidences next to it, and so has to be as close as the confidences themselves.
    np.testing.assert_allclose(found.confidences, expected.confidences, rtol=3e-6)
    np.testing.assert_allclose(1 - found.confidences, 1 - expected.confidences, rtol=3e-5, atol=1e-15)
    np.testing.assert_allclose(found.entropies, expected.entropies, rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-80, 80, width=32) | st.just(-np.inf), min_size=2, max_size=90),
    st.sets(st.integers(0, 1)),
    st.floats(-80, 80, width=32),
)
@pytest.mark.usefixtures("compiled")
def test_picks_are_the_samplers(row: list[float], suppressed: set[int], last: float) -> None:
    device = HostDevice()
    logits = np.array([[*row, last]], np.float32)
    found = evaluated(device, LoopBuffers(device, rules(1, tuple(suppressed)), 1), logits)
    assert_same(found, on_the_host(logits, tuple(suppressed)))
    device.check()


@pytest.mark.parametrize("vocabulary", [4, 5000, 5001])
@pytest.mark.parametrize("full_blocks", [False, True])
@pytest.mark.usefixtures("compiled")
def test_many_rows(vocabulary: int, full_blocks: bool) -> None:
    """Rows that begin at any alignment, with as many threads as a GPU has and with fewer."""
    device = HostDevice(full_blocks=full_blocks)
    logits = np.random.default_rng(vocabulary).normal(0, 4, (7, vocabulary)).astype(np.float32)
    logits[2] = logits[2].round()  # many equals
    found = evaluated(device, LoopBuffers(device, rules(7, (1,)), 9), logits)
    assert_same(found, on_the_host(logits, (1,)))


def test_the_real_vocabulary(device: Device) -> None:
    logits = np.random.default_rng(3).normal(0, 3, (2, 126_464)).astype(np.float32)
    logits[1, 126_463] = 40.0
    found = evaluated(device, LoopBuffers(device, rules(2, (5, 7)), 2), logits)
    assert_same(found, on_the_host(logits, (5, 7)))
    assert found.tokens[1] == 126_463


def test_logits_are_read_and_only_forbidden_ones_written(device: Device) -> None:
    logits = np.random.default_rng(0).normal(0, 1, (1, 50)).astype(np.float32)
    loop = LoopBuffers(device, rules(1, (4,)), 1)
    address = loop.put(logits)
    kernels.evaluate(device, loop.memory, address, loop.put(np.zeros(1, np.int64)), 1, 50, first=0)
    after = loop.get(address, 50, np.float32)
    assert np.flatnonzero(after != logits[0]).tolist() == [4]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 17, 63])
def test_logits_that_are_no_numbers_give_confidences_that_are_none(device: Device, bad: float, place: int) -> None:
    logits = np.random.default_rng(0).normal(0, 1, (2, 64)).astype(np.float32)
    logits[0, place] = bad
    confidences = evaluated(device, LoopBuffers(device, rules(2), 2), logits).confidences
    assert math.isnan(confidences[0])
    assert 0 < confidences[1] < 1


def test_a_row_in_which_nothing_may_stand_gives_no_confidence(device: Device) -> None:
    assert math.isnan(
        evaluated(device, LoopBuffers(device, rules(1, (0, 1)), 1), np.zeros((1, 2), np.float32)).confidences[0]
    )


def test_a_suppressed_token_may_be_no_number(device: Device) -> None:
    found = evaluated(device, LoopBuffers(device, rules(1, (1,)), 1), np.array([[0, np.nan, 0]], np.float32))
    assert (found.tokens[0], found.confidences[0]) == (0, 0.5)


def test_restrictions_of_every_kind(device: Device) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (4, 300)).astype(np.float32)
    only, but = np.sort(rng.choice(300, 40, replace=False)), np.sort(rng.choice(300, 290, replace=False))
    own = rules(4, (int(only[3]),))
    begin = len(own.ids())
    spans = [(FREE, 0, 0), (ONLY, begin, begin + 40), (ALL_BUT, begin + 40, begin + 330), (ONLY, begin, begin + 1)]
    loop = LoopBuffers(
        device,
        own,
        4,
        restrictions=np.array(spans, RESTRICTION),
        restriction_ids=np.concatenate((only, but)).astype(np.int32),
    )
    restricted = logits.copy()
    restrict(restricted[1], Restriction(only, allowed=True))
    restrict(restricted[2], Restriction(but, allowed=False))
    restrict(restricted[3], Restriction(only[:1], allowed=True))
    found = evaluated(device, loop, logits)
    assert_same(found, on_the_host(restricted, (int(only[3]),)))
    assert found.confidences[3] == 1


def test_every_sequence_has_its_own_restrictions(device: Device) -> None:
    """Those of a sequence begin where its canvas does, however few rows are asked for."""
    spans = np.array([[(ONLY, 0, 1), (FREE, 0, 0)], [(ONLY, 1, 2), (FREE, 0, 0)]], RESTRICTION)
    ids = np.array([3, 5], np.int32)
    loop = LoopBuffers(device, rules(2), 2, sequences=2, restrictions=spans, restriction_ids=ids)
    kernels.evaluate(
        device, loop.memory, loop.put(np.ones((2, 9), np.float32)), loop.put(np.zeros(1, int)), 1, 9, first=0
    )
    assert loop.canvases["tokens"][:, 0].tolist() == [3, 5]


def test_noise_is_that_of_the_generator(device: Device) -> None:
    """`argmax(logits + T * gumbel)`, with noise by seed, step, position and token."""
    vocabulary, step, temperature, seed = 2000, 5, 0.8, 3 << 40
    logits = np.random.default_rng(2).normal(0, 2, (6, vocabulary)).astype(np.float32)
    loop = LoopBuffers(device, rules(6, (9,), temperature=temperature, seed=seed), 6)
    canvases = loop.canvases
    canvases["state"]["step"] = step
    loop.canvases = canvases
    found = evaluated(device, loop, logits)

    allowed = logits.astype(np.float64)
    allowed[:, 9] = -np.inf
    scores = allowed + temperature * np.array([gumbel_noise(seed, step, row, vocabulary) for row in range(6)])
    first, second = np.sort(scores)[:, [-1, -2]].T
    assert (first - second > 1e-3).all()  # no float decides
    assert found.tokens.tolist() == scores.argmax(axis=1).tolist()
    share = np.exp(allowed - allowed.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.confidences, share[np.arange(6), found.tokens], rtol=3e-6)


def test_noise_under_a_restriction_is_the_same_noise(device: Device) -> None:
    logits = np.zeros((1, 64), np.float32)
    own = rules(1, temperature=1.0, seed=4)
    spans = np.array([(ONLY, 0, 20)], RESTRICTION)
    ids = np.arange(13, 33, dtype=np.int32)
    found = evaluated(device, LoopBuffers(device, own, 1, restrictions=spans, restriction_ids=ids), logits)
    assert found.tokens[0] == 13 + gumbel_noise(4, 0, 0, 64)[13:33].argmax()


def test_sampling_follows_the_distribution_and_the_seed(device: Device) -> None:
    logits = np.log(np.tile(np.array([0.6, 0.3, 0.1], np.float32), (512, 1)))

    def tokens(seed: int, temperature: float) -> np.ndarray:
        return evaluated(
            device, LoopBuffers(device, rules(512, temperature=temperature, seed=seed), 512), logits
        ).tokens

    shares = np.bincount(np.concatenate([tokens(seed, 1.0) for seed in range(8)]), minlength=3) / 4096
    assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.03
    assert tokens(1, 1.0).tolist() == tokens(1, 1.0).tolist() != tokens(2, 1.0).tolist()
    assert set(tokens(1, 1e-3).tolist()) == {0}


def test_only_rows_that_may_be_committed_are_read(device: Device) -> None:
    """What is decided, behind the block or padding keeps its pick, and so does a canvas that is done."""
    schedule = Schedule(gen_length=6, block_length=3, steps=6)
    loop = LoopBuffers(device, Rules(schedule, Fixed(), GenerationConfig()), 8, sequences=2, mask=9)
    logits = np.tile(np.arange(10, dtype=np.float32), (2, 8, 1))
    rows = loop.put(np.arange(8) + 100)

    def evaluate() -> list[list[int]]:
        kernels.evaluate(device, loop.memory, loop.put(logits), rows, 8, 10, first=100)
        return loop.canvases["tokens"].tolist()

    canvases = loop.canvases
    canvases["tokens"] = -1
    canvases["masked"][0, 1] = 0
    canvases["state"]["done"][1] = 1
    loop.canvases = canvases
    untouched = [-1] * 8
    assert evaluate() == [[9, -1, 9, -1, -1, -1, -1, -1], untouched]
    loop.set_whole(True)
    assert evaluate() == [[9, -1, 9, 9, 9, 9, -1, -1], untouched]
    loop.canvases = canvases
    canvases["state"]["stop"][0] = 1
    loop.canvases = canvases
    assert evaluate() == [[9, -1, -1, -1, -1, -1, -1, -1], untouched]


def test_the_host_may_ask_for_any_rows(device: Device) -> None:
    loop = LoopBuffers(device, rules(2), 8, every_row=True)
    logits = np.eye(8, dtype=np.float32)
    assert evaluated(device, loop, logits, np.arange(8) - 3).tokens.tolist() == list(range(8))
