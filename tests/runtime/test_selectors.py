"""Which positions a step commits: each rule beside its pseudocode, and what holds for all."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lladav.errors import OptionError
from lladav.runtime.selectors import (
    Entropy,
    Factor,
    Fixed,
    Frechet,
    Scores,
    Selector,
    Threshold,
    make_selector,
)

# Multiples of 1/64 add up without rounding, so that ties and bounds that are met exactly can be
# compared exactly; the seeded cases below are ordinary floats.
EXACT = st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=1, max_size=12)
ANY = st.one_of(EXACT, st.lists(st.floats(0, 1), min_size=1, max_size=40))
ADAPTIVE: list[Selector] = [Threshold(), Factor(), Factor(accept_last=True), Frechet(), Entropy()]
few = settings(max_examples=60)


def scores(values: list[float], entropy: list[float] | None = None) -> Scores:
    return Scores(np.array(values, np.float64), None if entropy is None else np.array(entropy, np.float64))


def chosen(selector: Selector, values: list[float], quota: int = 1) -> list[int]:
    """Indices; the numbers are entropies to a selector that needs them."""
    given_scores = scores([0.5] * len(values), values) if selector.needs_entropy else scores(values)
    found = selector.select(given_scores, quota)
    assert found.dtype == np.int64
    return found.tolist()


def seeded_cases(count: int = 150) -> list[list[float]]:
    rng = np.random.default_rng(7)
    cases = []
    for _ in range(count):
        values = rng.random(rng.integers(1, 30)) ** rng.choice([0.02, 0.1, 1.0])
        if rng.random() < 0.3:
            values = values.round(1)
        cases.append(values.tolist())
    return cases


# ------------------------------------------------------- the pseudocode, one position at a time


def ranked(values: list[float], *, ascending: bool = False) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (values[i] if ascending else -values[i], i))


def slow_fixed(values: list[float], quota: int) -> list[int]:
    left, found = list(range(len(values))), []
    while left and len(found) < quota:
        best = left[0]
        for i in left:
            if values[i] > values[best]:
                best = i
        left.remove(best)
        found.append(best)
    return found


def slow_threshold(values: list[float], threshold: float) -> list[int]:
    order = ranked(values)
    found = [i for i in order if values[i] >= threshold]
    return found or order[:1]


def slow_factor(values: list[float], factor: float) -> list[int]:
    found: list[int] = []
    for n, i in enumerate(ranked(values), 1):
        if n > 1 and values[i] < 1 - factor / (n + 1):
            break
        found.append(i)
    return found


def slow_count_factor(values: list[float], factor: float) -> list[int]:
    """Fast-dLLM++: as many as pass, wherever they stand."""
    order = ranked(values)
    passing = [values[i] >= 1 - factor / (n + 1) for n, i in enumerate(order, 1)]
    return order[: max(1, sum(passing))]


def slow_hook_factor(values: list[float], factor: float) -> list[int]:
    """`_get_transfer_index` of `fast_dllm_hook.py`, line by line."""
    order = ranked(values)
    bounds = [1 - factor / (n + 1) for n in range(1, len(order) + 1)]
    bounds[0] = -1
    for top, bound in enumerate(bounds):
        if values[order[top]] < bound:
            break
    if top in (0, len(bounds) - 1):
        top += 1
    return order[:top]


def slow_frechet(values: list[float], delta: float) -> list[int]:
    order = ranked(values)
    count = 0
    for n in range(1, len(order) + 1):
        joint = sum(Fraction(values[i]) for i in order[:n]) - (n - 1)
        count += joint - (1 - Fraction(values[order[n - 1]])) > Fraction(delta)
    return order[: max(1, count)]


def slow_entropy(values: list[float], gamma: float) -> list[int]:
    order = ranked(values, ascending=True)
    count = 0
    for n in range(1, len(order) + 1):
        total = sum(Fraction(values[i]) for i in order[:n])
        count += total - Fraction(values[order[n - 1]]) <= Fraction(gamma)
    return order[:count]


@few
@given(ANY, st.integers(1, 45))
def test_fixed_is_the_schedule(values: list[float], quota: int) -> None:
    assert chosen(Fixed(), values, quota) == slow_fixed(values, quota)
    assert chosen(Fixed(), values, quota) == np.argsort(-np.array(values), kind="stable")[:quota].tolist()


@few
@given(ANY, st.integers(1, 64).map(lambda n: n / 64))
def test_threshold_is_its_pseudocode(values: list[float], threshold: float) -> None:
    assert chosen(Threshold(threshold), values) == slow_threshold(values, threshold)


@few
@given(ANY, st.integers(1, 192).map(lambda n: n / 64))
def test_factor_is_its_pseudocode(values: list[float], factor: float) -> None:
    assert chosen(Factor(factor), values) == slow_factor(values, factor)
    assert chosen(Factor(factor, accept_last=True), values) == slow_hook_factor(values, factor)


@few
@given(ANY, st.integers(1, 192).map(lambda n: n / 64))
def test_longest_prefix_is_the_count_of_those_that_pass(values: list[float], factor: float) -> None:
    assert chosen(Factor(factor), values) == slow_count_factor(values, factor)


@few
@given(EXACT, st.integers(0, 63).map(lambda n: n / 64))
def test_frechet_is_its_pseudocode(values: list[float], delta: float) -> None:
    assert chosen(Frechet(delta), values) == slow_frechet(values, delta)


@few
@given(EXACT, st.integers(0, 128).map(lambda n: n / 64))
def test_entropy_is_its_pseudocode(values: list[float], gamma: float) -> None:
    assert chosen(Entropy(gamma), values) == slow_entropy(values, gamma)


def test_all_are_their_pseudocode_on_ordinary_floats() -> None:
    for values in seeded_cases():
        entropies = [-np.log(v) if v else 3.0 for v in values]
        assert chosen(Threshold(0.9), values) == slow_threshold(values, 0.9)
        assert chosen(Factor(1.0), values) == slow_factor(values, 1.0)
        assert chosen(Factor(1.0, accept_last=True), values) == slow_hook_factor(values, 1.0)
        assert chosen(Frechet(0.203), values) == slow_frechet(values, 0.203)
        assert chosen(Entropy(0.101), entropies) == slow_entropy(entropies, 0.101)


# ------------------------------------------------------------------------- what holds for all


@few
@given(ANY, st.integers(1, 45), st.sampled_from([Fixed(), *ADAPTIVE]))
def test_at_least_one_without_repetition_and_the_best_first(values: list[float], quota: int, one: Selector) -> None:
    found = chosen(one, values, quota)
    assert found
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(len(values)))
    assert found == ranked(values, ascending=one.needs_entropy)[: len(found)]


@pytest.mark.parametrize("one", ADAPTIVE)
def test_the_quota_is_for_the_fixed_schedule_only(one: Selector) -> None:
    values = [0.99, 0.2, 0.98, 0.97]
    assert chosen(one, values, 1) == chosen(one, values, 4)


@pytest.mark.parametrize("one", [Fixed(), *ADAPTIVE])
def test_no_position_gives_no_index(one: Selector) -> None:
    assert chosen(one, [], 3) == []


@pytest.mark.parametrize("one", [Fixed(), *ADAPTIVE])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_one_position_is_always_committed(one: Selector, value: float) -> None:
    assert chosen(one, [value]) == [0]


@pytest.mark.parametrize("one", [Threshold(), Threshold(1.0), Factor(), Factor(1e-6), Frechet(), Frechet(0.999)])
def test_certain_positions_all_go_in_the_order_of_the_canvas(one: Selector) -> None:
    assert chosen(one, [1.0] * 300) == list(range(300))


@pytest.mark.parametrize("one", [Threshold(), Factor(), Frechet()])
@pytest.mark.parametrize("hopeless", [0.0, -np.inf])
def test_hopeless_positions_leave_one_commit(one: Selector, hopeless: float) -> None:
    assert chosen(one, [hopeless] * 5) == [0]
    assert chosen(one, [hopeless, 0.99, hopeless, 0.98, hopeless]) == [1, 3]


def test_positions_without_a_bound_on_their_entropy_come_last() -> None:
    assert chosen(Entropy(), [np.inf, 0.01, np.inf, 0.02]) == [1, 3, 0]
    assert chosen(Entropy(), [np.inf, np.inf]) == [0]


def test_a_quota_of_nothing_commits_nothing() -> None:
    assert chosen(Fixed(), [0.9, 0.8], 0) == []


def test_many_small_doubts_are_not_lost() -> None:
    # 20,000 doubts of 1e-6 each: L_n falls below 0.99 after 10,000.
    found = chosen(Frechet(0.99), [1 - 1e-6] * 20_000)
    assert len(found) == pytest.approx(10_000, abs=2)


# ---------------------------------------------------------------------------------- nesting


def within(smaller: list[int], larger: list[int]) -> bool:
    return larger[: len(smaller)] == smaller


@few
@given(ANY, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_lower_threshold_commits_more(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert within(chosen(Threshold(high), values), chosen(Threshold(low), values))


@few
@given(ANY, st.floats(0.01, 4), st.floats(0.01, 4), st.booleans())
def test_a_larger_factor_commits_more(values: list[float], one: float, other: float, accept: bool) -> None:
    low, high = sorted((one, other))
    assert within(chosen(Factor(low, accept), values), chosen(Factor(high, accept), values))
    assert within(chosen(Factor(low), values), chosen(Factor(low, accept), values))


@few
@given(ANY, st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_smaller_delta_commits_more(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert within(chosen(Frechet(high), values), chosen(Frechet(low), values))


@few
@given(ANY, st.floats(0, 3), st.floats(0, 3))
def test_a_larger_gamma_commits_more(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert within(chosen(Entropy(low), values), chosen(Entropy(high), values))


@few
@given(ANY, st.floats(0.01, 0.99))
def test_frechet_never_commits_fewer_than_the_factor_it_matches(values: list[float], factor: float) -> None:
    # At equality the factor commits and Fréchet does not: the hair is for those ties.
    delta = max(0.0, 1 - factor - 1e-9)
    assert within(chosen(Factor(factor), values), chosen(Frechet(delta), values))


def test_the_last_of_all_goes_with_the_one_before() -> None:
    # Bounds are none, 2/3, 3/4: the third of three fails alone, the third of four does not.
    assert chosen(Factor(accept_last=True), [0.9, 0.1]) == [0, 1]
    assert chosen(Factor(accept_last=True), [0.9, 0.8, 0.1]) == [0, 1, 2]
    assert chosen(Factor(accept_last=True), [0.9, 0.8, 0.1, -np.inf]) == [0, 1]
    assert chosen(Factor(), [0.9, 0.8, 0.1]) == [0, 1]


# -------------------------------------------------------------------------------- construction


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Threshold(0.0), "--threshold 0"),
        (lambda: Threshold(1.01), "--threshold 1.01"),
        (lambda: Threshold(float("nan")), "--threshold nan"),
        (lambda: Factor(0.0), "--factor 0"),
        (lambda: Factor(float("inf")), "--factor inf"),
        (lambda: Frechet(-0.1), "--delta -0.1"),
        (lambda: Frechet(1.0), "--delta 1"),
        (lambda: Entropy(-1e-3), "--gamma -0.001"),
        (lambda: Entropy(float("nan")), "--gamma nan"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], Selector], option: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert option in caught.value.what
    assert option.split()[0] in caught.value.cure


def test_selectors_by_name() -> None:
    nothing = dict.fromkeys(("threshold", "factor", "delta", "gamma"))
    assert make_selector("fixed", **nothing) == Fixed()
    assert make_selector("threshold", **nothing) == Threshold(0.9)
    assert make_selector("factor", **nothing) == Factor(1.0, accept_last=False)
    assert make_selector("frechet", **nothing) == Frechet(0.2)
    assert make_selector("entropy", **nothing) == Entropy(0.1)
    assert make_selector("threshold", **nothing | {"threshold": 0.5}) == Threshold(0.5)
    assert make_selector("factor", **nothing | {"factor": 0.75}) == Factor(0.75)
    assert make_selector("frechet", **nothing | {"delta": 0.0}) == Frechet(0.0)
    assert make_selector("entropy", **nothing | {"gamma": 0.0}) == Entropy(0.0)


@pytest.mark.parametrize("name", ["fixed", "threshold", "factor", "frechet", "entropy"])
@pytest.mark.parametrize(
    ("option", "owner"), [("threshold", "threshold"), ("factor", "factor"), ("delta", "frechet"), ("gamma", "entropy")]
)
def test_parameters_of_another_selector_are_refused(name: str, option: str, owner: str) -> None:
    if name == owner:
        return
    nothing = dict.fromkeys(("threshold", "factor", "delta", "gamma"))
    with pytest.raises(OptionError) as caught:
        make_selector(name, **nothing | {option: 0.5})
    assert f"--{option} 0.5" in caught.value.what
    assert f"--selector {name}" in caught.value.what
    assert f"--selector {owner}" in caught.value.cure


def test_entropies_are_required_where_they_decide() -> None:
    with pytest.raises(ValueError, match="entropies"):
        Entropy().select(scores([0.5]), 1)
