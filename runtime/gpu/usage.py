"""What of a GPU's memory a backend has taken, by what its driver counts and by the plan."""

from __future__ import annotations

from dataclasses import dataclass

from lladav.memory_plan import MemoryPlan


@dataclass(frozen=True)
class DeviceUsage:
    """Bytes. The driver counts what is free for all programs: others that allocate meanwhile are in these figures.

    Attributes:
        weights: that less was free after graphs were loaded.
        files: of the graphs' weights or plans, as they are stored.
        plan: what was laid out beside them.
        later: that less is free since then.
        shared: whether CPU and GPU have one memory, so that less may be free for what the host does.
    """

    weights: int
    files: int
    plan: MemoryPlan
    later: int
    shared: bool
