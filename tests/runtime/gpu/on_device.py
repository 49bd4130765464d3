"""What the device makes of a frame and of features, brought to the host."""

from __future__ import annotations

import numpy as np

from lladav.manifest import Preprocessing
from lladav.runtime.gpu.cutting import FrameCutter, plan_frames
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.frames import DeviceFrame
from lladav.runtime.gpu.merging import DeviceMerge
from lladav.runtime.images import Aspect
from lladav.runtime.merge import MergePlan


def cut(frame: DeviceFrame, device: Device, pre: Preprocessing, aspect: Aspect) -> np.ndarray:
    """Pixel values `[crops, 3, S, S]` of a frame."""
    plan = plan_frames(frame.size, pre, aspect)
    cutter = FrameCutter(device, plan)
    out = device.allocate(plan.output_bytes)
    cutter.enqueue(frame, out)
    values = np.empty((plan.crops, 3, plan.side, plan.side), np.float32)
    device.download(values, out)
    device.synchronize()
    cutter.free()
    device.free(out)
    return values


def merged(device: Device, plan: MergePlan, features: np.ndarray, newline: np.ndarray) -> np.ndarray:
    """Rows `[n, D]` of features `[T * N, D]`."""
    on_device = DeviceMerge(device, plan, newline)
    source, out = device.allocate(features.nbytes), device.allocate(len(plan) * len(newline) * 4)
    device.upload(source, features)
    on_device.enqueue(source, out)
    rows = np.empty((on_device.rows, len(newline)), np.float32)
    device.download(rows, out)
    device.synchronize()
    on_device.free()
    device.free(source)
    device.free(out)
    return rows
