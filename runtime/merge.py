"""Where each row of a picture's embedding comes from: the anyres merge as indices and weights.

The merge stitches the crops' features to one map, cuts off what is padding, shrinks a map that
is too large, and ends every row of it with `image_newline`. All of that is linear in the
features and depends on sizes alone, so it is planned before any feature exists, and the number
of image tokens is known as soon as the picture's header is read.

Behaviour of `prepare_inputs_labels_for_multimodal`, `unpad_image` and `get_2dPool` in the
authors' `llava/model/llava_arch.py`, recorded in tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lladav.errors import ImageError
from lladav.manifest import Preprocessing

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# Below this ratio the authors leave a map that is somewhat too large as it is.
_SHRINK_ABOVE = 1.1
# Rows handled at once: 4 MiB of float32 at the real width, which stays in cache.
_CHUNK = 256


@dataclass(frozen=True)
class MergePlan:
    """Output row i is the sum over j of `weights[i, j] * table[indices[i, j]]`.

    The table is the feature rows of all crops, with `image_newline` as its last row.

    Attributes:
        indices: int64 `[n, K]`; K is 1 where nothing is interpolated, 4 with bilinear weights.
        weights: float32 `[n, K]`, rows summing to 1. Unused taps weigh 0, and newline rows
            have nothing else in them.
        feature_rows: rows of the table before the newline.
    """

    indices: Indices
    weights: Floats
    feature_rows: int

    def __len__(self) -> int:
        return len(self.indices)

    def newlines(self) -> npt.NDArray[np.bool_]:
        """Which output rows are `image_newline`: `[n]`."""
        is_newline: npt.NDArray[np.bool_] = self.indices[:, 0] == self.feature_rows
        return is_newline


def apply(plan: MergePlan, features: npt.NDArray[np.floating], newline: Floats, out: Floats | None = None) -> Floats:
    """Carries out a plan.

    Args:
        plan: what to do.
        features: `[T, N, D]` connector output of all crops of the picture, float32 or float16.
        newline: `[D]`.
        out: where to write, float32 `[len(plan), D]`.

    Returns:
        `out`, or a new array.
    """
    rows = features.reshape(-1, features.shape[-1])
    if len(rows) != plan.feature_rows:
        raise ValueError(f"the plan is for {plan.feature_rows} feature rows, not {len(rows)}")
    if out is None:
        out = np.empty((len(plan), rows.shape[1]), np.float32)
    newlines = plan.newlines()
    for start in range(0, len(plan), _CHUNK):
        part = slice(start, start + _CHUNK)
        # Newline rows are clipped to a feature row here and written last.
        indices, weights = np.minimum(plan.indices[part], plan.feature_rows - 1), plan.weights[part]
        block = out[part]
        block[...] = rows[indices[:, 0]]
        if weights[:, 1:].any():
            block *= weights[:, :1]
            for tap in range(1, weights.shape[1]):
                block += rows[indices[:, tap]].astype(np.float32, copy=False) * weights[:, tap, None]
        block[newlines[part]] = newline
    return out


def merge_plan(size: tuple[int, int], grid: tuple[int, int], side: int, max_tiles: int | None) -> MergePlan:
    """The plan for one picture.

    Args:
        size: width and height of the picture in pixels.
        grid: columns and rows of crops; `(0, 0)` for the base crop alone, which then gets no
            newline, as in the authors' evaluation with several pictures.
        side: feature rows along one side of a crop.
        max_tiles: map size in crops above which the map is shrunk; None never shrinks it.

    Raises:
        ImageError: the map is so narrow that shrinking leaves nothing, where the reference fails.
    """
    columns, rows = grid
    if columns * rows == 0:
        return crop_plan(side, newline=False)
    tiles = np.arange(side * side, (1 + columns * rows) * side * side).reshape(rows, columns, side, side)
    stitched = _unpad(tiles.swapaxes(1, 2).reshape(rows * side, columns * side), size)
    indices, weights = _one_tap(stitched)
    height, width = stitched.shape
    times = math.sqrt(height * width / (max_tiles * side * side)) if max_tiles else 0.0
    if times > _SHRINK_ABOVE:
        smaller = int(height // times), int(width // times)
        if 0 in smaller:
            raise ImageError(
                f"a picture of {size[0]} x {size[1]} pixels would become {smaller[1]} x {smaller[0]} image tokens",
                cure="crop it to a less extreme shape",
            )
        indices, weights = _bilinear(stitched, smaller)
    newline = (1 + columns * rows) * side * side
    grid_indices, grid_weights = _end_rows(indices, weights, newline)
    base = np.arange(side * side).reshape(-1, 1)
    return _join([_one_tap(base), (grid_indices, grid_weights)], newline)


def crop_plan(side: int, *, newline: bool) -> MergePlan:
    """The plan for a picture that is a single crop.

    Args:
        side: feature rows along one side of the crop.
        newline: one newline after the crop, as the reference does when it gets a list of single
            crops; none, as when it gets them stacked in one tensor.
    """
    rows = side * side
    return _join([_one_tap(np.arange(rows + newline))], rows)


def video_plan(frames: int, side: int, pre: Preprocessing) -> MergePlan:
    """The plan for a video of `frames` single crops: pooled, then ended as `video_newline` says.

    "grid" ends every row of every frame with a newline, "frame" every frame, "one_token" the
    whole video, "no_token" nothing.
    """
    stride, newline = pre.video_pool_stride, frames * side * side
    frame = np.arange(side * side).reshape(side, side)
    if pre.video_pool_mode == "bilinear":
        pooled = math.ceil(side / stride)
        indices, weights = _bilinear(frame, (pooled, pooled))
    else:
        indices, weights = _average(frame, stride)
    height, width, taps = indices.shape
    indices = indices + (np.arange(frames) * side * side).reshape(-1, 1, 1, 1)
    weights = np.broadcast_to(weights, indices.shape)
    line = {
        "grid": (frames * height, width),
        "frame": (frames, height * width),
        "one_token": (1, frames * height * width),
        "no_token": (frames * height * width, 1),
    }[pre.video_newline]
    indices, weights = indices.reshape(*line, taps), weights.reshape(*line, taps)
    if pre.video_newline != "no_token":
        indices, weights = _end_rows(indices, weights, newline)
    return _join([(indices, weights)], newline)


def _unpad(stitched: Indices, size: tuple[int, int]) -> Indices:
    """Cuts the padding off a map; an odd remainder keeps one line more than the picture covers."""
    (width, height), (rows, columns) = size, stitched.shape
    if width / height > columns / rows:
        cut = (rows - int(height * (columns / width))) // 2
        return stitched[cut : rows - cut]
    cut = (columns - int(width * (rows / height))) // 2
    return stitched[:, cut : columns - cut]


def _one_tap(indices: Indices) -> tuple[Indices, Floats]:
    """`[...]` -> indices and weights `[..., 1]`."""
    return indices[..., None], np.ones((*indices.shape, 1), np.float32)


def _bilinear(source: Indices, shape: tuple[int, int]) -> tuple[Indices, Floats]:
    """Resizes a map: indices and weights `[*shape, 4]`; half-pixel centres, no antialiasing."""
    (top, bottom, down), (left, right, across) = (_axis(n, m) for n, m in zip(source.shape, shape, strict=True))
    rows = np.stack([top, top, bottom, bottom], axis=-1)[:, None]
    columns = np.stack([left, right, left, right], axis=-1)[None]
    by_row = np.stack([1 - down, 1 - down, down, down], axis=-1)[:, None]
    by_column = np.stack([1 - across, across, 1 - across, across], axis=-1)[None]
    return source[rows, columns], by_row * by_column


def _axis(source: int, target: int) -> tuple[Indices, Indices, Floats]:
    """Neighbours of each target position on one axis, and the second one's weight.

    In single precision throughout, as PyTorch computes them.
    """
    position = np.arange(target, dtype=np.float32) + np.float32(0.5)
    position = np.maximum(np.float32(source / target) * position - np.float32(0.5), np.float32(0))
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, source - 1), position - first.astype(np.float32)


def _average(source: Indices, stride: int) -> tuple[Indices, Floats]:
    """Means over whole squares: indices and weights `[h, w, stride * stride]`; the rest is dropped."""
    height, width = (n // stride for n in source.shape)
    squares = source[: height * stride, : width * stride].reshape(height, stride, width, stride).swapaxes(1, 2)
    indices = squares.reshape(height, width, stride * stride)
    return indices, np.full(indices.shape, 1 / (stride * stride), np.float32)


def _end_rows(indices: Indices, weights: Floats, newline: int) -> tuple[Indices, Floats]:
    """Appends a newline to every row of `[h, w, K]`."""
    height, _, taps = indices.shape
    ends = np.full((height, 1, taps), newline)
    only_first = np.broadcast_to(np.eye(1, taps, dtype=np.float32), ends.shape)
    return np.concatenate([indices, ends], axis=1), np.concatenate([weights, only_first], axis=1)


def _join(parts: list[tuple[Indices, Floats]], feature_rows: int) -> MergePlan:
    """One plan of all parts, in order; missing taps repeat the first one with weight 0."""
    taps = max(indices.shape[-1] for indices, _ in parts)
    flat = [(i.reshape(-1, i.shape[-1]), w.reshape(-1, w.shape[-1])) for i, w in parts]
    indices = [np.concatenate([i, np.repeat(i[:, :1], taps - i.shape[1], axis=1)], axis=1) for i, _ in flat]
    weights = [np.pad(w, ((0, 0), (0, taps - w.shape[1]))) for _, w in flat]
    return MergePlan(np.concatenate(indices), np.concatenate(weights), feature_rows)
