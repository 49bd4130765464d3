"""Frames cut on a GPU, beside pictures cut on the host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from host_device import HostDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import cut
from PIL import Image

from lladav.errors import BackendError, ImageError
from lladav.manifest import Preprocessing
from lladav.runtime.gpu import frame_kernels
from lladav.runtime.gpu.cutting import FrameCutter, plan_frames
from lladav.runtime.gpu.frames import DeviceFrame, device_frame
from lladav.runtime.images import Aspect, limit_grid, open_image, pixel_values, preprocess
from lladav.runtime.video import preprocess_frames

REAL = Preprocessing(
    crop_size=384, grid_pinpoints=tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)), max_tiles=4
)
SMALL = Preprocessing(
    crop_size=8,
    grid_pinpoints=tuple((8 * i, 8 * j) for i in range(1, 4) for j in range(1, 4)),
    max_tiles=2,
    mean=0.48,
    std=0.27,
)
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))
ASPECTS = ["anyres", "pad", "single"]


def noise(width: int, height: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, *channels), np.uint8)


def frame_of(array: np.ndarray, device: HostDevice, stream: int | None = None) -> DeviceFrame:
    interface = array.__array_interface__ | {"version": 3, "stream": stream, "strides": array.strides}
    return device_frame(SimpleNamespace(__cuda_array_interface__=interface, owner=array), device)


def assert_cut_as_on_the_host(
    array: np.ndarray, device: HostDevice, pre: Preprocessing, aspect: Aspect, image: Image.Image | None = None
) -> None:
    """Bit for bit; `image` is what the host gets, if it is not the array."""
    crops = preprocess(image or Image.fromarray(array), pre, aspect).pixels
    expected = pixel_values(crops, mean=pre.mean, std=pre.std)
    np.testing.assert_array_equal(cut(frame_of(array, device), device, pre, aspect), expected)


# -------------------------------------------------------------------------------- against the host


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("aspect", ASPECTS)
@given(SIZES, st.booleans())
@settings(max_examples=25, deadline=None)
def test_crops_are_those_of_the_host_bit_for_bit(aspect: Aspect, size: tuple[int, int], gray: bool) -> None:
    device = HostDevice()
    assert_cut_as_on_the_host(noise(*size) if gray else noise(*size, 3), device, SMALL, aspect)
    device.check()


@pytest.mark.parametrize("aspect", ["anyres", "pad"])
def test_a_picture_of_the_reference(aspect: Aspect, device: HostDevice, shared: Path) -> None:
    array = np.asarray(open_image(shared / "parity" / "images" / "odd.png"))
    assert_cut_as_on_the_host(array, device, REAL, aspect)


def test_more_lines_than_blocks_are_walked_over(device: HostDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_kernels, "_MOST_LINES", 16)
    assert_cut_as_on_the_host(noise(30, 70, 3), device, SMALL, "anyres")


def test_a_view_is_cut_as_its_copy(device: HostDevice) -> None:
    view = noise(40, 30, 4)[::-1, ::2, 2::-1]
    copy = Image.fromarray(np.ascontiguousarray(view))
    assert_cut_as_on_the_host(view, device, SMALL, "anyres", copy)


def test_an_opaque_picture_needs_no_alpha(device: HostDevice) -> None:
    array = noise(20, 30, 4)
    array[..., 3] = 255
    assert_cut_as_on_the_host(array, device, SMALL, "anyres")


def test_frames_of_a_video_are_single_crops(device: HostDevice) -> None:
    frames = [noise(40, 30, 3) + np.uint8(i) for i in range(3)]
    expected = pixel_values(
        preprocess_frames([Image.fromarray(f) for f in frames], SMALL), mean=SMALL.mean, std=SMALL.std
    )
    plan = plan_frames((40, 30), SMALL, "single")
    cutter = FrameCutter(device, plan)
    out = device.allocate(3 * plan.output_bytes)
    for i, frame in enumerate(frames):
        cutter.enqueue(frame_of(frame, device), out + i * plan.output_bytes)
    values = np.empty_like(expected)
    device.download(values, out)
    np.testing.assert_array_equal(values, expected)
    cutter.free()
    device.free(out)


# -------------------------------------------------------------------------------------- the plan


@given(SIZES, st.sampled_from(ASPECTS))
def test_the_plan_has_the_crops_of_the_host(size: tuple[int, int], aspect: Aspect) -> None:
    plan = plan_frames(size, SMALL, aspect)
    crops = preprocess(Image.new("RGB", size), SMALL, aspect)
    assert (plan.crops, plan.grid, plan.size) == (len(crops.pixels), crops.grid, crops.size)
    assert plan.output_bytes == pixel_values(crops.pixels).nbytes


def test_a_limited_grid_is_kept_to() -> None:
    assert plan_frames((1920, 1080), REAL).grid == (5, 3)
    assert plan_frames((1920, 1080), limit_grid(REAL, (2, 2))).grid == (2, 2)


def test_frames_of_no_or_too_many_pixels() -> None:
    with pytest.raises(ImageError, match="limit is 599"):
        plan_frames((30, 20), REAL, max_pixels=599)
    with pytest.raises(ImageError, match="0 x 20"):
        plan_frames((0, 20), REAL)


# ------------------------------------------------------------------------------------- the device


def test_after_the_first_frame_nothing_is_copied_and_nobody_waits(device: HostDevice) -> None:
    cutter = FrameCutter(device, plan_frames((40, 30), SMALL))
    out = device.allocate(cutter.plan.output_bytes)
    before = device.uploads, device.downloads, device.allocations
    for _ in range(2):
        cutter.enqueue(frame_of(noise(40, 30, 3), device), out)
    assert (device.uploads, device.downloads, device.allocations) == before == (1, 0, 2)
    assert device.synchronizations == 0
    assert device.kernels == ["lladav_resample_rows", "lladav_lay_crops"] * 4
    cutter.free()
    device.free(out)
    assert device.memory()[0] == device.memory()[1]


def test_the_stream_of_the_producer_is_waited_for_first(device: HostDevice) -> None:
    cutter = FrameCutter(device, plan_frames((40, 30), SMALL))
    out = device.allocate(cutter.plan.output_bytes)
    array = noise(40, 30, 3)
    cutter.enqueue(frame_of(array, device), out)
    assert device.followed == []
    cutter.enqueue(frame_of(array, device, stream=99), out)
    assert device.followed == [99]
    graph = device.capture(lambda: cutter.enqueue(frame_of(array, device, stream=7), out))
    graph.launch()
    assert device.followed == [99, 7]


def test_a_frame_of_another_size_is_refused_before_anything_is_enqueued(device: HostDevice) -> None:
    cutter = FrameCutter(device, plan_frames((40, 30), SMALL))
    with pytest.raises(ImageError, match="30 x 40 pixels, and 40 x 30 were planned"):
        cutter.enqueue(frame_of(noise(30, 40, 3), device, stream=5), 0)
    assert device.kernels == device.followed == []


def test_too_little_memory(compiled: None) -> None:
    del compiled
    with pytest.raises(BackendError):
        FrameCutter(HostDevice(total=1000), plan_frames((40, 30), SMALL))
