"""Features merged on a GPU, beside those merged on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_device import HostDevice
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from on_device import merged

from lladav.errors import ImageError
from lladav.manifest import Preprocessing
from lladav.runtime import merge

SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400))
GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 3))
WIDTH = 3


def random_features(rows: int, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    return rng.standard_normal((rows, width), np.float32), rng.standard_normal(width, np.float32)


@pytest.mark.usefixtures("compiled")
@given(SIZES, GRIDS, st.integers(2, 5), st.sampled_from([None, 1, 2]))
@settings(max_examples=25, deadline=None)
def test_rows_are_those_of_the_host_to_the_bit(
    size: tuple[int, int], grid: tuple[int, int], side: int, max_tiles: int | None
) -> None:
    try:
        plan = merge.merge_plan(size, grid, side, max_tiles)
    except ImageError:
        assume(False)
    features, newline = random_features(plan.feature_rows)
    device = HostDevice()
    got = merged(device, plan, features, newline)
    np.testing.assert_array_equal(got, merge.apply(plan, features, newline))
    device.check()


@pytest.mark.parametrize("mode", ["bilinear", "average"])
def test_a_video(mode: Any, device: HostDevice) -> None:
    pre = Preprocessing(crop_size=56, grid_pinpoints=(), max_tiles=None, video_pool_stride=3, video_pool_mode=mode)
    plan = merge.video_plan(2, 7, pre)
    features, newline = random_features(plan.feature_rows)
    np.testing.assert_array_equal(merged(device, plan, features, newline), merge.apply(plan, features, newline))


def test_rows_wider_than_a_block(device: HostDevice) -> None:
    plan = merge.crop_plan(2, newline=True)
    features, newline = random_features(4, 777)
    np.testing.assert_array_equal(merged(device, plan, features, newline), np.concatenate([features, newline[None]]))


def test_features_that_weigh_nothing_are_not_read(device: HostDevice) -> None:
    plan = merge.MergePlan(np.array([[0, 1]]), np.array([[1, 0]], np.float32), 2)
    features = np.array([[1, 2], [np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(merged(device, plan, features, np.zeros(2, np.float32)), features[:1])
