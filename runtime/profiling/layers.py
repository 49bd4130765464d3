"""Time by layer inside the graphs, from ONNX Runtime's profiler or an engine's.

Every node of our graphs is named by its place (`layers.3/self_attn/q_proj`), and what ONNX Runtime makes of
several nodes keeps the name of one of them, with few exceptions that are counted as `other`. Engines say which nodes
each of their layers is made of.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np

from lladav.bundle import Bundle
from lladav.manifest import CPU_DENOISER
from lladav.runtime.denoiser import HostWindow
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.gpu.executable import LayerTime
from lladav.runtime.profiling.record import LayerPart, Layers
from lladav.runtime.sessions import open_session
from lladav.runtime.window import Size

PASSES = 5
"""Of each graph that are looked at, after one that is not."""

_SLOWEST = 10
_SUFFIX = "_kernel_time"
_INSERTED = "InsertedPrecisionFreeCast_"

# The first that fits; norms lie inside the scopes of attention and MLP.
_KINDS = (
    ("connector", re.compile(r"^connector/")),
    ("norm", re.compile(r"norm", re.IGNORECASE)),
    ("attention", re.compile(r"/(self_attn|rotary|parts)/")),
    ("MLP", re.compile(r"/mlp/")),
    ("head", re.compile(r"/head/")),
    ("embeddings", re.compile(r"/embeddings/")),
)


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        name: with its graph's pass in front, as `refresh/layers.0/mlp/gate_proj`.
        ms: of every pass that was looked at.
        made_of: nodes of the graph, where a layer of an engine stands for several.
    """

    name: str
    ms: tuple[float, ...]
    made_of: frozenset[str] = frozenset()

    @property
    def mean(self) -> float:
        return sum(self.ms) / len(self.ms)

    @property
    def kind(self) -> str:
        """What its names say of it; `other` where it has one of the library's own."""
        graph = self.name.partition("/")[0]
        return kind_of(" ".join((self.name, *(f"{graph}/{node}" for node in sorted(self.made_of)))))


def kind_of(name: str) -> str:
    """What a name says; of several the kind that comes first."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other")


def node_times(events: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Milliseconds by node and pass, of the events that ONNX Runtime's profiler wrote.

    A node with graphs inside, such as `If`, is left with the time that no node inside accounts for.
    """
    runs = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run"]
    passes: list[dict[str, float]] = [defaultdict(float) for _ in runs]
    nodes = sorted((e for e in events if e["cat"] == "Node" and e["name"].endswith(_SUFFIX)), key=lambda e: e["ts"])
    around: list[Mapping[str, Any]] = []
    for event in nodes:
        run = next((i for i, (began, ended) in enumerate(runs) if began <= event["ts"] < ended), None)
        if run is None:
            continue
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
            around.pop()
        passes[run][_name(event)] += event["dur"] / 1e3
        if around:
            passes[run][_name(around[-1])] -= event["dur"] / 1e3
        around.append(event)
    return [dict(times) for times in passes]


def _name(event: Mapping[str, Any]) -> str:
    return str(event["name"]).removesuffix(_SUFFIX).removeprefix(_INSERTED).rstrip("/")


def engine_nodes(graph: str, runs: Sequence[Sequence[LayerTime]]) -> list[Node]:
    """Layers of an engine's pass.

    Args:
        graph: name of the pass.
        runs: times of all its layers, of each run.
    """
    times: dict[tuple[str, frozenset[str]], list[float]] = defaultdict(list)
    for run in runs:
        heard: dict[tuple[str, frozenset[str]], float] = defaultdict(float)
        for layer in run:
            heard[layer.name, layer.nodes] += layer.ms
        for key, ms in heard.items():
            times[key].append(ms)
    return [Node(f"{graph}/{_placed(*key)}", tuple(ms), key[1]) for key, ms in times.items()]


def _placed(name: str, nodes: frozenset[str]) -> str:
    """A layer's name; where it does not say its place, behind the place that its nodes share."""
    if "/" in name or not nodes:
        return name
    return str(Path(commonpath([Path(node).parent for node in nodes])) / name)


