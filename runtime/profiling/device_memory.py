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

_REGIONS = (
    ("prompt KV", (PAST,)),
    ("activations", ("scratch",)),
    ("vision", ("pixel_values", "vision_features", "image_features")),
    ("embeddings", ("embed_tokens",)),
)
_REST = "canvas and logits"
_PLANNED = "laid out for the largest sizes"


def device_memory(usage: DeviceUsage, graphics: int | None, notes: list[str]) -> DeviceMemory:
    """Parts and their total.

    Args:
        usage: of the backend.
        graphics: bytes that NvMap holds for this process; None where it does not tell.
        notes: gets what could not be measured.
    """
    parts = [*planned(usage.plan)]
    if not usage.shared:
        counted = "less free on the GPU"
        parts.append(_part("weights", usage.weights, f"{counted} after graphs were loaded"))
        parts.append(
            _part("libraries", usage.later, f"{counted} since then: contexts, captured graphs, compiled kernels")
        )
        return DeviceMemory(tuple(parts), usage.weights + usage.plan.total + usage.later)
    parts.append(_part("weights", usage.files, "size of the files"))
    if graphics is None:
        notes.append(
            f"what the GPU's driver holds was not measured: {NVMAP} is not there or may not be read, which takes root; "
            "weights count as large as their files, and what libraries allocate by themselves is missing"
        )
        graphics = sum(part.bytes for part in parts)
    return DeviceMemory(tuple(parts), graphics)


def planned(plan: MemoryPlan) -> Iterator[MemoryPart]:
    """All of a plan, gaps included."""
    rest = plan.total
    for name, prefixes in _REGIONS:
        size = sum(plan.bytes_of(prefix) for prefix in prefixes)
        rest -= size
        yield _part(name, size, _PLANNED)
    yield _part(_REST, rest, f"{_PLANNED}: inputs, logits and the loop's records")


def _part(name: str, size: int, how: str) -> MemoryPart:
    return MemoryPart(name=name, bytes=max(0, size), file_backed=False, how=how, on_gpu=True)
