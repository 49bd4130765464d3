"""Resampling in integers, beside Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lladav.runtime.gpu.resampling import WEIGHT_BITS, bicubic, resample
from lladav.runtime.images import resize

LENGTHS = st.integers(1, 250)


def picture(width: int, height: int, *, sharp: bool = False) -> np.ndarray:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return np.where(pixels < 128, 0, 255).astype(np.uint8) if sharp else pixels


def resampled(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    rows = resample(pixels.swapaxes(0, 1), bicubic(pixels.shape[1], width)).swapaxes(0, 1)
    return resample(rows, bicubic(pixels.shape[0], height))


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_pixels_are_those_of_pillow_byte_for_byte(
    width: int, height: int, target_width: int, target_height: int, sharp: bool
) -> None:
    pixels = picture(width, height, sharp=sharp)
    expected = np.asarray(resize(Image.fromarray(pixels), (target_width, target_height)))
    np.testing.assert_array_equal(resampled(pixels, target_width, target_height), expected)


@pytest.mark.parametrize(
    ("size", "target"),
    [((1920, 1080), (384, 384)), ((9000, 3), (384, 2)), ((1, 1), (384, 384)), ((2, 3000), (1, 2304))],
)
def test_real_sizes_and_ribbons(size: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = picture(*size, sharp=True)
    np.testing.assert_array_equal(resampled(pixels, *target), np.asarray(resize(Image.fromarray(pixels), target)))


@given(LENGTHS, LENGTHS)
def test_sums_stay_within_the_picture_and_keep_what_is_even(source: int, target: int) -> None:
    axis = bicubic(source, target)
    assert axis.first.min() >= 0
    assert (axis.first + len(axis.weights)).max() <= source
    assert abs(axis.weights.sum(axis=0) - (1 << WEIGHT_BITS)).max() <= len(axis.weights) / 2
    for level in (0, 127, 255):
        assert (resample(np.full(source, level, np.uint8), axis) == level).all()


@given(LENGTHS)
def test_the_same_length_is_a_copy(length: int) -> None:
    pixels = picture(1, length)
    np.testing.assert_array_equal(resample(pixels, bicubic(length, length)), pixels)
