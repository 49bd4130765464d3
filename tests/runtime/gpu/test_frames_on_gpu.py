"""The same comparisons on a real GPU, with tensors of a library that owns its memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from on_device import cut, merged
from PIL import Image

from lladav.manifest import Preprocessing
from lladav.runtime import merge
from lladav.runtime.gpu.cuda_device import CudaDevice
from lladav.runtime.gpu.frames import device_frame
from lladav.runtime.gpu.kernels import load_kernels
from lladav.runtime.images import pixel_values, preprocess

pytestmark = pytest.mark.gpu

REAL = Preprocessing(
    crop_size=384, grid_pinpoints=tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)), max_tiles=4
)


@pytest.fixture(scope="module")
def gpu() -> Iterator[CudaDevice]:
    device = CudaDevice(load_kernels())
    yield device
    device.close()


@pytest.mark.parametrize("aspect", ["anyres", "pad", "single"])
@pytest.mark.parametrize("size", [(1920, 1080), (640, 480), (22, 17), (3, 700)])
def test_a_tensor_is_cut_as_the_picture_on_the_host(size: tuple[int, int], aspect: Any, gpu: CudaDevice) -> None:
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    expected = pixel_values(preprocess(Image.fromarray(array), REAL, aspect).pixels)
    tensor = torch.from_numpy(array).cuda()
    planes = tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for source in (tensor, planes, SimpleNamespace(__cuda_array_interface__=tensor.__cuda_array_interface__)):
        torch.cuda.synchronize()
        np.testing.assert_array_equal(cut(device_frame(source, gpu), gpu, REAL, aspect), expected)


def test_a_frame_that_is_still_being_written_is_waited_for(gpu: CudaDevice) -> None:
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    expected = pixel_values(preprocess(Image.fromarray(array), REAL).pixels)
    complete, tensor = torch.from_numpy(array).cuda(), torch.zeros(480, 640, 3, dtype=torch.uint8, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # cycles
        tensor.copy_(complete)
        frame = device_frame(tensor, gpu)
    np.testing.assert_array_equal(cut(frame, gpu, REAL, "anyres"), expected)


def test_features_are_merged_as_on_the_host(gpu: CudaDevice) -> None:
    plan = merge.merge_plan((1920, 1080), (5, 3), 27, 4)
    rng = np.random.default_rng(2)
    features, newline = rng.standard_normal((plan.feature_rows, 256), np.float32), rng.standard_normal(256, np.float32)
    np.testing.assert_array_equal(merged(gpu, plan, features, newline), merge.apply(plan, features, newline))
