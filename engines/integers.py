"""What became of a graph's integers in an engine.

A builder may keep weights in integers or widen them, and may round and widen inside products or in layers of their own.
The latter is how engines in integers came to be slower than those in fp16 (NVIDIA/TensorRT#1604, #2067 on an Orin,
#4273; NVIDIA/Model-Optimizer#167, a vision transformer at half the speed).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lladav.engines.layers import NODE, Layer
from lladav.records import Conversion, IntegerUse

_ROUNDS, _WIDENS = "QUANTIZE", "DEQUANTIZE"
# What changes no value; fewer names exist in older versions.
_MOVES = frozenset({"CAST", "SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE"})


@dataclass(frozen=True)
class GraphIntegers:
    """Where a graph has integers.

    Attributes:
        weights: nodes that widen constants, each with the nodes that multiply by these and itself.
        conversions: nodes that round or widen, each with what it does.
        moves: nodes that change no value.
    """

    weights: Mapping[str, frozenset[str]]
    conversions: Mapping[str, Conversion]
    moves: frozenset[str]


def graph_integers(network: Any) -> GraphIntegers:
    """Looks at a graph as the library has parsed it.

    Args:
        network: of the library.
    """
    constants, weight_of = set[str](), dict[str, str]()
    weights: dict[str, set[str]] = defaultdict(set)
    conversions, moves = dict[str, Conversion](), set[str]()
    for layer in map(network.get_layer, range(network.num_layers)):
        kind, node = layer.type.name, _name(layer)
        read = [layer.get_input(i).name for i in range(layer.num_inputs) if layer.get_input(i) is not None]
        written = layer.get_output(0)
        if kind == "CONSTANT":
            constants.add(written.name)
        elif kind in (_ROUNDS, _WIDENS):
            # Lengths that a profile leaves open are negative.
            shape = tuple(written.shape)
            fixed = math.prod(size for size in shape if size >= 0)
            conversions[node] = Conversion(node=node, values=fixed, per_position=any(size < 0 for size in shape))
            if kind == _WIDENS and read[0] in constants:
                weight_of[written.name] = node
                weights[node].add(node)
        elif kind in _MOVES:
            moves.add(node)
            if read[0] in weight_of:
                weight_of[written.name] = weight_of[read[0]]
        else:
            for name in read:
                if name in weight_of:
                    weights[weight_of[name]].add(node)
    return GraphIntegers({name: frozenset(nodes) for name, nodes in weights.items()}, conversions, frozenset(moves))


def integer_use(graph: GraphIntegers, layers: Sequence[Layer]) -> IntegerUse | None:
    """What an engine made of them; None where the library tells of none."""
    states: dict[str, set[bool | None]] = defaultdict(set)
    for layer in layers:
        for node in layer.nodes:
            states[node].add(layer.integer_weights)
    found = {name: set().union(*(states[node] for node in nodes)) for name, nodes in graph.weights.items()}
    kept = [name for name, seen in found.items() if True in seen]
    widened = tuple(name for name, seen in found.items() if False in seen and True not in seen)
    if not kept and not widened:
        return None
    alone = {conversion.node: conversion for layer in layers for conversion in _conversions(graph, layer)}
    untold = len(found) - len(kept) - len(widened)
    return IntegerUse(weights=len(kept), widened=widened, untold=untold, conversions=tuple(alone.values()))


def _conversions(graph: GraphIntegers, layer: Layer) -> Iterator[Conversion]:
    """Of a layer that does nothing else."""
    if layer.copies and layer.integers:
        yield Conversion(node=layer.name, values=None, per_position=True)
    elif layer.nodes and layer.nodes <= graph.conversions.keys() | graph.moves:
        yield from (graph.conversions[node] for node in sorted(layer.nodes & graph.conversions.keys()))


def _name(layer: Any) -> str:
    """The node that a layer of the network was made of; the parser's own layers have none."""
    named = NODE.search(layer.metadata)
    return named[1] if named else str(layer.name)
