"""Where in the one memory plan the loop's kernels keep their records."""

from __future__ import annotations

from collections.abc import Mapping

from lladav.memory_plan import SLOTS
from lladav.runtime.gpu.device import Address
from lladav.runtime.gpu.loop_state import LoopMemory


def loop_memory(addresses: Mapping[str, Address], capacity: int, sequences: int) -> LoopMemory:
    """Where the records of a window's canvases lie.

    Args:
        addresses: of the regions, by name.
        capacity: rows of this canvas, at most those of the largest.
        sequences: answers, at most those that there is room for.
    """
    return LoopMemory(
        rules=addresses["rules"],
        canvases=addresses["canvases"],
        whole=addresses["whole"],
        log=addresses["log"],
        capacity=capacity,
        sequences=sequences,
        slots=SLOTS,
    )
