"""Frames that are on the GPU already: arrays of other libraries, read where they lie.

Whatever has DLPack's methods (PyTorch, CuPy) or `__cuda_array_interface__` (pycuda, Numba,
jetson-utils) is a frame. Only its description is read here; no pixel moves.

Sources: the Python specification of DLPack and its `dlpack.h`; version 3 of the CUDA Array Interface.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lladav.errors import ImageError
from lladav.runtime.gpu.device import Address, Device

_CUDA = 2
_CUDA_MANAGED = 13
_KINDS = {1: "the host's memory", 3: "pinned memory of the host", 10: "the memory of a ROCm GPU"}
_TO_GPU = "move it to the GPU that answers, or pass a NumPy array, which is copied there"
_INTERFACE_VERSIONS = (2, 3)
_LEGACY_STREAM = 1


class _Tensor(ctypes.Structure):
    """`DLTensor`, which the unversioned capsule points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device_ordinal", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_TYPES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class DlpackArray(Protocol):
    """An array with DLPack's methods."""

    def __dlpack_device__(self) -> tuple[Any, Any]: ...

    def __dlpack__(self, *, stream: Any = None) -> Any: ...


class CudaArray(Protocol):
    """An array with the CUDA Array Interface."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class DeviceFrame:
    """One picture in GPU memory that belongs to someone else, uint8.

    Its pixels must stay as they are until the work that reads them is done.

    Attributes:
        address: of the first pixel's first channel.
        height: in pixels.
        width: in pixels.
        strides: bytes to the next row, column and channel. Negative ones are as good (BGR seen as
            RGB, a mirrored view), and the channels of a gray picture are 0 apart.
        stream: whose work must be done before the pixels may be read; None if that is seen to.
        owner: keeps the memory from being freed.
    """

    address: Address
    height: int
    width: int
    strides: tuple[int, int, int]
    stream: int | None
    owner: object = field(repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as `images` has them."""
        return self.width, self.height


def on_gpu(source: object) -> bool:
    """Whether a picture is an array that says that it is in CUDA memory."""
    if hasattr(source, "__dlpack_device__"):
        return int(source.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
    return hasattr(source, "__cuda_array_interface__")


def device_frame(source: Any, device: Device) -> DeviceFrame:
    """Describes an array as a frame, with what its reader has to wait for.

    DLPack is asked first, since with it the producer itself lets our stream wait. The CUDA Array
    Interface does not say on which GPU an array is; there the caller has to know.

    Args:
        source: uint8 `[H, W, 3]` in RGB order, `[H, W]` or `[H, W, 1]` gray, or `[H, W, 4]`, whose
            fourth channel is not read: a camera's filler, or alpha, of which a transparent
            picture should be rid before. Any strides.
        device: that is going to read it.

    Raises:
        ImageError: no array, not on this GPU, or of another type or shape; an interface of an
            unknown version; or the producer refuses.
    """
    if hasattr(source, "__dlpack_device__"):
        return _from_dlpack(source, device)
    if hasattr(source, "__cuda_array_interface__"):
        return _from_interface(source)
    raise ImageError(
        f"{_name(source)} has neither `__dlpack__` nor `__cuda_array_interface__`",
        cure="pass an array of PyTorch, CuPy or pycuda, or a picture that `images.open_image` takes",
    )


def _from_dlpack(source: Any, device: Device) -> DeviceFrame:
    name = _name(source)
    kind, ordinal = map(int, source.__dlpack_device__())
    if kind not in (_CUDA, _CUDA_MANAGED):
        place = _KINDS.get(kind, f"memory of DLPack's kind {kind}")
        raise ImageError(f"{name} lies in {place}, not in a CUDA GPU's", cure=_TO_GPU)
    if kind == _CUDA and ordinal != device.ordinal:
        raise ImageError(f"{name} lies on GPU {ordinal}, and GPU {device.ordinal} answers", cure=_TO_GPU)
    try:
        capsule = source.__dlpack__(stream=device.stream or _LEGACY_STREAM)
    # Producers raise BufferError, RuntimeError, ValueError, ... for reasons of their own.
    except Exception as error:
        raise ImageError(
            f"{name} does not hand out its memory: {error}", cure="pass a plain copy of it on the GPU"
        ) from error
    try:
        tensor = _Tensor.from_address(_pointer_in(capsule, b"dltensor"))
    except ValueError as error:
        raise ImageError(
            f"{name} hands out no capsule named dltensor, although no newer form of DLPack was asked for",
            cure="pass an object with `__cuda_array_interface__` instead",
        ) from error
    shape = tensor.shape[: tensor.dimensions]
    # A missing table of strides means rows without gaps. An item is one byte, so both units agree.
    strides = tensor.strides[: tensor.dimensions] if tensor.strides else _without_gaps(shape)
    found = f"{_TYPES.get(tensor.type_code, f'type {tensor.type_code} of ')}{tensor.bits}"
    if tensor.lanes != 1:
        found += f" x {tensor.lanes}"
    # Never renamed to "used_dltensor": the capsule then frees the memory itself, when nobody holds it any more.
    return _frame(name, found, shape, strides, (tensor.data or 0) + tensor.byte_offset, None, capsule)


def _from_interface(source: Any) -> DeviceFrame:
    name = _name(source)
    try:
        interface = source.__cuda_array_interface__
        version, shape, (address, _) = interface["version"], tuple(interface["shape"]), interface["data"]
        found = np.dtype(interface["typestr"]).name
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ImageError(
            f"the `__cuda_array_interface__` of {name} cannot be read: {error!r}",
            cure="pass an object that follows version 3 of the interface",
        ) from error
    if version not in _INTERFACE_VERSIONS:
        known = " and ".join(map(str, _INTERFACE_VERSIONS))
        raise ImageError(
            f"{name} has version {version} of `__cuda_array_interface__`; versions {known} are understood",
            cure="pass it through DLPack, or with another release of the library that made it",
        )
    if interface.get("mask") is not None:
        raise ImageError(f"{name} has a mask, and every pixel counts", cure="pass the array without its mask")
    stream = interface.get("stream")
    if stream == 0:
        raise ImageError(
            f"{name} names stream 0, which the interface forbids as ambiguous",
            cure="name 1 for the legacy or 2 for the per-thread default stream, or None once the array is complete",
        )
    strides = interface.get("strides") or _without_gaps(shape)
    return _frame(name, found, shape, strides, int(address or 0), stream, source)


def _frame(
    name: str,
    found: str,
    shape: Sequence[int],
    strides: Sequence[int],
    address: Address,
    stream: int | None,
    owner: object,
) -> DeviceFrame:
    described = f"{name} is {found} {list(shape)}"
    if found != "uint8":
        raise ImageError(
            f"{described}, and frames are uint8",
            cure="scale its values to 0..255 and convert it to uint8 on the GPU",
        )
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape or not address:
        raise ImageError(
            f"{described}, which is no frame",
            cure="pass [height, width, 3] in RGB order, or [height, width]; a view will do, such as "
            "`tensor.permute(1, 2, 0)` of [3, height, width] or `batch[0]` of several frames",
        )
    channel = strides[2] if len(shape) == 3 and shape[2] > 1 else 0
    return DeviceFrame(address, shape[0], shape[1], (strides[0], strides[1], channel), stream, owner)


def _without_gaps(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of uint8 in C order."""
    return tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))


def _name(source: object) -> str:
    kind = type(source)
    return f"the {kind.__module__.partition('.')[0]} {kind.__name__}"
