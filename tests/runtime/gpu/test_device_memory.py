"""Memory of a GPU by what it is for, on a device that is the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_device import HostDevice
from host_executable import HostExecutable

from lladav.bundle import Bundle
from lladav.memory_plan import IDS, Sizes, plan_memory
from lladav.prompt_kv import PAST
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.gpu.backend import GpuBackend
from lladav.runtime.gpu.usage import DeviceUsage
from lladav.runtime.profiling import MemoryLedger, profile, synthetic
from lladav.runtime.profiling.device_memory import device_memory, planned
from lladav.runtime.profiling.record import Memory

LOADED, LATER = 1 << 20, 1 << 16


def answered(device: HostDevice, tiny_bundle: Path) -> tuple[Memory, tuple[str, ...], GpuBackend]:
    """What a profile says of memory, of graphs that take a megabyte each when they are loaded."""
    bundle = Bundle.open(tiny_bundle)

    def load(graph: str) -> HostExecutable:
        device.allocate(LOADED)
        return HostExecutable(device, bundle, graph)

    ledger = MemoryLedger(tiny_bundle)
    backend = GpuBackend("host", device, bundle, load, Sizes(1, 384, 16, bundle.manifest.buckets.tiles[-1]))
    pipeline = Pipeline(bundle, backend)
    ledger.loaded()
    device.allocate(LATER)
    asking = synthetic(pipeline, GenerationConfig(gen_length=4))
    found = profile(pipeline, asking, runs=1, warmup=1, ledger=ledger, layers=False).profile
    assert found.memory is not None
    return found.memory, found.notes, backend


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_categories_are_what_the_device_counts(device: HostDevice, tiny_bundle: Path) -> None:
    memory, notes, backend = answered(device, tiny_bundle)
    there = {part.name: part.bytes for part in memory.parts if part.on_gpu}
    plan = backend.memory.plan
    assert there["weights"] == 3 * LOADED
    assert there["libraries"] == LATER
    assert there["prompt KV"] == plan.bytes_of(PAST) > 0
    assert there["activations"] == HostExecutable.scratch
    assert there["embeddings"] == plan.bytes_of("embed_tokens")
    free, total = device.memory()
    assert sum(there.values()) == total - free == 3 * LOADED + plan.total + LATER
    here = {part.name for part in memory.parts if not part.on_gpu}
    assert here == {"embedding table", "tokenizer", "host work", "host data", "host code"}
    assert memory.total > sum(there.values())
    assert not any("memory" in note or "driver" in note for note in notes)


def test_one_memory_for_both_is_told_by_nvmap(
    device: HostDevice, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "shares_memory", True)
    monkeypatch.setattr("lladav.runtime.profiling.device_backend.nvmap", lambda: 1 << 30)
    memory, notes, _ = answered(device, tiny_bundle)
    there = {part.name: part for part in memory.parts if part.on_gpu}
    assert "libraries" not in there
    assert there["weights"].how == "size of the files"
    assert memory.total > 1 << 30
    assert not any("driver holds" in note for note in notes)


def test_one_memory_that_nobody_tells_of_is_said(tiny_bundle: Path) -> None:
    plan = plan_memory(Bundle.open(tiny_bundle).manifest, Sizes(1, 64, 16, 1), scratch=1000)
    notes: list[str] = []
    usage = DeviceUsage(weights=7, files=5000, plan=plan, later=9, shared=True)
    found = device_memory(usage, None, notes)
    assert found.total == sum(part.bytes for part in found.parts) == 5000 + plan.total
    assert "takes root" in notes[0]


@pytest.mark.parametrize("tiles", [0, 4])
def test_every_byte_of_the_plan_is_in_one_category(tiny_bundle: Path, tiles: int) -> None:
    plan = plan_memory(Bundle.open(tiny_bundle).manifest, Sizes(2, 64, 16, tiles), scratch=1000)
    parts = {part.name: part.bytes for part in planned(plan)}
    assert sum(parts.values()) == plan.total
    assert (parts["vision"] > 0) == bool(tiles)
    assert parts["loop and templates"] > 4 * IDS > parts["canvas and logits"] > plan.bytes_of("logits")
