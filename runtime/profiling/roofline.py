"""Passes on this machine's CPU: the least time that they need, and the time that they are predicted to take."""

from __future__ import annotations

from typing import Literal

from lladav.costs import Bound, Roofline, pass_cost
from lladav.handed_on import handed_on
from lladav.linear_layers import Numbers
from lladav.manifest import Manifest
from lladav.memory_plan import Sizes
from lladav.products import PassName, pass_products
from lladav.runtime.profiling.probe import Probe
from lladav.runtime.profiling.product_rates import seconds

Holdup = Bound | Literal["launch", "host"]
"""What a pass waits for most: memory, matrix units, the graph's other work and its nodes' start, or our own code."""


def roofline(manifest: Manifest, kind: PassName, sizes: Sizes, probe: Probe, rows: int | None = None) -> Roofline:
    """The least time of a pass: what its copies or products take at the best rates that the probe saw.

    Args:
        manifest: of the bundle.
        kind: of pass.
        sizes: of its window, buckets as they are computed.
        probe: of this machine, with as many threads.
        rows: of logits per sequence; None is the whole canvas.
    """
    numbers = Numbers.of(manifest, cpu=True)
    cost = pass_cost(manifest, kind, sizes, numbers, rows)
    moving = cost.bytes / probe.bandwidth
    products = pass_products(manifest, kind, sizes, numbers, rows)
    computing = sum(product.operations / probe.highest(product.form) for product in products)
    bound: Bound = "bandwidth" if moving >= computing else "arithmetic"
    return Roofline(cost.bytes, cost.operations, max(moving, computing) * 1e3, bound)


def predicted_ms(manifest: Manifest, kind: PassName, sizes: Sizes, probe: Probe, rows: int | None = None) -> float:
    """The time that a refresh or step is predicted to take, one part after the other.

    Products take what those of their form and rows take here, and what other nodes read and write moves at
    the rate of copies. Arguments as in `roofline`.
    """
    numbers = Numbers.of(manifest, cpu=True)
    products = pass_products(manifest, kind, sizes, numbers, rows)
    multiplying = sum(seconds(probe.products[product.form], product) for product in products)
    return 1e3 * (multiplying + handed_on(manifest, kind, sizes, numbers, rows) / probe.bandwidth)


def held_up_by(least: Roofline, graph_ms: float, host_ms: float = 0.0) -> Holdup:
    """What the largest part of a pass is: what it must do, what the graph takes beyond that, or the host's code.

    Args:
        least: its roofline.
        graph_ms: measured inside the graph.
        host_ms: measured outside.
    """
    parts: dict[Holdup, float] = {least.bound: least.ms, "launch": graph_ms - least.ms, "host": host_ms}
    return max(parts, key=parts.__getitem__)
