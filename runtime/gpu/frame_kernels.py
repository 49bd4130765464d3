"""One function to launch each kernel of `runtime/kernels/frames.cu` and `merge.cu`; `kernels` has the loop's."""

from __future__ import annotations

from ctypes import c_int32, c_ssize_t, c_void_p
from dataclasses import dataclass

from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.frames import DeviceFrame

_BLOCK = (32, 8, 1)
_ROW_THREADS = 256
# CUDA allows no more blocks down; threads then take several lines.
_MOST_LINES = 65_535 * _BLOCK[1]


@dataclass(frozen=True)
class AxisTables:
    """A `resampling.Axis` on the device.

    Attributes:
        first: int32 `[target]`.
        weights: int32 `[taps, target]`.
        taps: longest sum.
        source: pixels before.
        target: pixels after.
    """

    first: Address
    weights: Address
    taps: int
    source: int
    target: int


def resample_rows(
    device: Device, frame: DeviceFrame, axis: AxisTables, lines: int, corner: tuple[int, int], level: int, out: Address
) -> None:
    """Enqueues resampling the rows of a frame, or of a rectangle of `level` that it lies on.

    Args:
        device: that has the frame.
        frame: to be read.
        axis: from the rectangle's columns to those of `out`.
        lines: rows of the rectangle.
        corner: left and top edge of the frame in it.
        level: of every channel around the frame.
        out: uint8 `[lines, axis.target, 3]`.
    """
    arguments = (
        c_void_p(frame.address),
        *map(c_ssize_t, frame.strides),
        *map(c_int32, (frame.width, frame.height, *corner, level)),
        c_void_p(axis.first),
        c_void_p(axis.weights),
        *map(c_int32, (axis.taps, axis.target, lines)),
        c_void_p(out),
    )
    device.launch("lladav_resample_rows", _grid(axis.target, min(lines, _MOST_LINES)), _BLOCK, arguments)


def lay_crops(
    device: Device,
    source: Address,
    width: int,
    axis: AxisTables,
    corner: tuple[int, int],
    grid: tuple[int, int],
    side: int,
    values: Address,
    out: Address,
) -> None:
    """Enqueues resampling columns, laying the picture on a black canvas, and cutting this into crops.

    Args:
        device: that has it all.
        source: uint8 `[axis.source, width, 3]`, as `resample_rows` leaves it.
        width: of the picture on the canvas.
        axis: from its lines in `source` to those on the canvas.
        corner: left and top edge of the picture on the canvas.
        grid: columns and rows of crops.
        side: of a crop.
        values: float32 `[256]`, what becomes of a byte.
        out: float32 `[rows * columns, 3, side, side]`.
    """
    arguments = (
        c_void_p(source),
        c_void_p(axis.first),
        c_void_p(axis.weights),
        *map(c_int32, (axis.taps, width, axis.target, *corner, *grid, side)),
        c_void_p(values),
        c_void_p(out),
    )
    device.launch("lladav_lay_crops", _grid(grid[0] * side, grid[1] * side), _BLOCK, arguments)


def merge(
    device: Device,
    features: Address,
    newline: Address,
    indices: Address,
    weights: Address,
    rows: int,
    taps: int,
    feature_rows: int,
    width: int,
    out: Address,
) -> None:
    """Enqueues a merge plan; equal to `merge.apply` on finite features.

    Args:
        device: that has it all.
        features: float32 `[feature_rows, width]`.
        newline: float32 `[width]`.
        indices: int32 `[rows, taps]`.
        weights: float32 `[rows, taps]`.
        rows: of the prompt.
        taps: features per row.
        feature_rows: of all crops.
        width: of the language model.
        out: float32 `[rows, width]`.
    """
    arguments = (
        *map(c_void_p, (features, newline, indices, weights)),
        *map(c_int32, (taps, feature_rows, width)),
        c_void_p(out),
    )
    device.launch("lladav_merge", (rows, 1, 1), (_ROW_THREADS, 1, 1), arguments)


def _grid(width: int, height: int) -> tuple[int, int, int]:
    return -(-width // _BLOCK[0]), -(-height // _BLOCK[1]), 1
