"""A device for tests of what runs on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import MakeGpu
from host_device import HostDevice
from host_executable import HostExecutable
from host_library import compiler

from lladav.bundle import Bundle
from lladav.memory_plan import Sizes
from lladav.runtime import Pipeline
from lladav.runtime.gpu.backend import GpuBackend
from lladav.runtime.gpu.cuda_device import CudaDevice
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.kernels import load_kernels


@pytest.fixture(scope="session")
def compiled() -> None:
    """The kernels can be run on the host."""
    if compiler() is None:
        pytest.skip("no C++ compiler is on this machine, which the kernels are compiled with for the host")


@pytest.fixture
def device(compiled: None) -> Iterator[HostDevice]:  # noqa: ARG001
    """The host in place of a GPU; what is left allocated is looked at in the end."""
    device = HostDevice()
    yield device
    device.check()


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The host and, with `-m gpu`, a real GPU: kernels have to say the same on both."""
    if request.param == "host":
        yield request.getfixturevalue("device")
    else:
        gpu = CudaDevice(load_kernels())
        yield gpu
        gpu.close()


@pytest.fixture
def make(compiled: None, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeGpu:  # noqa: ARG001
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def load(
        *,
        path: Path = tiny_bundle,
        batch: int = 2,
        prompt: int = 64,
        canvas: int = 64,
        capturable: bool = True,
        bursts: bool = False,
        **options: Any,
    ) -> tuple[Pipeline, HostDevice]:
        device, bundle = HostDevice(**options), Bundle.open(path)
        backend = GpuBackend(
            "host",
            device,
            bundle,
            lambda graph: HostExecutable(device, bundle, graph, capturable=capturable),
            Sizes(batch, prompt, canvas, bundle.manifest.buckets.tiles[-1]),
            bursts=bursts,
        )
        return Pipeline(bundle, backend), device

    return load


@pytest.fixture(scope="module")
def cpu(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, threads=1)
