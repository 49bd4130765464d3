"""A graph of a bundle with the input of every linear layer on view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.export.graph_pieces import GraphPieces

Array = npt.NDArray[Any]
Observe = Callable[[str, npt.NDArray[np.float32]], None]


class ObservedGraph:
    """Runs piece by piece, so that the activations and widened weights of one layer are in memory at a time.

    Args:
        bundle: an open bundle, not quantised.
        name: of one of its graphs.

    Attributes:
        linears: see `GraphRecord`.
        channels: of every tensor.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        pieces = GraphPieces(bundle.file(bundle.manifest.graphs[name].file))
        found = pieces.linear_inputs()
        self._tensors: dict[str, str] = {}
        self.linears = {linear: self._tensors.setdefault(seen.value, linear) for linear, seen in found.items()}
        self.channels = {tensor: found[tensor].channels for tensor in self._tensors.values()}
        self._results = {inside: outside for outside, inside in pieces.results.items()}
        self._plan = []
        needed = set(self._results)
        for scope in reversed(pieces.scopes):
            piece = pieces.piece(scope, shown=self._tensors)
            self._plan.append((piece, frozenset(needed)))
            needed |= set(piece.inputs)
        self._plan.reverse()

    def run(self, inputs: Mapping[str, Array], observe: Observe) -> dict[str, Array]:
        """The graph's outputs by name.

        Args:
            inputs: by name; float16 ones as float32.
            observe: called with the name of every linear layer's input (of layers that share it,
                the first) and its values `[..., channels]`, before the next layer is computed.
        """
        values = dict(inputs)
        self._show(values, observe)
        for piece, needed in self._plan:
            made = piece.run(values)
            self._show(made, observe)
            values = {name: array for name, array in (values | made).items() if name in needed}
            del made
        return {outside: values[inside] for inside, outside in self._results.items()}

    def _show(self, values: Mapping[str, Array], observe: Observe) -> None:
        for name, array in values.items():
            if name in self._tensors:
                observe(self._tensors[name], array)
