"""Frames in a GPU's memory: what is taken for one, and what is said of the rest."""

from __future__ import annotations

import ctypes
import gc
import struct
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.errors import ImageError
from lladav.runtime.gpu.frames import DeviceFrame, device_frame, on_gpu

GPU_1 = SimpleNamespace(ordinal=1, stream=4711)
CUDA, CUDA_MANAGED = 2, 13


class Described:
    """An array with the CUDA Array Interface alone, as pycuda's; its memory is the host's."""

    def __init__(self, array: np.ndarray, **changes: Any) -> None:
        interface = array.__array_interface__
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": interface["typestr"],
            "strides": interface["strides"],
            "data": interface["data"],
            "version": 3,
            "stream": None,
        } | changes


class Exported:
    """An array with DLPack's methods, as PyTorch's and CuPy's, which claims to be on a GPU."""

    def __init__(
        self, array: np.ndarray, kind: int = CUDA, ordinal: int = 1, *, hand_out: Callable[[], Any] | None = None
    ) -> None:
        self.hand_out = hand_out or array.__dlpack__
        self.device = kind, ordinal
        self.followed: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> Any:
        self.followed.append(stream)
        return self.hand_out()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


def seen(frame: DeviceFrame) -> np.ndarray:
    """What a kernel reads: `[H, W, 3]`."""
    view = SimpleNamespace(
        __array_interface__={
            "version": 3,
            "typestr": "|u1",
            "shape": (frame.height, frame.width, 3),
            "strides": frame.strides,
            "data": (frame.address, True),
        }
    )
    return np.asarray(view)


def capsule(*, data: int, shape: tuple[int, ...], offset: int = 0, name: bytes = b"dltensor") -> tuple[Any, Any]:
    """DLPack's struct written by hand, without strides, and what has to stay as long."""
    lengths = (ctypes.c_int64 * len(shape))(*shape)
    packed = struct.pack("=QiiiBBHQQQ", data, CUDA, 1, len(shape), 1, 8, 1, ctypes.addressof(lengths), 0, offset)
    managed = ctypes.create_string_buffer(packed)
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    return new(ctypes.addressof(managed), name, None), (managed, lengths)


# ------------------------------------------------------------------------------------ what is taken


@pytest.mark.parametrize("wrap", [Described, Exported])
@given(data=st.data())
def test_every_strided_view_is_read_where_it_lies(wrap: type[Described | Exported], data: st.DataObject) -> None:
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(2)]
    channels = data.draw(st.sampled_from([slice(None), slice(None, None, -1)]))
    array = noise(14, 11, 3)[:: steps[0], :: steps[1], channels]
    if data.draw(st.booleans()):
        array = array.swapaxes(0, 1)
    frame = device_frame(wrap(array), GPU_1)
    assert frame.size == (array.shape[1], array.shape[0])
    np.testing.assert_array_equal(seen(frame), array)


@pytest.mark.parametrize("wrap", [Described, Exported])
def test_channels_first_four_channels_and_gray_are_views_too(wrap: type[Described | Exported]) -> None:
    planes = noise(3, 5, 7)
    np.testing.assert_array_equal(seen(device_frame(wrap(planes.transpose(1, 2, 0)), GPU_1)), planes.transpose(1, 2, 0))
    filled = noise(5, 7, 4)
    np.testing.assert_array_equal(seen(device_frame(wrap(filled), GPU_1)), filled[..., :3])
    gray = noise(5, 7)
    for array in (gray, gray[..., None]):
        np.testing.assert_array_equal(seen(device_frame(wrap(array), GPU_1)), np.stack([gray] * 3, axis=-1))


def test_dlpack_without_strides_and_with_an_offset() -> None:
    array = noise(9, 5, 3)
    handed_out, held = capsule(data=array.ctypes.data, shape=(8, 5, 3), offset=15)
    source = Exported(array, hand_out=lambda: handed_out)
    np.testing.assert_array_equal(seen(device_frame(source, GPU_1)), array[1:])
    del held


def test_no_pixel_is_copied() -> None:
    array = noise(5, 7, 3)
    for wrap in (Described, Exported):
        assert device_frame(wrap(array), GPU_1).address == array.ctypes.data


@pytest.mark.parametrize("wrap", [Described, Exported])
def test_a_frame_keeps_its_memory_and_gives_it_back(wrap: type[Described | Exported]) -> None:
    array = noise(5, 7, 3)
    alive = weakref.ref(array)
    frame = device_frame(wrap(array), GPU_1)
    del array
    gc.collect()
    assert alive() is not None
    del frame
    gc.collect()
    assert alive() is None


# --------------------------------------------------------------------------------------- the order


def test_dlpack_lets_our_stream_wait_by_itself() -> None:
    source = Exported(noise(5, 7, 3))
    assert device_frame(source, GPU_1).stream is None
    assert device_frame(source, SimpleNamespace(ordinal=1, stream=0)).stream is None
    assert source.followed == [4711, 1]


