"""What passes cost: the bytes that must move and the operations that must run, and how long these take at least.

Both follow from the geometry, and are exact for the graphs that `export` writes: tests compare them
with a count over the graphs' nodes. Bytes are those of a pass that keeps everything between its
nodes in caches: each weight and input is read once, each output written once. Operations are those
of matrix products, two per multiplication; all others together are few beside them.

A prediction is no limit: it also needs to know of how many rows each product is (`products.py`), and what
nodes hand to each other (`handed_on.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.linear_layers import FLOAT, Numbers, block_layers, bytes_of, connector_layers, head_layer, tower_layers
from lladav.manifest import Manifest
from lladav.memory_plan import Sizes
from lladav.products import PassName, pass_products, past_and_window
from lladav.prompt_kv import position_bytes

Bound = Literal["bandwidth", "arithmetic"]

_INDEX = 8


@dataclass(frozen=True)
class Cost:
    """Of one pass.

    Attributes:
        weights: bytes of what the pass multiplies by and adds.
        values: bytes of inputs and outputs.
        operations: of matrix products.
    """

    weights: int
    values: int
    operations: int

    @property
    def bytes(self) -> int:
        return self.weights + self.values


@dataclass(frozen=True)
class Roofline:
    """The least time that a pass takes.

    Attributes:
        bytes: that must move.
        operations: that must run.
        ms: of the slower of the two.
        bound: which of them that is.
    """

    bytes: int
    operations: int
    ms: float
    bound: Bound


@dataclass(frozen=True)
class Rates:
    """What a machine reaches.

    Attributes:
        bandwidth: bytes a second, to and from memory.
        operations: of matrix products, a second.
    """

    bandwidth: float
    operations: float

    def roofline(self, cost: Cost) -> Roofline:
        moving, computing = cost.bytes / self.bandwidth, cost.operations / self.operations
        bound: Bound = "bandwidth" if moving >= computing else "arithmetic"
        return Roofline(cost.bytes, cost.operations, max(moving, computing) * 1e3, bound)


def pass_cost(manifest: Manifest, kind: PassName, sizes: Sizes, numbers: Numbers, rows: int | None = None) -> Cost:
    """What one pass costs.

    Args:
        manifest: of the bundle.
        kind: of pass; a refresh keeps the prompt's keys and values for steps.
        sizes: of its window, padding included, or of its crops.
        numbers: in which it computes.
        rows: of logits, per sequence; None is the whole canvas.
    """
    g = manifest.geometry
    operations = sum(product.operations for product in pass_products(manifest, kind, sizes, numbers, rows))
    if kind == "refresh" or kind == "step":
        moved = _denoiser_values(g.language, kind, sizes, numbers, sizes.canvas if rows is None else rows)
        return Cost(_denoiser_weights(g.language, numbers), moved, operations)
    assert g.vision is not None, "a text-only model has no pictures"
    rows_of_crops = sizes.tiles * g.vision.tokens
    if kind == "connector":
        values = FLOAT * rows_of_crops * (g.vision.hidden_size + g.language.hidden_size)
        return Cost(bytes_of(connector_layers(g.vision, g.language), numbers), values, operations)
    pixels = sizes.tiles * 3 * g.vision.image_size**2
    return Cost(
        weights=bytes_of(tower_layers(g.vision), numbers) + FLOAT * _tower_floats(g.vision),
        values=FLOAT * (pixels + rows_of_crops * g.vision.hidden_size),
        operations=operations,
    )


def weight_bytes(geometry: Geometry, numbers: Numbers) -> dict[str, int]:
    """Bytes of the weights of each graph, which a pass reads once."""
    language = geometry.language
    parts = {"denoiser": _denoiser_weights(language, numbers)}
    if geometry.vision is not None:
        tower = bytes_of(tower_layers(geometry.vision), numbers)
        parts["vision_encoder"] = tower + FLOAT * _tower_floats(geometry.vision)
        parts["connector"] = bytes_of(connector_layers(geometry.vision, language), numbers)
    return parts


def _denoiser_values(g: LanguageGeometry, kind: PassName, sizes: Sizes, numbers: Numbers, rows: int) -> int:
    """Bytes of inputs and outputs."""
    past, window = past_and_window(kind, sizes)
    position = position_bytes(g, numbers.width, numbers.prompt_kv)
    embeds_and_logits = FLOAT * (window * g.hidden_size + rows * g.vocab_rows)
    positions_and_bias = _INDEX * window + FLOAT * (past + window)
    # Which rows, and which keys and values to keep: a list of them, or how many on the CPU.
    chosen = _INDEX * (rows + (1 if numbers.cpu else sizes.prompt - past))
    return sizes.batch * (embeds_and_logits + positions_and_bias + sizes.prompt * position) + chosen


def _denoiser_weights(g: LanguageGeometry, numbers: Numbers) -> int:
    """Linear layers, norms and head; the embedding table is read by row, outside."""
    layers = (layer for number in range(g.layers) for layer in block_layers(g, number))
    norms = FLOAT * (2 * g.layers + 1) * g.hidden_size
    return bytes_of((*layers, head_layer(g)), numbers) + norms


def _tower_floats(g: VisionGeometry) -> int:
    """Weights that are float32 always: patches, positions and norms."""
    return g.hidden_size * (3 * g.patch_size**2 + 1 + g.tokens + 4 * g.layers)
