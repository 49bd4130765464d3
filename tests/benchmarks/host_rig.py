"""The host in place of a machine with a GPU."""

from __future__ import annotations

from typing import Any

from host_device import HostDevice
from host_executable import HostExecutable

from benchmarks.gpu.rig import Rig
from lladav.bundle import Bundle
from lladav.errors import EngineError
from lladav.memory_plan import Sizes
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.executable import Executable


class Host(Rig):
    """The host, with a backend that works and one that does not."""

    def __init__(self) -> None:
        super().__init__(("broken", "host"), lambda: HostDevice(1 << 29), self.load)

    @staticmethod
    def load(name: str, bundle: Bundle, device: Device, _: Sizes, captured: bool) -> Any:
        def graph(name: str) -> Executable:
            assert isinstance(device, HostDevice)
            return HostExecutable(device, bundle, name, capturable=captured)

        if name == "broken":
            raise EngineError("it has no engines", cure="build some")
        return graph
