"""From a frame on the GPU to the vision tower's input: the anyres rule of `images`, without the host.

What is done to a frame depends on its size alone. So all tables are computed and uploaded once
for a size, and after that a frame costs two launches per view and no copy. The pixel values are equal, bit
for bit, to those that `images.preprocess` and `images.pixel_values` give for the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lladav.errors import ImageError
from lladav.manifest import Preprocessing
from lladav.runtime.gpu import frame_kernels
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.frames import DeviceFrame
from lladav.runtime.gpu.resampling import Axis, bicubic
from lladav.runtime.gpu.tables import Tables
from lladav.runtime.images import (
    MAX_PIXELS,
    PAD_LEVEL,
    Aspect,
    Floats,
    centred,
    check_size,
    choose_grid,
    largest_fit,
    pixel_values,
)


@dataclass(frozen=True)
class View:
    """The picture, scaled and laid on a canvas that is cut into crops. Pairs are (horizontal, vertical).

    Attributes:
        corner: of the picture within what is scaled: (0, 0), or its place on a square.
        across: how rows are resampled; `across.source` columns of the picture or square.
        down: how columns are resampled.
        place: left and top edge of the result on the canvas; what it leaves free is black.
        grid: columns and rows of crops.
        first: number of the canvas' first crop.
    """

    corner: tuple[int, int]
    across: Axis
    down: Axis
    place: tuple[int, int]
    grid: tuple[int, int]
    first: int


@dataclass(frozen=True)
class FramePlan:
    """What is done to every frame of one size.

    Attributes:
        size: width and height in pixels.
        side: of a crop in pixels.
        grid: columns and rows of crops beside the base crop, as in `images.Crops`; a merge plan
            needs it.
        views: what is scaled to which crops.
        values: float32 `[256]`, what a byte becomes for the vision tower.
    """

    size: tuple[int, int]
    side: int
    grid: tuple[int, int]
    views: tuple[View, ...]
    values: Floats

    @property
    def crops(self) -> int:
        return sum(view.grid[0] * view.grid[1] for view in self.views)

    @property
    def output_bytes(self) -> int:
        """Of the pixel values float32 `[crops, 3, side, side]`."""
        return self.crops * 3 * self.side**2 * 4

    @property
    def scratch_bytes(self) -> int:
        """Of the view that is largest when its rows are resampled and its columns are not."""
        return max(view.down.source * view.across.target * 3 for view in self.views)


def plan_frames(
    size: tuple[int, int], pre: Preprocessing, aspect: Aspect = "anyres", *, max_pixels: int = MAX_PIXELS
) -> FramePlan:
    """Decides what becomes of frames of one size.

    Args:
        size: width and height in pixels.
        pre: the checkpoint's rule, or what `images.limit_grid` leaves of it.
        aspect: see `images.preprocess`; frames of a video are "single".
        max_pixels: larger frames are refused.

    Raises:
        ImageError: too many pixels, or none.
    """
    check_size(size, "the frame", max_pixels)
    side = pre.crop_size
    grid = (0, 0)
    if aspect == "pad":
        square = (max(size), max(size))
        views = [_view(square, (side, side), corner=centred(size, square))]
    else:
        views = [_view(size, (side, side))]
    if aspect == "anyres":
        grid = choose_grid(size, pre)
        canvas = (grid[0] * side, grid[1] * side)
        scaled = largest_fit(size, canvas)
        views.append(_view(size, scaled, place=centred(scaled, canvas), grid=grid, first=1))
    every_byte = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    values = pixel_values(every_byte, mean=pre.mean, std=pre.std).ravel()
    return FramePlan(size, side, grid, tuple(views), values)


def _view(
    source: tuple[int, int],
    target: tuple[int, int],
    *,
    corner: tuple[int, int] = (0, 0),
    place: tuple[int, int] = (0, 0),
    grid: tuple[int, int] = (1, 1),
    first: int = 0,
) -> View:
    return View(corner, bicubic(source[0], target[0]), bicubic(source[1], target[1]), place, grid, first)


class FrameCutter:
    """Cuts frames of one size on the GPU; all it needs there is taken and uploaded once.

    Nothing but its pixels identifies a frame, and the host does not read these. So the features of
    frames cannot be kept and found again, as `pictures.FeatureCache` does with those of pictures.

    Args:
        device: that has the frames.
        plan: what is done to them.

    Attributes:
        plan: the same.

    Raises:
        BackendError: too little memory.
    """

    def __init__(self, device: Device, plan: FramePlan) -> None:
        self.plan = plan
        self._device = device
        axes = [axis for view in plan.views for axis in (view.across, view.down)]
        arrays = [array for axis in axes for array in (axis.first, axis.weights)]
        self._tables = Tables(device, [plan.values, *arrays], plan.scratch_bytes)
        self._values, *addresses = self._tables.addresses
        tables = [
            frame_kernels.AxisTables(first, weights, len(axis.weights), axis.source, axis.target)
            for axis, first, weights in zip(axes, addresses[::2], addresses[1::2], strict=True)
        ]
        self._views = list(zip(plan.views, tables[::2], tables[1::2], strict=True))

    def enqueue(self, frame: DeviceFrame, out: Address) -> None:
        """Enqueues cutting a frame, behind whatever its producer's stream holds now.

        Args:
            frame: of the plan's size; to be left as it is until the work is done.
            out: float32 `[crops, 3, side, side]`: the whole picture, then the grid row by row.

        Raises:
            ImageError: a frame of another size.
        """
        device, side = self._device, self.plan.side
        if frame.size != self.plan.size:
            (width, height), planned = frame.size, self.plan.size
            raise ImageError(
                f"the frame has {width} x {height} pixels, and {planned[0]} x {planned[1]} were planned",
                cure="plan frames of this size and make a cutter of their own for them",
            )
        if frame.stream is not None:
            device.follow(frame.stream)
        rows = self._tables.scratch
        for view, across, down in self._views:
            crops = out + view.first * 3 * side**2 * 4
            frame_kernels.resample_rows(device, frame, across, down.source, view.corner, PAD_LEVEL, rows)
            frame_kernels.lay_crops(device, rows, across.target, down, view.place, view.grid, side, self._values, crops)

    def free(self) -> None:
        """Gives its memory back; what was enqueued must be done."""
        self._tables.free()
