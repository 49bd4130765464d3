"""Questions about frames that are in GPU memory: cut, encoded and merged there; only rows of the prompt come back."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.manifest import Preprocessing
from lladav.runtime import merge
from lladav.runtime.gpu.backend import GpuTileEncoder
from lladav.runtime.gpu.cutting import FrameCutter, plan_frames
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.frames import DeviceFrame, device_frame
from lladav.runtime.gpu.merging import DeviceMerge
from lladav.runtime.images import Aspect
from lladav.runtime.vision import VisionEncoder

Floats = npt.NDArray[np.float32]

_SIZES = 4
"""Of frames that tables are kept for."""
_FLOAT = 4


@dataclass(frozen=True)
class FrameTables:
    """What is kept on the device for frames of one size."""

    cutter: FrameCutter
    plan: merge.MergePlan
    merge: DeviceMerge

    def free(self) -> None:
        """Gives its memory back; what was enqueued must be done."""
        self.cutter.free()
        self.merge.free()


@dataclass(frozen=True)
class PreparedFrame:
    """A frame that is cut when it is encoded; see `lladav.runtime.pictures.Prepared`.

    Attributes:
        digest: None: only its pixels identify a frame, and the host does not read them.
    """

    frame: DeviceFrame
    tables: FrameTables
    reader: FrameReader
    digest: None = None

    @property
    def tiles(self) -> int:
        return self.tables.cutter.plan.crops

    @property
    def rows(self) -> int:
        return len(self.tables.plan)

    def encode(self, encoder: VisionEncoder) -> tuple[Floats, dict[str, float]]:
        """See `Prepared`."""
        return self.reader.encode(self, encoder)


class FrameReader:
    """Prepares and encodes frames.

    Room for crops and features is as large as the largest frame so far asked for; it is not part of
    the memory plan, because the size of frames shows only when they come.

    Args:
        device: that has the frames.
        encoder: of crops on the same device.
        side: features along one side of a crop.
        newline: `[D]`, what ends a row of a picture.
    """

    def __init__(self, device: Device, encoder: GpuTileEncoder, side: int, newline: Floats) -> None:
        self._device = device
        self._encoder = encoder
        self._side = side
        self._newline = newline
        self._tables: OrderedDict[tuple[Any, ...], FrameTables] = OrderedDict()
        self._room: Address = 0
        self._room_bytes = 0

    def prepare(self, source: object, rule: Preprocessing, aspect: Aspect, max_pixels: int) -> PreparedFrame:
        """Reads a frame's description.

        Args:
            source: see `frames.device_frame`.
            rule: of the checkpoint, or what `images.limit_grid` leaves of it.
            aspect: see `images.preprocess`.
            max_pixels: larger frames are refused.

        Raises:
            ImageError: it is no frame, or too large.
            BackendError: too little memory.
        """
        frame = device_frame(source, self._device)
        key = (frame.size, aspect, rule.grid_pinpoints)
        if key not in self._tables:
            self._tables[key] = self._make(frame.size, rule, aspect, max_pixels)
            if len(self._tables) > _SIZES:
                self._device.synchronize()
                self._tables.popitem(last=False)[1].free()
        self._tables.move_to_end(key)
        return PreparedFrame(frame, self._tables[key], self)

    def encode(self, prepared: PreparedFrame, encoder: VisionEncoder) -> tuple[Floats, dict[str, float]]:
        """Rows `[n, D]` float32 of a frame, and milliseconds per stage.

        Raises:
            BackendError: too little memory.
        """
        device, tables = self._device, prepared.tables
        pixels, features, rows = self._place(prepared)
        began = perf_counter()
        tables.cutter.enqueue(prepared.frame, pixels)
        device.synchronize()
        spent = {"preprocess": (perf_counter() - began) * 1e3}
        for part in encoder.buckets(prepared.tiles):
            for name, ms in self._encoder.encode_there(pixels, part, features).items():
                spent[name] = spent.get(name, 0.0) + ms
        began = perf_counter()
        out = np.empty((prepared.rows, len(self._newline)), np.float32)
        tables.merge.enqueue(features, rows)
        device.download(out, rows)
        device.synchronize()
        return out, {**spent, "merge": (perf_counter() - began) * 1e3}

    def _place(self, prepared: PreparedFrame) -> tuple[Address, Address, Address]:
        """Room for pixel values, features and rows."""
        width = len(self._newline) * _FLOAT
        sizes = [
            prepared.tables.cutter.plan.output_bytes,
            prepared.tiles * self._side**2 * width,
            prepared.rows * width,
        ]
        aligned = [-(-size // 256) * 256 for size in sizes]
        if sum(aligned) > self._room_bytes:
            self._device.synchronize()
            if self._room:
                self._device.free(self._room)
                self._room = self._room_bytes = 0
            self._room = self._device.allocate(sum(aligned))
            self._room_bytes = sum(aligned)
        return self._room, self._room + aligned[0], self._room + aligned[0] + aligned[1]

    def _make(self, size: tuple[int, int], rule: Preprocessing, aspect: Aspect, max_pixels: int) -> FrameTables:
        plan = plan_frames(size, rule, aspect, max_pixels=max_pixels)
        if aspect == "anyres":
            rows = merge.merge_plan(plan.size, plan.grid, self._side, rule.max_tiles)
        else:
            rows = merge.crop_plan(self._side, newline=aspect == "single")
        return FrameTables(FrameCutter(self._device, plan), rows, DeviceMerge(self._device, rows, self._newline))
