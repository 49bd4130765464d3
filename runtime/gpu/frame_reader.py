"""Questions about frames that are in GPU memory: cut, encoded and read there, without a copy of the pixels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.manifest import Preprocessing
from lladav.runtime import merge
from lladav.runtime.gpu.backend import GpuTileEncoder
from lladav.runtime.gpu.cutting import FrameCutter, plan_frames
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.frames import DeviceFrame, device_frame
from lladav.runtime.images import Aspect
from lladav.runtime.vision import VisionEncoder

Floats = npt.NDArray[np.float32]

_SIZES = 4
"""Of frames that tables and room for crops are kept for."""


@dataclass(frozen=True)
class Cutting:
    """What is kept for frames of one size."""

    cutter: FrameCutter
    pixels: Address
    plan: merge.MergePlan


@dataclass(frozen=True)
class PreparedFrame:
    """A frame that is cut when it is encoded; see `lladav.runtime.pictures.Prepared`.

    Attributes:
        digest: None: only its pixels identify a frame, and the host does not read them.
    """

    frame: DeviceFrame
    cutting: Cutting
    encoder: GpuTileEncoder
    digest: None = None

    @property
    def plan(self) -> merge.MergePlan:
        return self.cutting.plan

    @property
    def tiles(self) -> int:
        return self.cutting.cutter.plan.crops

    @property
    def rows(self) -> int:
        return len(self.plan)

    def features(self, encoder: VisionEncoder) -> tuple[Floats, dict[str, float]]:
        """See `Prepared`."""
        self.cutting.cutter.enqueue(self.frame, self.cutting.pixels)
        return encoder.encode_buckets(
            self.tiles, lambda part, out: self.encoder.encode_there(self.cutting.pixels, part, out)
        )


class FrameReader:
    """Prepares frames; what a size of frames needs is kept for the latest sizes.

    Args:
        device: that has the frames.
        encoder: of crops on the same device.
        side: features along one side of a crop.
    """

    def __init__(self, device: Device, encoder: GpuTileEncoder, side: int) -> None:
        self._device = device
        self._encoder = encoder
        self._side = side
        self._kept: OrderedDict[tuple[Any, ...], Cutting] = OrderedDict()

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
        if key not in self._kept:
            self._kept[key] = self._make(frame.size, rule, aspect, max_pixels)
            if len(self._kept) > _SIZES:
                self._free(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return PreparedFrame(frame, self._kept[key], self._encoder)

    def _make(self, size: tuple[int, int], rule: Preprocessing, aspect: Aspect, max_pixels: int) -> Cutting:
        plan = plan_frames(size, rule, aspect, max_pixels=max_pixels)
        if aspect == "anyres":
            rows = merge.merge_plan(plan.size, plan.grid, self._side, rule.max_tiles)
        else:
            rows = merge.crop_plan(self._side, newline=aspect == "single")
        return Cutting(FrameCutter(self._device, plan), self._device.allocate(plan.output_bytes), rows)

    def _free(self, cutting: Cutting) -> None:
        self._device.synchronize()
        cutting.cutter.free()
        self._device.free(cutting.pixels)
