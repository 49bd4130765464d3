"""Tokens that are picked from logits, and the confidence in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.runtime.sampling import Sampler, guide, restrict, room_for
from lladav.runtime.template import Restriction


def sampler(size: int, suppressed: tuple[int, ...] = (), temperature: float = 0.0, seed: int = 0) -> Sampler:
    return Sampler(size, suppressed, temperature, np.random.default_rng(seed))


def pick(one: Sampler, row: np.ndarray) -> tuple[int, float]:
    picks = one.pick(row[None].copy())
    return int(picks.tokens[0]), float(picks.confidences[0])


@given(st.lists(st.floats(-60, 60, width=32), min_size=3, max_size=200), st.integers(0, 2))
def test_confidence_is_the_float64_softmax(row: list[float], banned: int) -> None:
    logits = np.array(row, np.float32)
    allowed = logits.astype(np.float64)
    allowed[banned] = -np.inf
    expected = np.exp(allowed - allowed.max())
    expected /= expected.sum()

    token, confidence = pick(sampler(len(row), (banned,)), logits)
    assert token == int(np.argmax(allowed))
    assert confidence == pytest.approx(expected[token], rel=1e-5)


def test_lowest_id_wins_a_tie() -> None:
    assert pick(sampler(5), np.array([0, 3, 1, 3, 3], np.float32))[0] == 1


def test_confidences_next_to_one_keep_their_order() -> None:
    surer = pick(sampler(3), np.array([30, 0, 0], np.float32))[1]
    less = pick(sampler(3), np.array([29, 0, 0], np.float32))[1]
    assert 1 > surer > less


def test_sampling_follows_the_distribution_and_the_seed() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))

    def draw(seed: int) -> list[int]:
        one = sampler(3, temperature=1.0, seed=seed)
        return [pick(one, logits)[0] for _ in range(4000)]

    shares = np.bincount(draw(1), minlength=3) / 4000
    assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.03
    assert draw(2) == draw(2) != draw(3)


def test_sampled_confidence_is_free_of_noise() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    for seed in range(20):
        token, confidence = pick(sampler(3, temperature=2.0, seed=seed), logits)
        assert confidence == pytest.approx([0.6, 0.3, 0.1][token], rel=1e-5)


def test_rows_are_picked_as_one_by_one() -> None:
    """Across the parts that rows are worked on in, with and without noise."""
    logits = np.random.default_rng(0).normal(0, 3, (70, 5000)).astype(np.float32)
    for temperature in (0.0, 0.8):
        together = sampler(5000, (7, 9), temperature, 4).pick(logits.copy())
        one = sampler(5000, (7, 9), temperature, 4)
        apart = [pick(one, row) for row in logits]
        assert together.tokens.tolist() == [token for token, _ in apart]
        assert together.confidences.tolist() == [confidence for _, confidence in apart]


def test_threads_change_nothing() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (7, 90_000)).astype(np.float32)
    one, three = (
        Sampler(90_000, (5,), 0.0, np.random.default_rng(0), entropy=True, room=room_for(90_000, threads)).pick(
            logits.copy()
        )
        for threads in (1, 3)
    )
    assert one.tokens.tolist() == three.tokens.tolist()
    assert one.confidences.tolist() == three.confidences.tolist()
    assert one.entropies is not None
    assert three.entropies is not None
    assert one.entropies.tolist() == three.entropies.tolist()


@given(st.lists(st.floats(-40, 40, width=32), min_size=2, max_size=50))
def test_entropy(row: list[float]) -> None:
    logits = np.array(row, np.float64)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    expected = -float((share[share > 0] * np.log(share[share > 0])).sum())
    one = Sampler(len(row), (), 0.0, np.random.default_rng(0), entropy=True)
    found = one.pick(np.array([row], np.float32)).entropies
    assert found is not None
    assert found[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("allowed", [True, False])
def test_restriction(allowed: bool) -> None:
    logits = np.arange(6, dtype=np.float32)
    restrict(logits, Restriction(np.array([1, 5]), allowed))
    standing = np.flatnonzero(logits > -np.inf).tolist()
    assert standing == ([1, 5] if allowed else [0, 2, 3, 4])
    assert logits[standing].tolist() == standing


def test_suppressed_tokens_are_never_sampled() -> None:
    one = sampler(3, (0,), temperature=5.0)
    assert all(pick(one, np.array([50, 0, 0], np.float32))[0] != 0 for _ in range(200))


def test_guidance() -> None:
    conditional, unconditional = np.array([1.0, 2.0], np.float32), np.array([0.5, 3.0], np.float32)
    guide(conditional, unconditional, 1.5)
    np.testing.assert_allclose(conditional, [0.5 + 2.5 * 0.5, 3.0 + 2.5 * -1.0])
