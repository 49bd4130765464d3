"""How much answers repeat themselves."""

from __future__ import annotations

import pytest

from benchmarks.repetition import repetition


def test_repetition() -> None:
    arr, srr, (two, three, four) = repetition([(1, 2, 3), (1, 1, 1, 1), (1, 2, 1, 2)])
    assert arr == pytest.approx(3 / 11)
    assert srr == pytest.approx(1 / 3)
    assert two == pytest.approx((0 + 2 / 3 + 1 / 3) / 3)
    assert three == pytest.approx((0 + 1 / 2 + 0) / 3)
    assert four == 0


def test_nothing_repeats_in_nothing() -> None:
    assert repetition([]) == (0.0, 0.0, (0.0, 0.0, 0.0))
    assert repetition([()]) == (0.0, 0.0, (0.0, 0.0, 0.0))
