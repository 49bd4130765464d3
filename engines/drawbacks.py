"""What speaks against engines in integers, as far as it is known before they run.

By the roofline of `prediction.py` integers are never slower than fp16, since they move less and multiply as much.
What makes them slower is what a builder put around the products (`integers.py`): weights that it widens every time,
or values that it rounds in a pass over memory of its own. Those bytes are added here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lladav.bundle import Bundle
from lladav.costs import pass_cost
from lladav.engines.prediction import rates_of
from lladav.engines.target import Target
from lladav.linear_layers import Numbers
from lladav.manifest import Manifest
from lladav.memory_plan import BYTES, Sizes, default_sizes
from lladav.products import PassName
from lladav.records import EngineRecord

NAMED = 10
"""Layers at most that a warning names."""

KERNELS = 32e6
"""Bytes of a plan that may be kernels: four times as many as TensorRT-RTX 1.7.1 writes beside a graph's weights."""

_PASSES: dict[str, tuple[PassName, ...]] = {
    "denoiser": ("refresh", "step"),
    "vision_encoder": ("vision_encoder",),
    "connector": ("connector",),
}


class PassTime(NamedTuple):
    """A pass as it was built, and with layers in floats; predicted milliseconds."""

    kind: PassName
    ms: float
    plain_ms: float


def drawbacks(bundle: Bundle, target: Target, records: Sequence[EngineRecord]) -> Iterator[str]:
    """What is worth a warning, a sentence each.

    Args:
        bundle: that the engines were built from.
        target: that they are for.
        records: of the engines.
    """
    if bundle.manifest.quantization is None:
        return
    for record in records:
        graph = f"the engine of {record.graph}"
        grown = record.plan.bytes - _weights(bundle.manifest, record.graph)
        if record.integers is None:
            if grown > KERNELS:
                yield (
                    f"{graph} is {grown / 1e6:,.0f} MB larger than its weights, so that integers may not have stayed "
                    f"integers; {record.library} tells of none, or the graph has none"
                )
            continue
        if widened := record.integers.widened:
            yield f"{graph} has weights in floats that the bundle has in integers: {_named(widened)}"
        if alone := record.integers.conversions:
            names = [conversion.node for conversion in alone]
            yield f"{graph} rounds or widens in layers of their own: {_named(names)}"
        slower = [found for found in pass_times(bundle.manifest, target, record) if found.ms > found.plain_ms]
        for kind, ms, plain_ms in slower:
            name, precision = kind.replace("_", " "), bundle.manifest.precision
            yield (
                f"predicted for {target.title}: {name} in {ms:,.3g} ms, in {precision} {plain_ms:,.3g}; layers that "
                "integers do not suit may be kept in floats with `lladav export --keep-layers`"
            )


def pass_times(manifest: Manifest, target: Target, record: EngineRecord) -> Iterator[PassTime]:
    """Passes of an engine at the middle prompt, usual canvas and most crops, and the same with layers in floats.

    Both keep the prompt's keys and values as the bundle does, so that what these save hides no layer that is slow.

    Args:
        manifest: of the bundle, in integers.
        target: that the engine is for.
        record: of the engine, which says what became of integers.
    """
    assert record.integers is not None, "there is nothing to add to a roofline"
    sizes, rates, width = default_sizes(manifest), rates_of(target), BYTES[manifest.precision]
    for kind in _PASSES[record.graph]:
        moved = 0
        for conversion in record.integers.conversions:
            # Values are read and written rounded; weights are written in floats and read again.
            each = _positions(kind, sizes) * (width + 1) if conversion.per_position else 2 * width
            moved += (conversion.values or 0) * each
        ours, plain = (
            rates.roofline(pass_cost(manifest, kind, sizes, numbers)).ms
            for numbers in (Numbers.of(manifest), Numbers(manifest.precision, prompt_kv=manifest.prompt_kv))
        )
        yield PassTime(kind, ours + 1e3 * moved / rates.bandwidth, plain)


def _positions(kind: PassName, sizes: Sizes) -> int:
    """Of a window, or crops."""
    positions = {"refresh": sizes.prompt + sizes.canvas, "step": sizes.canvas}
    return sizes.batch * positions[kind] if kind in positions else sizes.tiles


def _weights(manifest: Manifest, graph: str) -> int:
    """Bytes of a graph's weights, as they are stored."""
    return next(entry.bytes for entry in manifest.files if entry.path == manifest.graphs[graph].weights)


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - NAMED
    return ", ".join(nodes[:NAMED]) + (f" and {more} more" if more > 0 else "")
