"""How far the linear layers of a quantised bundle are from those of another one, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import BundleError
from lladav.export.coverage import layers_with_head
from lladav.export.graph_pieces import GraphPieces, layer_of
from lladav.export.migration import Migration
from lladav.export.progress import Progress
from lladav.runtime.denoiser import no_past

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Values = dict[str, Array]


@dataclass(frozen=True)
class LayerError:
    """One linear layer.

    Attributes:
        graph: that computes it.
        layer: its name in the checkpoint.
        bits: of its weights in the quantised bundle; None where they are no integers.
        error: root mean square of the difference of outputs, over that of the reference's outputs.
    """

    graph: str
    layer: str
    bits: int | None
    error: float

    @property
    def kind(self) -> str:
        """What it is in its block: `down_proj`, or `mm_projector.0` of the connector."""
        parts = self.layer.split(".")
        return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def layer_errors(
    reference: Bundle, quantised: Bundle, inputs: Mapping[str, Sequence[Values]], progress: Progress
) -> list[LayerError]:
    """Runs graphs block by block, each on what the reference gave to it, so that errors do not add up.

    Of both bundles one block's weights are in memory at a time, and of the reference's values those
    that go from block to block. Within a block a layer has the errors of those before it.

    Args:
        reference: what is right.
        quantised: of the same checkpoint.
        inputs: by name of a graph, inputs of some of its passes; float16 ones as float32. What
            `vision_encoder` makes of them are the connector's.
        progress: called with the blocks that are done.

    Raises:
        BundleError: graphs that are cut into different blocks.
    """
    passes = {name: list(values) for name, values in inputs.items()}
    if "vision_encoder" in passes:
        passes["connector"] = []
    graphs = {name: (_Outputs(reference, name), _Outputs(quantised, name)) for name in passes}
    progress.start("layers", sum(len(ours.pieces.scopes) for ours, _ in graphs.values()))
    sums: dict[tuple[str, str], _Sums] = {}
    for name, (ours, theirs) in graphs.items():
        if ours.pieces.scopes != theirs.pieces.scopes:
            raise BundleError(
                f"the graphs {name} of {reference.path} and {quantised.path} have different parts, so another lladav "
                "exported the one than the other",
                cure="export both again with this version",
            )
        errors, ends = _compare(ours, theirs, passes[name], progress)
        sums |= {(name, layer): own for layer, own in errors.items()}
        if name == "vision_encoder":
            features = ours.pieces.results["vision_features"]
            passes["connector"] = [{"vision_features": values[features]} for values in ends]
    quantization, geometry = quantised.manifest.quantization, reference.manifest.geometry
    sizes = layers_with_head(geometry)
    found = []
    for (name, layer), own in sums.items():
        integers = quantization.integers(layer, sizes[layer][1]) if quantization else None
        found.append(LayerError(name, layer, integers.bits if integers else None, own.error))
    return found


def refresh_inputs(prompt: Floats, canvas: Floats, masked: Array) -> Values:
    """Inputs of `denoiser` for a window `[prompt | canvas]`, without padding or keys that are kept; nor a past.

    Args:
        prompt: `[P, D]` rows.
        canvas: `[C, D]` rows.
        masked: canvas positions whose logits are wanted.
    """
    rows = np.concatenate((prompt, canvas))[None]
    return {
        "inputs_embeds": rows,
        "position_ids": np.arange(rows.shape[1])[None],
        "attention_bias": np.zeros((1, 1, 1, rows.shape[1]), np.float32),
        "rows": len(prompt) + masked,
        "kept": np.arange(0),
    }


@dataclass
class _Sums:
    difference: float = 0.0
    expected: float = 0.0

    def add(self, got: Floats, expected: Floats) -> None:
        self.difference += float(np.square(got - expected, dtype=np.float64).sum())
        self.expected += float(np.square(expected, dtype=np.float64).sum())

    @property
    def error(self) -> float:
        return float(np.sqrt(self.difference / self.expected)) if self.expected else 0.0


class _Outputs:
    """A graph whose linear layers' outputs are on view, as the checkpoint's layers give them.

    Attributes:
        pieces: of the graph.
        no_past: see there; other graphs than the denoiser ignore it.
        names: of the values inside, by name of the weight.
    """

    def __init__(self, bundle: Bundle, graph: str) -> None:
        self.pieces = GraphPieces(bundle.file(bundle.manifest.graphs[graph].file))
        self.no_past = no_past(bundle.manifest)
        self.names = self.pieces.linear_outputs()
        self._divided = Migration.read(bundle.path, bundle.manifest.geometry).sources

    def of(self, weight: str, values: Mapping[str, Array]) -> Floats:
        """What a layer gives, whether or not its size was moved into the next one."""
        output: Floats = values[self.names[weight]]
        divided = self._divided.get(weight.removesuffix(".weight"))
        return output if divided is None else output * divided


def _compare(
    ours: _Outputs, theirs: _Outputs, passes: Sequence[Values], progress: Progress
) -> tuple[dict[str, _Sums], list[Values]]:
    """Errors of one graph by layer, and the values that the reference's passes end with."""
    values, sums = list(passes), dict[str, _Sums]()
    inside = set(ours.names.values()) - set(ours.pieces.results.values())
    for scope in ours.pieces.scopes:
        right, other = (graph.pieces.piece(scope, shown=graph.names.values()) for graph in (ours, theirs))
        for number, given in enumerate(values):
            expected, got = right.run(given | ours.no_past), other.run(given | theirs.no_past)
            for weight, name in ours.names.items():
                if name in expected:
                    own = sums.setdefault(layer_of(weight), _Sums())
                    own.add(theirs.of(weight, got), ours.of(weight, expected))
            values[number] = given | {name: array for name, array in expected.items() if name not in inside}
        progress.advance(1)
    return sums, values
