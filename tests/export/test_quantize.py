"""Round to nearest: what holds for every weight."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lladav.export.graph_form import LinearForm
from lladav.export.quantize import LEVELS, dequantized, packed, round_to_nearest, scales_for, unpacked

FORMS = (LinearForm("int8"), LinearForm("int4", 4))
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)

values = st.floats(-60000, 60000, width=32)
rows = st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 4 * n)).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=values)
)
forms = st.sampled_from(FORMS)
dtypes = st.sampled_from(DTYPES)


def steps(scales: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The step of every value of `like`."""
    return np.repeat(scales.astype(np.float32), like.shape[1] // scales.shape[1], axis=1)


@example(np.full((1, 4), 2.69e-42, np.float32), FORMS[0], np.float32)
@given(rows, forms, dtypes)
def test_values_are_at_most_half_a_step_away(weights: np.ndarray, form: LinearForm, dtype: Any) -> None:
    found = round_to_nearest(weights, form, dtype)
    lowest, highest = LEVELS[form.weights]
    assert found.codes.dtype == np.int8
    assert lowest <= found.codes.min() <= found.codes.max() <= highest
    assert found.scales.dtype == dtype
    assert found.scales.shape == (len(weights), weights.shape[1] // (form.block or weights.shape[1]))
    step = steps(found.scales, weights)
    assert (np.abs(dequantized(found) - weights) <= step * (0.5 + 2.0**-15)).all()


@given(rows, forms, dtypes)
def test_steps_are_as_small_as_the_range_allows(weights: np.ndarray, form: LinearForm, dtype: Any) -> None:
    lowest, highest = LEVELS[form.weights]
    blocks = weights.reshape(len(weights), -1, form.block or weights.shape[1])
    needed = np.maximum(blocks.max(-1) / highest, blocks.min(-1) / lowest)
    scales = round_to_nearest(weights, form, dtype).scales.astype(np.float32)
    info = ml_dtypes.finfo(dtype)
    spacing = np.maximum(needed * float(info.eps), float(info.smallest_subnormal))
    assert ((scales >= needed) & ((scales <= needed + spacing) | (needed == 0))).all()


@given(rows, forms, st.sampled_from((np.float32, np.float16)))
def test_what_was_rounded_stays(weights: np.ndarray, form: LinearForm, dtype: Any) -> None:
    """In bfloat16 a scale may be rounded up by so much that the highest code is not used."""
    once = round_to_nearest(weights, form, dtype)
    again = round_to_nearest(dequantized(once), form, dtype)
    np.testing.assert_array_equal(dequantized(again), dequantized(once))


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_zeros_stay_zeros(form: LinearForm) -> None:
    weights = np.array([[0.0] * 8, [1.0] * 8], np.float32)
    found = round_to_nearest(weights, form, np.float16)
    assert not found.codes[0].any()
    assert (found.scales[0] == 1).all()
    np.testing.assert_allclose(dequantized(found)[1], 1, rtol=1e-3)


def test_4_bits_use_the_lowest_code() -> None:
    """Which makes the step smaller where the largest magnitude is negative."""
    found = round_to_nearest(np.array([[-8, 7, 3, 0]], np.float32), LinearForm("int4", 4), np.float32)
    assert found.codes.tolist() == [[-8, 7, 3, 0]]
    assert found.scales.tolist() == [[1]]


def test_a_block_does_not_see_another() -> None:
    weights = np.array([[1e-3, -2e-3, 7e-3, 0, 7e3, 1, 1, 1]], np.float32)
    found = round_to_nearest(weights, LinearForm("int4", 4), np.float32)
    np.testing.assert_allclose(dequantized(found)[0, :5], weights[0, :5], atol=1e-6)


@given(st.floats(0, 500, width=32), dtypes)
def test_scales_are_rounded_up(step: float, dtype: Any) -> None:
    stored = float(scales_for(step, dtype))
    assert stored >= step
    assert stored > 0


@given(arrays.arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.integers(-8, 7)))
def test_packing_4_bits(codes: np.ndarray) -> None:
    stored = packed(codes)
    assert stored.nbytes == -(-codes.size // 2)
    np.testing.assert_array_equal(unpacked(stored, codes.shape), codes)


def test_packing_is_that_of_onnx() -> None:
    from onnx import helper, numpy_helper

    codes = np.array([[-8, -1, 0], [7, 3, -5]], np.int8)
    theirs = numpy_helper.from_array(codes.astype(ml_dtypes.int4))
    assert theirs.raw_data == packed(codes).tobytes()
    assert theirs.data_type == helper.np_dtype_to_tensor_dtype(np.dtype(ml_dtypes.int4))
