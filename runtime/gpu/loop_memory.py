"""What the loop's kernels keep on the device, as regions of the one memory plan."""

from __future__ import annotations

from collections.abc import Mapping

from lladav.runtime.gpu.device import Address
from lladav.runtime.gpu.loop_state import DECISION, RESTRICTION, RULES, STATE, LoopMemory, canvas_dtype

SLOTS = 4
"""Steps whose records are kept: the host reads at most one behind."""

IDS = 1 << 20
"""Ids that rules and restrictions of one answer may refer to: several vocabularies."""


def loop_regions(capacity: int, sequences: int) -> dict[str, int]:
    """Bytes by name, for `plan_memory`.

    Args:
        capacity: rows of the largest canvas.
        sequences: answers side by side.
    """
    log = STATE.itemsize + 2 * capacity * DECISION.itemsize
    return {
        "rules": RULES.itemsize,
        "canvases": sequences * canvas_dtype(capacity).itemsize,
        "whole": 4,
        "log": SLOTS * sequences * log,
        "ids": 4 * IDS,
        "restrictions": sequences * capacity * RESTRICTION.itemsize,
    }


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
