"""Planned memory on a device: one allocation, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lladav.errors import BackendError
from lladav.manifest import Manifest
from lladav.memory_plan import SLOTS, MemoryPlan, Sizes, plan_memory
from lladav.runtime.gpu.loop_state import RESTRICTION, RULES, canvas_dtype, log_dtype
from lladav.runtime.gpu.memory import DeviceMemory


class Device:
    """As much of a device as memory needs."""

    name = "Orin"

    def __init__(self, free: int) -> None:
        self.left = free
        self.taken: dict[int, int] = {}

    def memory(self) -> tuple[int, int]:
        return self.left, 64_000_000_000

    def allocate(self, size: int) -> int:
        self.taken[4096] = size
        return 4096

    def free(self, address: int) -> None:
        del self.taken[address]


@pytest.fixture
def plan(tiny_bundle: Path) -> MemoryPlan:
    return plan_memory(Manifest.read(tiny_bundle), Sizes(2, 64, 32, 1), scratch=40_000_000)


@pytest.mark.parametrize(("batch", "canvas"), [(1, 2), (2, 32), (1, 96), (3, 512)])
def test_the_loops_records_fit_their_regions(tiny_bundle: Path, batch: int, canvas: int) -> None:
    """The plan counts them without knowing their fields."""
    plan = plan_memory(Manifest.read(tiny_bundle), Sizes(batch, 64, canvas, 1))
    planned = {region.name: region.bytes for region in plan.regions}
    assert {name: planned[name] for name in ("rules", "canvases", "log", "restrictions")} == {
        "rules": RULES.itemsize,
        "canvases": batch * canvas_dtype(canvas).itemsize,
        "log": SLOTS * batch * log_dtype(canvas).itemsize,
        "restrictions": batch * canvas * RESTRICTION.itemsize,
    }


def test_one_allocation_holds_all(plan: MemoryPlan) -> None:
    device: Any = Device(free=plan.total)
    memory = DeviceMemory(device, plan)
    assert device.taken == {4096: plan.total}
    assert memory.addresses == {region.name: 4096 + region.offset for region in plan.regions}
    memory.free()
    assert not device.taken


def test_too_little_is_refused_before_anything_is_allocated(plan: MemoryPlan) -> None:
    device: Any = Device(free=plan.total - 1)
    with pytest.raises(
        BackendError, match=r"prompt of 64 and a canvas of 32 positions, 2 at a time, take 0\.04 GB"
    ) as caught:
        DeviceMemory(device, plan)
    assert "for scratch; 0.04 of 64.00 GB are free on Orin" in caught.value.what
    assert "--prompt-buckets" in caught.value.cure
    assert not device.taken
