"""GELU of normal values, against evenly drawn ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.export.gelu import mean_before_gelu, through_gelu

torch = pytest.importorskip("torch")

EVEN = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
"""As likely as one another."""

MEANS = st.floats(-6, 6)
DEVIATIONS = st.floats(0.1, 8)


@given(MEANS, DEVIATIONS)
def test_power_and_slope_are_those_of_drawn_values(mean: float, deviation: float) -> None:
    drawn = (mean + deviation * EVEN).requires_grad_()
    given_out = torch.nn.functional.gelu(drawn)
    (slopes,) = torch.autograd.grad(given_out.sum(), drawn)
    found = through_gelu(np.array([mean]), np.array([deviation]))
    assert found.power[0] == pytest.approx(given_out.detach().square().mean().item(), rel=0.05, abs=5e-3)
    assert found.slope[0] == pytest.approx(slopes.square().mean().item(), rel=0.05, abs=5e-3)


@given(st.lists(st.tuples(st.floats(-3, 6), DEVIATIONS), min_size=1, max_size=8))
def test_mean_is_found_from_what_is_left(features: list[tuple[float, float]]) -> None:
    mean, deviation = np.array(features).T
    power = through_gelu(mean, deviation).power
    again = through_gelu(mean_before_gelu(deviation, power), deviation).power
    np.testing.assert_allclose(again, power, rtol=0.02, atol=1e-4)


def test_feature_that_was_cut_off_lets_no_error_through() -> None:
    deviation = np.ones(2)
    mean = mean_before_gelu(deviation, np.array([0.0, 9.0]))
    slope = through_gelu(mean, deviation).slope
    assert slope[0] < 1e-6
    assert slope[1] > 0.9
