"""Passes beside the least time that this machine could need for them."""

from __future__ import annotations

from typing import Literal

from lladav.costs import Bound, Numbers, PassName, Roofline, pass_cost
from lladav.manifest import Manifest
from lladav.memory_plan import Sizes
from lladav.runtime.profiling.probe import Probe

Holdup = Bound | Literal["launch", "host"]
"""What a pass waits for most: memory, matrix units, the graph's other work and its nodes' start, or our own code."""


def roofline(manifest: Manifest, kind: PassName, sizes: Sizes, probe: Probe, rows: int | None = None) -> Roofline:
    """The least time of a pass on this machine's CPU.

    Products of integers may beat it: the rate of products is that of float32.

    Args:
        manifest: of the bundle.
        kind: of pass.
        sizes: of its window, buckets as they are computed.
        probe: of this machine, with as many threads.
        rows: of logits per sequence; None is the whole canvas.
    """
    return probe.rates.roofline(pass_cost(manifest, kind, sizes, Numbers.of(manifest, cpu=True), rows))


def held_up_by(least: Roofline, graph_ms: float, host_ms: float = 0.0) -> Holdup:
    """What the largest part of a pass is: what it must do, what the graph takes beyond that, or the host's code.

    Args:
        least: its roofline.
        graph_ms: measured inside the graph.
        host_ms: measured outside.
    """
    parts: dict[Holdup, float] = {least.bound: least.ms, "launch": graph_ms - least.ms, "host": host_ms}
    return max(parts, key=parts.__getitem__)
