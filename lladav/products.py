"""The matrix products of a pass, by what they multiply and of how many rows they are.

They are those of the graphs that `export` writes: tests compare them with a count over the graphs' nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from lladav.geometry import LanguageGeometry
from lladav.linear_layers import Linear, Numbers, ProductForm, block_layers, connector_layers, head_layer, tower_layers
from lladav.manifest import Manifest
from lladav.memory_plan import Sizes

PassName = Literal["refresh", "step", "vision_encoder", "connector"]

_KEYS_VALUES = 2
"""Linear layers of a block that come first, and are computed for the whole window always."""
_SOURCES = (0, 0, 0, 1, 2, 2, 3)
"""Which of them share an input: keys, values and queries; gate and up."""
Input = tuple[int, int, int]
"""Block, source and rows."""


class Product(NamedTuple):
    """Matrix products of one form, all of so many rows.

    Attributes:
        form: of what is multiplied.
        rows: of each product: how often what it reads is used.
        operations: of all of them.
    """

    form: ProductForm
    rows: int
    operations: int


def pass_products(
    manifest: Manifest, kind: PassName, sizes: Sizes, numbers: Numbers, rows: int | None = None
) -> Iterator[Product]:
    """All matrix products of a pass.

    Args:
        manifest: of the bundle.
        kind: of pass.
        sizes: of its window, padding included, or of its crops.
        numbers: in which it computes.
        rows: of logits, per sequence; None is the whole canvas. It counts in the denoiser alone.
    """
    g = manifest.geometry
    if kind == "refresh" or kind == "step":
        yield from _denoiser_products(g.language, kind, sizes, numbers, sizes.canvas if rows is None else rows)
        return
    assert g.vision is not None, "a text-only model has no pictures"
    rows_of_crops = sizes.tiles * g.vision.tokens
    if kind == "connector":
        yield from (_product(layer, rows_of_crops, numbers) for layer in connector_layers(g.vision, g.language))
        return
    patches = 3 * g.vision.patch_size**2 * g.vision.hidden_size
    yield Product("float", rows_of_crops, 2 * rows_of_crops * patches)
    yield from (_product(layer, rows_of_crops, numbers) for layer in tower_layers(g.vision))
    scores = g.vision.layers * rows_of_crops * g.vision.tokens
    yield Product("attention", g.vision.tokens, 2 * 2 * g.vision.hidden_size * scores)


def _denoiser_products(
    g: LanguageGeometry, kind: PassName, sizes: Sizes, numbers: Numbers, wanted: int
) -> Iterator[Product]:
    past, window = past_and_window(kind, sizes)
    yield from (_product(layer, sizes.batch * rows, numbers) for _, layer, rows in denoiser_layers(g, window, wanted))
    for mixed in (*[window] * (g.layers - 1), wanted):
        scores = sizes.batch * g.heads * mixed * (past + window)
        # Heads that share keys are further rows.
        yield Product("attention", g.heads // g.kv_heads * mixed, 2 * 2 * g.head_size * scores)


def denoiser_layers(g: LanguageGeometry, window: int, wanted: int) -> Iterator[tuple[Input, Linear, int]]:
    """Linear layers of a pass with what they multiply, and its rows.

    The last block's output is computed for the wanted rows alone, all but its keys and values.
    """
    for number in range(g.layers):
        mixed = wanted if number == g.layers - 1 else window
        for place, (source, layer) in enumerate(zip(_SOURCES, block_layers(g, number), strict=True)):
            rows = window if place < _KEYS_VALUES else mixed
            yield (number, source, rows), layer, rows
    yield (g.layers, 0, wanted), head_layer(g), wanted


def past_and_window(kind: PassName, sizes: Sizes) -> tuple[int, int]:
    """How many positions a pass of the denoiser reads keys and values of, and how many it computes."""
    return (0, sizes.prompt + sizes.canvas) if kind == "refresh" else (sizes.prompt, sizes.canvas)


def _product(layer: Linear, rows: int, numbers: Numbers) -> Product:
    return Product(numbers.form(layer.name, layer.inputs), rows, 2 * rows * layer.products)