def fold(nodes: Sequence[Node]) -> Layers:
    """The tree of passes and kinds of layers, and the slowest nodes."""
    graphs: dict[str, float] = defaultdict(float)
    kinds: dict[str, float] = defaultdict(float)
    for node in nodes:
        graph = node.name.partition("/")[0]
        graphs[graph] += node.mean
        kinds[f"{graph}/{node.kind}"] += node.mean
    tree = []
    for graph, ms in graphs.items():
        tree.append(LayerPart(name=graph, ms=ms, share=1.0))
        own = sorted((part for part in kinds.items() if part[0].startswith(f"{graph}/")), key=lambda part: -part[1])
        tree += [LayerPart(name=name, ms=max(0.0, spent), share=max(0.0, spent / ms)) for name, spent in own]
    slowest = sorted(nodes, key=lambda node: -node.mean)[:_SLOWEST]
    return Layers(
        tree=tuple(tree),
        slowest=tuple(
            LayerPart(name=node.name, ms=node.mean, share=node.mean / graphs[node.name.partition("/")[0]])
            for node in slowest
        ),
    )


def trtexec_profile(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """The list that `trtexec --exportProfile` writes, with one entry per node."""
    whole = sum(node.mean for node in nodes) or 1.0
    entries: list[dict[str, Any]] = [{"count": max((len(node.ms) for node in nodes), default=0)}]
    entries += (
        {
            "name": node.name,
            "timeMs": sum(node.ms),
            "averageMs": node.mean,
            "medianMs": statistics.median(node.ms),
            "percentage": 100 * node.mean / whole,
        }
        for node in nodes
    )
    return entries


def profile_layers(bundle: Bundle, threads: int | None, size: Size, tiles: int) -> list[Node]:
    """Looks at every node of the passes that an answer had, in sessions of its own.

    Args:
        bundle: an open bundle, on the CPU.
        threads: of one operator.
        size: of the window: sequences, prompt bucket, canvas bucket.
        tiles: crops of a pass of the vision encoder; 0 leaves it out.
    """
    nodes = _nodes(
        bundle, CPU_DENOISER, threads, ("refresh", "step"), lambda session: _window_passes(bundle, session, size)
    )
    if tiles:
        vision = bundle.manifest.geometry.vision
        assert vision is not None
        pixels = np.zeros((tiles, 3, vision.image_size, vision.image_size), np.float32)
        features = np.zeros((tiles, vision.tokens, vision.hidden_size), np.float32)
        for graph, name, value in (
            ("vision_encoder", "pixel_values", pixels),
            ("connector", "vision_features", features),
        ):

            def passes(session: Any, name: str = name, value: np.ndarray = value) -> tuple[Callable[[], object], ...]:
                return (lambda: session.run(None, {name: value}),)

            nodes += _nodes(bundle, graph, threads, (graph,), passes)
    return nodes


def _window_passes(bundle: Bundle, session: Any, size: Size) -> tuple[Callable[[], object], ...]:
    batch, prompt, canvas = size
    window = HostWindow(session, bundle.manifest, EmbeddingTable.of(bundle), size, True, 1)
    window.lay_out([prompt] * batch, canvas)
    rows = window.canvas_start + np.arange(canvas)
    return lambda: window.refresh(rows), lambda: window.step(rows)


def _nodes(
    bundle: Bundle,
    graph: str,
    threads: int | None,
    names: Sequence[str],
    passes: Callable[[Any], tuple[Callable[[], object], ...]],
) -> list[Node]:
    """Nodes of a session's passes, each called `names` and run in turn."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(bundle, graph, threads, Path(folder) / graph)
        runs = passes(session)
        for _ in range(PASSES + 1):
            for run in runs:
                run()
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    found: dict[str, list[float]] = defaultdict(list)
    for number, times in enumerate(node_times(events)[len(runs) :]):
        for name, ms in times.items():
            found[f"{names[number % len(runs)]}/{name}"].append(ms)
    return [Node(name, tuple(ms)) for name, ms in found.items()]
