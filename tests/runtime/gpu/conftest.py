"""A device for tests of what runs on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from host_device import HostDevice
from host_library import compiler

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
