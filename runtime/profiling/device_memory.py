"""Memory of a GPU by what it is for: from the driver's count of what is free, and the one plan of all buffers.

On a board with one memory less is free for whatever the host does, too, so that nothing is concluded from that count:
there NvMap tells what the driver holds for this process, where it may be read.
"""

from __future__ import annotations

from collections.abc import Iterator

from lladav.memory_plan import MemoryPlan
from lladav.prompt_kv import PAST
from lladav.runtime.gpu.usage import DeviceUsage
from lladav.runtime.profiling.memory import NVMAP, DeviceMemory
from lladav.runtime.profiling.record import MemoryPart

_REGIONS = {
    "activations": ("scratch",),
    "vision": ("pixel_values", "vision_features", "image_features"),
    "embeddings": ("embed_tokens",),
    "loop and templates": ("rules", "canvases", "whole", "log", "ids", "restrictions"),
}
_PLANNED = "laid out for the largest sizes"


def device_memory(usage: DeviceUsage, graphics: int | None, notes: list[str]) -> DeviceMemory:
    """Parts and their total.

    Args:
        usage: of the backend.
        graphics: bytes that NvMap holds for this process; None where it does not tell.
        notes: gets what could not be measured.
    """
    if not usage.shared:
        counted = "less free on the GPU"
        weights = _part("weights", usage.weights, f"{counted} after graphs were loaded")
        later = _part("libraries", usage.later, f"{counted} since then: contexts, captured graphs, compiled kernels")
        return DeviceMemory((weights, *planned(usage.plan), later), usage.weights + usage.plan.total + usage.later)
    parts = (_part("weights", usage.files, "size of the files"), *planned(usage.plan))
    if graphics is None:
        notes.append(
            f"what the GPU's driver holds was not measured: {NVMAP} is not there or may not be read, which takes root; "
            "weights count as large as their files, and what libraries allocate by themselves is missing"
        )
        graphics = sum(part.bytes for part in parts)
    return DeviceMemory(parts, graphics)


def planned(plan: MemoryPlan) -> Iterator[MemoryPart]:
    """All of a plan, gaps included."""
    sizes = {"prompt KV": plan.bytes_of(PAST)}
    for part, names in _REGIONS.items():
        sizes[part] = sum(region.bytes for region in plan.regions if region.name in names)
    sizes["canvas and logits"] = plan.total - sum(sizes.values())
    yield from (_part(name, size, _PLANNED) for name, size in sizes.items())


def _part(name: str, size: int, how: str) -> MemoryPart:
    return MemoryPart(name=name, bytes=max(0, size), file_backed=False, how=how, on_gpu=True)
