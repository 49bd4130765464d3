"""Reduction: equal however the rows come, bounded, and strict about what is no number."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lladav.calib.collector import Collector, refuse_constant
from lladav.errors import CalibrationError
from lladav.statistics import Statistics
from lladav.statistics_header import Condition, GraphRecord, Header

FEW, MANY = Condition(kind="step", where="canvas", mask_ratio=0.05), Condition(kind="refresh", where="text")
CONDITIONS = {"denoiser": (FEW, MANY)}


def nothing(**channels: int) -> Statistics:
    record = GraphRecord(conditions=CONDITIONS["denoiser"], linears={name: name for name in channels})
    return Statistics.empty(Header.model_construct(graphs={"denoiser": record}), channels)


def seen_at_once(values: np.ndarray, conditions: list[Condition]) -> Mapping[str, np.ndarray]:
    arrays = nothing(layer=values.shape[1]).arrays
    Collector(CONDITIONS, arrays).counting("denoiser", conditions)("layer", values)
    return arrays


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 299), max_size=5))
def test_rows_may_come_in_any_parts(seed: int, cuts: list[int]) -> None:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((300, 3)).astype(np.float32) * draw.choice([1e-6, 1.0, 1e4], (1, 3))
    values = values.astype(np.float32)
    conditions = [CONDITIONS["denoiser"][i] for i in draw.integers(0, 2, 300)]
    parts = nothing(layer=3).arrays
    collector = Collector(CONDITIONS, parts)
    for part in np.split(np.arange(300), sorted(set(cuts))):
        collector.counting("denoiser", [conditions[i] for i in part])("layer", values[part])
    whole = seen_at_once(values, conditions)
    np.testing.assert_array_equal(parts["layer/absmax"], whole["layer/absmax"])
    np.testing.assert_array_equal(parts["layer/histogram"], whole["layer/histogram"])
    np.testing.assert_allclose(parts["layer/square_sum"], whole["layer/square_sum"], rtol=1e-12)
    few = values[[condition == FEW for condition in conditions]]
    np.testing.assert_array_equal(whole["layer/absmax"][0], np.abs(few).max(axis=0, initial=0))
    np.testing.assert_allclose(whole["layer/square_sum"][0], np.square(few.astype(np.float64)).sum(axis=0))
    assert whole["layer/histogram"][0].sum() == few.size


def test_activations_with_rows_of_two_counts() -> None:
    arrays = nothing(wide=4, narrow=4).arrays
    count = Collector(CONDITIONS, arrays).counting("denoiser", [FEW], [MANY, MANY])
    count("wide", np.ones((1, 2, 4), np.float32))
    count("narrow", np.ones((1, 1, 4), np.float32))
    assert arrays["wide/absmax"].max(axis=1).tolist() == [0, 1]
    assert arrays["narrow/absmax"].max(axis=1).tolist() == [1, 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 299), st.sampled_from((12, 256, 512)))
@settings(deadline=None, max_examples=30)
def test_moments_are_of_blocks_of_all_rows(seed: int, cut: int, channels: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((300, channels)).astype(np.float32)
    name = "model.layers.0.mlp.up_proj"
    found = nothing(**{name: channels})
    collector = Collector(CONDITIONS, found.arrays)
    for part in (values[:cut], values[cut:]):
        collector.counting("denoiser", [CONDITIONS["denoiser"][i] for i in draw.integers(0, 2, len(part))])(name, part)
    whole, size = values.astype(np.float64).T @ values, min(channels, 256) if channels > 12 else 4
    moments = found.moments(name)
    assert moments.shape == (channels // size, size, size)
    for number, block in enumerate(moments):
        place = slice(number * size, (number + 1) * size)
        np.testing.assert_allclose(block, whole[place, place], atol=1e-3)
    squares = found.of(name).mean_square * 300
    np.testing.assert_allclose(np.einsum("nii->ni", moments).ravel(), squares, rtol=1e-5)


def test_memory_does_not_grow_with_rows() -> None:
    values = np.ones((40_000, 64), np.float32)
    collector = Collector(CONDITIONS, nothing(layer=64).arrays)
    conditions = [FEW] * len(values)
    tracemalloc.start()
    collector.counting("denoiser", conditions)("layer", values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < values.nbytes / 4


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_name_the_layer(wrong: float) -> None:
    values = np.ones((5, 4), np.float32)
    values[3, 2] = wrong
    collector = Collector(CONDITIONS, nothing(down_proj=4).arrays)
    with pytest.raises(CalibrationError, match=r"input of down_proj .* 1 of 4 channels, channel 2 first"):
        collector.counting("denoiser", [FEW] * 5)("down_proj", values)


@pytest.mark.parametrize(("value", "said"), [(0.0, "is 0"), (0.3, "has the same absolute values")])
def test_constant_inputs_name_the_layer(value: float, said: str) -> None:
    statistics = nothing(good=2, bad=2)
    collector = Collector(CONDITIONS, statistics.arrays)
    constant = np.array([[value, -3 * value]] * 4, np.float32)
    for tensor, values in (("good", constant + np.arange(4, dtype=np.float32)[:, None]), ("bad", constant)):
        collector.counting("denoiser", [FEW, FEW, MANY, MANY])(tensor, values)
    with pytest.raises(CalibrationError, match=f"input of bad {said} at all 4 positions"):
        refuse_constant(statistics)
    collector.counting("denoiser", [FEW] * 4)("bad", constant + 1)
    refuse_constant(statistics)
