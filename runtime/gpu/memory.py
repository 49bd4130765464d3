"""The planned memory of one size of answers, on a device: allocated once, and never again."""

from __future__ import annotations

from lladav.errors import BackendError
from lladav.memory_plan import MemoryPlan, Region
from lladav.runtime.gpu.device import Address, Device


class DeviceMemory:
    """A plan in one allocation.

    Args:
        device: with room for it.
        plan: what lies where.

    Attributes:
        addresses: of every region, by name.

    Raises:
        BackendError: less is free than the plan takes; nothing was allocated.
    """

    def __init__(self, device: Device, plan: MemoryPlan) -> None:
        free, total = device.memory()
        if free < plan.total:
            largest = max(plan.regions, key=lambda region: region.bytes)
            raise BackendError(
                f"a prompt of {plan.sizes.prompt:,} and a canvas of {plan.sizes.canvas:,} positions, "
                f"{plan.sizes.batch} at a time, take {plan.total / 1e9:.2f} GB of memory beside the weights, "
                f"{largest.bytes / 1e9:.2f} GB of it for {largest.name}; "
                f"{free / 1e9:.2f} of {total / 1e9:.2f} GB are free on {device.name}",
                cure="stop other programs on the GPU, ask less, or export again with smaller --prompt-buckets and "
                "--canvas-buckets",
            )
        self._device = device
        self.plan = plan
        self._start = device.allocate(plan.total)
        self.addresses: dict[str, Address] = {region.name: self._start + region.offset for region in plan.regions}

    def region(self, name: str) -> Region:
        """One of the plan."""
        return next(region for region in self.plan.regions if region.name == name)

    def free(self) -> None:
        """Gives it back; nothing of it may be enqueued any more."""
        self._device.free(self._start)