@pytest.mark.parametrize(("given_", "stream"), [({}, None), ({"stream": 1}, 1), ({"stream": 99}, 99)])
def test_the_stream_of_the_interface_is_kept_to_be_waited_for(given_: dict[str, int], stream: int | None) -> None:
    assert device_frame(Described(noise(5, 7, 3), **given_), GPU_1).stream == stream


def test_version_2_has_no_stream() -> None:
    source = Described(noise(5, 7, 3), version=2)
    del source.__cuda_array_interface__["stream"]
    assert device_frame(source, GPU_1).stream is None


def test_dlpack_is_preferred_because_it_orders() -> None:
    array = noise(5, 7, 3)
    both = Exported(array)
    both.__cuda_array_interface__ = Described(array, stream=99).__cuda_array_interface__
    assert device_frame(both, GPU_1).stream is None
    assert both.followed


def test_only_arrays_on_a_gpu_are_called_so() -> None:
    array = noise(5, 7, 3)
    assert on_gpu(Described(array))
    assert on_gpu(Exported(array))
    assert on_gpu(Exported(array, CUDA_MANAGED))
    for source in (array, Exported(array, 1, 0), "frame.png", b""):
        assert not on_gpu(source)


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("wrap", [Described, Exported])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 \[4, 5, 3\], and frames are uint8"),
        (np.zeros((4, 5, 3), np.int8), "int8"),
        (np.zeros((4, 5, 3), np.bool_), "bool"),
        (np.zeros((3, 4, 5), np.uint8), r"\[3, 4, 5\], which is no frame"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"\[1, 4, 5, 3\]"),
        (np.zeros((4, 5, 2), np.uint8), r"\[4, 5, 2\]"),
        (np.zeros(4, np.uint8), r"\[4\]"),
        (np.zeros((), np.uint8), r"\[\]"),
        (np.zeros((0, 5, 3), np.uint8), r"\[0, 5, 3\]"),
    ],
)
def test_what_is_no_frame_says_so_and_what_to_do(
    wrap: type[Described | Exported], array: np.ndarray, message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        device_frame(wrap(array), GPU_1)
    assert caught.value.cure


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ((1, 0), "the host's memory"),
        ((3, 0), "pinned memory"),
        ((10, 0), "ROCm"),
        ((14, 0), "kind 14"),
        ((CUDA, 0), "on GPU 0, and GPU 1 answers"),
    ],
)
def test_another_memory_is_refused_before_anything_is_asked_of_it(device: tuple[int, int], message: str) -> None:
    source = Exported(noise(5, 7, 3), *device)
    with pytest.raises(ImageError, match=message):
        device_frame(source, GPU_1)
    assert not source.followed


def test_managed_memory_belongs_to_every_gpu() -> None:
    array = noise(5, 7, 3)
    np.testing.assert_array_equal(seen(device_frame(Exported(array, CUDA_MANAGED, 0), GPU_1)), array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 4}, "version 4 of"),
        ({"version": 1}, "version 1 of"),
        ({"mask": np.zeros(3)}, "mask"),
        ({"stream": 0}, "stream 0"),
        ({"data": (0, False)}, "no frame"),
        ({"data": None}, "cannot be read"),
        ({"typestr": "nonsense"}, "cannot be read"),
    ],
)
def test_an_interface_that_is_not_understood(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        device_frame(Described(noise(5, 7, 3), **changes), GPU_1)
    assert caught.value.cure


def test_an_incomplete_interface() -> None:
    source = Described(noise(5, 7, 3))
    del source.__cuda_array_interface__["typestr"]
    with pytest.raises(ImageError, match="typestr"):
        device_frame(source, GPU_1)


def test_a_producer_that_refuses_is_quoted() -> None:
    array = noise(5, 7, 3)
    array.flags.writeable = False  # which the unversioned capsule cannot express
    with pytest.raises(ImageError, match="does not hand out its memory"):
        device_frame(Exported(array), GPU_1)


def test_a_capsule_of_a_newer_form() -> None:
    versioned, held = capsule(data=1, shape=(5, 7, 3), name=b"dltensor_versioned")
    with pytest.raises(ImageError, match="no capsule named dltensor"):
        device_frame(Exported(noise(5, 7, 3), hand_out=lambda: versioned), GPU_1)
    del held


@pytest.mark.parametrize("source", ["frame.png", None, [[1]]])
def test_what_is_no_array_at_all(source: Any) -> None:
    with pytest.raises(ImageError, match="neither"):
        device_frame(source, GPU_1)


def test_a_tensor_of_pytorch_on_the_host() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(5, 7, 3, dtype=torch.uint8)
    assert not on_gpu(tensor)
    with pytest.raises(ImageError, match="the torch Tensor lies in the host's memory"):
        device_frame(tensor, GPU_1)
