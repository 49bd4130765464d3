"""Time by layer of an engine, from the library's profiler (`IProfiler`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lladav.engines.layers import layers_of


@dataclass(frozen=True)
class LayerTime:
    """How long a layer took in one run; as `lladav.runtime.gpu.executable.LayerTime`.

    Attributes:
        name: that the library gave it.
        nodes: of the graph, that it computes; empty where the library does not tell.
        ms: milliseconds.
    """

    name: str
    nodes: frozenset[str]
    ms: float


def time_layers(
    trt: Any, engine: Any, context: Any, enqueue: Callable[[], None], runs: int
) -> tuple[tuple[LayerTime, ...], ...]:
    """Runs a pass and has its layers timed.

    Args:
        trt: the library's module.
        engine: of the library.
        context: of its own, with shapes and addresses; every run of it waits for its end from here on.
        enqueue: puts the pass on the stream.
        runs: after one that warms up.

    Returns:
        Of each run all layers, in order.
    """
    profiler = context.profiler = _profiler(trt)
    nodes = {layer.name: layer.nodes for layer in layers_of(trt, engine, context)}
    found = []
    for _ in range(runs + 1):
        profiler.heard.clear()
        enqueue()
        found.append(tuple(LayerTime(name, nodes.get(name, frozenset()), ms) for name, ms in profiler.heard))
    return tuple(found[1:])


def _profiler(trt: Any) -> Any:
    """Hears how long each layer took."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # a class of a module that may be absent
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.heard.append((layer_name, float(ms)))

    return Profiler()
