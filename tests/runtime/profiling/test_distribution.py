"""Percentiles by nearest rank."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.runtime.profiling.distribution import TAIL, Distribution

TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=150)


def test_of_the_first_hundred_numbers_the_percentiles_are_themselves() -> None:
    found = Distribution.of(range(1, 101))
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (50, 90, 95, 99, 100)
    assert (found.n, found.mean, found.std) == (100, 50.5, pytest.approx(math.sqrt((100**2 - 1) / 12)))


@given(TIMES)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(times: list[float]) -> None:
    found = Distribution.of(times)
    for percent, value in ((50, found.p50), (90, found.p90), (95, found.p95)):
        assert value in times
        assert sum(time <= value for time in times) * 100 >= percent * len(times)
        assert sum(time < value for time in times) * 100 < percent * len(times)


@given(TIMES)
def test_a_tail_is_said_only_of_enough_values(times: list[float]) -> None:
    assert (Distribution.of(times).p99 is None) == (len(times) < TAIL)
