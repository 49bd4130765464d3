"""Merging features of crops and frames, beside the description and the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.golden import GoldenSet
from lladav.errors import ImageError
from lladav.manifest import Preprocessing
from lladav.runtime import merge

SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400))
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))
# A position on a map of 28 lines is rounded to 2e-6, and neighbouring features differ by up to about 8.
ATOL = 2e-5
MAX_TILES = st.sampled_from([None, 1, 2, 4])


def slow_merge(
    features: np.ndarray,
    newline: np.ndarray,
    size: tuple[int, int],
    grid: tuple[int, int],
    side: int,
    max_tiles: int | None,
) -> np.ndarray:
    """The merge as its description reads, on whole maps, with PyTorch's interpolation."""
    torch = pytest.importorskip("torch")
    (width, height), (columns, rows) = size, grid
    stitched = np.concatenate(
        [
            np.concatenate([features[1 + r * columns + c].reshape(side, side, -1) for c in range(columns)], axis=1)
            for r in range(rows)
        ],
        axis=0,
    )
    h, w, _ = stitched.shape
    if width / height > w / h:
        pad = (h - int(height * (w / width))) // 2
        stitched = stitched[pad : h - pad]
    else:
        pad = (w - int(width * (h / height))) // 2
        stitched = stitched[:, pad : w - pad]
    h, w, _ = stitched.shape
    if max_tiles and (times := math.sqrt(h * w / (max_tiles * side**2))) > 1.1:
        shape = [int(h // times), int(w // times)]
        channels_first = torch.from_numpy(stitched.copy()).permute(2, 0, 1)[None]
        stitched = torch.nn.functional.interpolate(channels_first, shape, mode="bilinear")[0].permute(1, 2, 0).numpy()
    lines = [np.concatenate([line, newline[None]]) for line in stitched]
    return np.concatenate([features[0], *lines])


def slow_video(features: np.ndarray, newline: np.ndarray, side: int, pre: Preprocessing) -> np.ndarray:
    torch = pytest.importorskip("torch")
    maps = torch.from_numpy(features).reshape(len(features), side, side, -1).permute(0, 3, 1, 2)
    if pre.video_pool_mode == "average":
        maps = torch.nn.functional.avg_pool2d(maps, pre.video_pool_stride)
    else:
        pooled = math.ceil(side / pre.video_pool_stride)
        maps = torch.nn.functional.interpolate(maps, (pooled, pooled), mode="bilinear")
    frames = maps.permute(0, 2, 3, 1).numpy()
    end = newline[None]
    if pre.video_newline == "grid":
        return np.concatenate([np.concatenate([line, end]) for frame in frames for line in frame])
    if pre.video_newline == "frame":
        return np.concatenate([np.concatenate([*frame, end]) for frame in frames])
    flat = frames.reshape(-1, frames.shape[-1])
    return np.concatenate([flat, end]) if pre.video_newline == "one_token" else flat


def random_features(
    crops: int, side: int, width: int = 5, dtype: type[np.floating] = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(crops * 100 + side)
    return rng.standard_normal((crops, side * side, width)).astype(dtype), rng.standard_normal(width).astype(np.float32)


# ------------------------------------------------------------------ against the recorded reference


def test_token_counts_of_a_hundred_sizes(golden_set: GoldenSet) -> None:
    layout = golden_set.facts["merge"]["layout"]
    assert len(layout) == 100
    for name, expected in layout.items():
        size = tuple(map(int, name.split("x")))
        plan = merge.merge_plan(size, tuple(expected["grid_w_h"]), 27, 4)
        rows, columns = expected["final_h_w"]
        assert len(plan) == expected["n_image_tokens"] == 729 + rows * (columns + 1), name
        assert plan.newlines().sum() == rows, name
        assert np.flatnonzero(plan.newlines())[0] == 729 + columns, name
        interpolated = (plan.weights[:, 1:] != 0).any()
        assert not interpolated or expected["interpolated"], name


@pytest.mark.parametrize(
    "size", ["640x480", "1024x768", "300x1800", "383x385", "769x769", "22x17", "3839x347", "25x10", "27x497"]
)
def test_every_row_comes_from_where_the_reference_takes_it(size: str, golden_set: GoldenSet) -> None:
    columns, rows = grid = tuple(golden_set.facts["merge"]["layout"][size]["grid_w_h"])
    y, x = np.mgrid[0:27, 0:27]
    coded = [np.stack([np.zeros_like(y), y, x], axis=-1).reshape(729, 3)]
    for r in range(rows):
        for c in range(columns):
            crop = np.full_like(y, 1 + r * columns + c)
            coded.append(np.stack([crop, y + 27 * r, x + 27 * c], axis=-1).reshape(729, 3))
    features = np.stack(coded).astype(np.float32)
    plan = merge.merge_plan(tuple(map(int, size.split("x"))), grid, 27, 4)
    got = merge.apply(plan, features, np.full(3, 7777, np.float32))
    np.testing.assert_allclose(got, golden_set.arrays[f"layout/{size}/coords"], rtol=0, atol=1e-4)


# ------------------------------------------------------------------------- against the slow version


@given(SIZES, GRIDS, st.integers(2, 7), MAX_TILES)
@settings(max_examples=150, deadline=None)
def test_merge_equals_the_slow_version(
    size: tuple[int, int], grid: tuple[int, int], side: int, max_tiles: int | None
) -> None:
    features, newline = random_features(1 + grid[0] * grid[1], side)
    try:
        plan = merge.merge_plan(size, grid, side, max_tiles)
    except ImageError:
        assume(False)
    got = merge.apply(plan, features, newline)
    np.testing.assert_allclose(got, slow_merge(features, newline, size, grid, side, max_tiles), rtol=0, atol=ATOL)


@given(
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(1, 3),
    st.sampled_from(["bilinear", "average"]),
    st.sampled_from(["grid", "frame", "one_token", "no_token"]),
)
@settings(max_examples=100, deadline=None)
def test_video_equals_the_slow_version(frames: int, side: int, stride: int, mode: Any, newline_place: Any) -> None:
    assume(stride <= side)
    pre = Preprocessing(
        crop_size=14 * side,
        grid_pinpoints=(),
        max_tiles=None,
        video_pool_stride=stride,
        video_pool_mode=mode,
        video_newline=newline_place,
    )
    features, newline = random_features(frames, side)
    plan = merge.video_plan(frames, side, pre)
    got = merge.apply(plan, features, newline)
    np.testing.assert_allclose(got, slow_video(features, newline, side, pre), rtol=0, atol=ATOL)


def test_video_of_the_real_size_has_14_rows_of_15_per_frame() -> None:
    pre = Preprocessing(crop_size=384, grid_pinpoints=(), max_tiles=4)
    assert len(merge.video_plan(8, 27, pre)) == 8 * 14 * 15


# ------------------------------------------------------------------------------------------- laws


@given(SIZES, GRIDS, st.integers(2, 9), MAX_TILES)
@settings(max_examples=150, deadline=None)
def test_weights_are_means_and_indices_exist(
    size: tuple[int, int], grid: tuple[int, int], side: int, max_tiles: int | None
) -> None:
    try:
        plan = merge.merge_plan(size, grid, side, max_tiles)
    except ImageError:
        assume(False)
    assert plan.weights.dtype == np.float32
    assert plan.indices.shape == plan.weights.shape
    assert plan.indices.min() >= 0
    assert plan.indices.max() <= plan.feature_rows == (1 + grid[0] * grid[1]) * side * side
    assert (plan.weights >= 0).all()
    np.testing.assert_allclose(plan.weights.sum(axis=1), 1, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(plan.indices[: side * side, 0], np.arange(side * side))
    interpolated = (plan.weights[:, 1:] != 0).any(axis=1)
    assert not (interpolated & (plan.indices == plan.feature_rows).any(axis=1)).any()


@pytest.mark.parametrize(("newline", "length"), [(True, 730), (False, 729)])
def test_a_single_crop_is_itself(newline: bool, length: int) -> None:
    features, end = random_features(1, 27)
    got = merge.apply(merge.crop_plan(27, newline=newline), features, end)
    assert len(got) == length
    np.testing.assert_array_equal(got[:729], features[0])
    if newline:
        np.testing.assert_array_equal(got[729], end)


def test_a_grid_of_nothing_is_the_base_crop() -> None:
    assert len(merge.merge_plan((640, 480), (0, 0), 27, 4)) == 729


def test_half_precision_features_are_merged_in_single_precision() -> None:
    plan = merge.merge_plan((400, 300), (4, 3), 5, 2)
    features, newline = random_features(13, 5, dtype=np.float16)
    got = merge.apply(plan, features, newline)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, merge.apply(plan, features.astype(np.float32), newline))


def test_the_result_is_written_where_asked() -> None:
    plan = merge.merge_plan((400, 300), (4, 3), 9, 2)
    features, newline = random_features(13, 9)
    whole = np.full((len(plan) + 20, 5), 9, np.float32)
    assert np.shares_memory(merge.apply(plan, features, newline, whole[10:-10]), whole)
    np.testing.assert_array_equal(whole[10:-10], merge.apply(plan, features, newline))
    assert (whole[:10] == 9).all()
    assert (whole[-10:] == 9).all()


def test_features_of_another_grid_are_refused() -> None:
    features, newline = random_features(3, 5)
    with pytest.raises(ValueError, match="325 feature rows, not 75"):
        merge.apply(merge.merge_plan((400, 300), (4, 3), 5, 2), features, newline)


def test_a_map_that_would_shrink_to_nothing_is_an_error() -> None:
    with pytest.raises(ImageError, match="image tokens") as caught:
        merge.merge_plan((400, 1), (12, 1), 3, 1)
    assert "crop" in caught.value.cure
