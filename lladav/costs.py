"""What passes cost: the bytes that must move and the operations that must run, and how long these take at least.

Both follow from the geometry, and are exact for the graphs that `export` writes: tests compare them
with a count over the graphs' nodes. Bytes are those of a pass that keeps everything between its
nodes in caches: each weight and input is read once, each output written once. Operations are those
of matrix products, two per multiplication; all others together are few beside them.

A prediction is no limit: it also needs to know of how many rows each product is, and what nodes hand to
each other (`pass_products`, `handed_on`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.manifest import HEAD, LANGUAGE_LAYERS, Integers, Manifest, Precision, PromptKV, Quantization
from lladav.memory_plan import BYTES, Sizes
from lladav.prompt_kv import position_bytes

PassName = Literal["refresh", "step", "vision_encoder", "connector"]
Bound = Literal["bandwidth", "arithmetic"]
ProductForm = Literal["float", "int8", "int4", "w8a8", "attention"]
"""What products multiply: weights as they are held, in `w8a8` by inputs that are integers too; or activations."""

_FLOAT, _INDEX = 4, 8
_KEYS_VALUES = 2
"""Linear layers of a block that come first, and are computed for the whole window always."""
_SOURCES = (0, 0, 0, 1, 2, 2, 3)
"""Which of them share an input: keys, values and queries; gate and up."""
_Input = tuple[int, int, int]
"""Block, source and rows."""
_TOWER = "model.vision_tower.vision_tower.vision_model.encoder.layers"


@dataclass(frozen=True)
class Numbers:
    """In which numbers passes compute.

    Attributes:
        precision: of matrix products, and of weights that are no integers.
        quantization: which linear layers are integers; None for none.
        cpu: whether ONNX Runtime computes on the CPU, which widens float16 to float32, and 4 bits to 8 where
            `quantization` says so, when it loads a graph, and whose keys and values are float32.
        prompt_kv: integers in which a refresh hands keys and values to steps; None for none.
    """

    precision: Precision
    quantization: Quantization | None = None
    cpu: bool = False
    prompt_kv: PromptKV | None = None

    @classmethod
    def of(cls, manifest: Manifest, *, cpu: bool = False) -> Numbers:
        """Those of a bundle."""
        return cls(manifest.precision, manifest.quantization, cpu, manifest.prompt_kv)

    @property
    def width(self) -> int:
        """Bytes of a weight, key or value that is no integer."""
        return _FLOAT if self.cpu else BYTES[self.precision]

    def integers(self, layer: str, inputs: int) -> Integers | None:
        """What a linear layer's weights are; None for floats."""
        if self.quantization is None:
            return None
        integers = self.quantization.integers(layer, inputs)
        widens = self.cpu and self.quantization.widened
        return Integers(8) if widens and integers is not None and integers.bits == 4 else integers

    def form(self, layer: str, inputs: int) -> ProductForm:
        """What a linear layer's product multiplies."""
        integers = self.integers(layer, inputs)
        if integers is None:
            return "float"
        if integers.bits == 4:
            return "int4"
        return "w8a8" if self._rounds_inputs(layer) else "int8"

    def _rounds_inputs(self, layer: str) -> bool:
        """Whether a layer of 8-bit weights multiplies integers: on the CPU all of the denoiser do."""
        if self.cpu:
            return layer == HEAD or layer.startswith(LANGUAGE_LAYERS)
        assert self.quantization is not None
        return self.quantization.form == "w8a8" and layer.startswith(LANGUAGE_LAYERS)


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
    if kind == "refresh" or kind == "step":
        return _denoiser(g.language, kind, sizes, numbers, sizes.canvas if rows is None else rows)
    assert g.vision is not None, "a text-only model has no pictures"
    rows_of_crops = sizes.tiles * g.vision.tokens
    operations = _sum(pass_products(manifest, kind, sizes, numbers))
    if kind == "connector":
        values = _FLOAT * rows_of_crops * (g.vision.hidden_size + g.language.hidden_size)
        return Cost(_bytes_of(_connector(g.vision, g.language), numbers), values, operations)
    pixels = sizes.tiles * 3 * g.vision.image_size**2
    return Cost(
        weights=_bytes_of(_tower(g.vision), numbers) + _FLOAT * _tower_floats(g.vision),
        values=_FLOAT * (pixels + rows_of_crops * g.vision.hidden_size),
        operations=operations,
    )


def weight_bytes(geometry: Geometry, numbers: Numbers) -> dict[str, int]:
    """Bytes of the weights of each graph, which a pass reads once."""
    language = geometry.language
    parts = {"denoiser": _denoiser_weights(language, numbers)}
    if geometry.vision is not None:
        tower = _bytes_of(_tower(geometry.vision), numbers)
        parts["vision_encoder"] = tower + _FLOAT * _tower_floats(geometry.vision)
        parts["connector"] = _bytes_of(_connector(geometry.vision, language), numbers)
    return parts


class _Linear(NamedTuple):
    """A linear layer, by its name in the checkpoint."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def products(self) -> int:
        """Multiplications for one row."""
        return self.inputs * self.outputs


def _bytes_of(layers: Iterable[_Linear], numbers: Numbers) -> int:
    """Of weights, scales and biases."""
    total = 0
    for layer in layers:
        integers = numbers.integers(layer.name, layer.inputs)
        if integers is None:
            total += layer.products * numbers.width
        else:
            scales = layer.outputs * (layer.inputs // integers.block if integers.block else 1)
            total += layer.products * integers.bits // 8 + scales * numbers.width
        total += layer.outputs * numbers.width if layer.bias else 0
    return total


def pass_products(
    manifest: Manifest, kind: PassName, sizes: Sizes, numbers: Numbers, rows: int | None = None
) -> Iterator[Product]:
    """All matrix products of a pass; arguments as in `pass_cost`."""
    g = manifest.geometry
    if kind == "refresh" or kind == "step":
        yield from _denoiser_products(g.language, kind, sizes, numbers, sizes.canvas if rows is None else rows)
        return
    assert g.vision is not None, "a text-only model has no pictures"
    rows_of_crops = sizes.tiles * g.vision.tokens
    if kind == "connector":
        yield from (_product(layer, rows_of_crops, numbers) for layer in _connector(g.vision, g.language))
        return
    patches = 3 * g.vision.patch_size**2 * g.vision.hidden_size
    yield Product("float", rows_of_crops, 2 * rows_of_crops * patches)
    yield from (_product(layer, rows_of_crops, numbers) for layer in _tower(g.vision))
    scores = g.vision.layers * rows_of_crops * g.vision.tokens
    yield Product("attention", g.vision.tokens, 2 * 2 * g.vision.hidden_size * scores)


def _denoiser_products(
    g: LanguageGeometry, kind: PassName, sizes: Sizes, numbers: Numbers, wanted: int
) -> Iterator[Product]:
    past, window = _past_and_window(kind, sizes)
    yield from (_product(layer, sizes.batch * rows, numbers) for _, layer, rows in _denoiser_layers(g, window, wanted))
    for mixed in (*[window] * (g.layers - 1), wanted):
        scores = sizes.batch * g.heads * mixed * (past + window)
        # Heads that share keys are further rows.
        yield Product("attention", g.heads // g.kv_heads * mixed, 2 * 2 * g.head_size * scores)


def _denoiser_layers(g: LanguageGeometry, window: int, wanted: int) -> Iterator[tuple[_Input, _Linear, int]]:
    """Linear layers of a pass with what they multiply, and its rows.

    The last block's output is computed for the wanted rows alone, all but its keys and values.
    """
    for number in range(g.layers):
        mixed = wanted if number == g.layers - 1 else window
        for place, (source, layer) in enumerate(zip(_SOURCES, _layer(g, number), strict=True)):
            rows = window if place < _KEYS_VALUES else mixed
            yield (number, source, rows), layer, rows
    yield (g.layers, 0, wanted), _head(g), wanted


def handed_on(manifest: Manifest, kind: PassName, sizes: Sizes, numbers: Numbers, rows: int | None = None) -> int:
    """Bytes that a refresh's or step's nodes other than products read and write, between them, on the CPU.

    Caches hold them or not, so they are in no limit. Counted over the graph as ONNX Runtime fuses it, in float32.
    """
    g = manifest.geometry.language
    wanted = sizes.canvas if rows is None else rows
    past, window = _past_and_window(kind, sizes)
    computed = (g.layers - 1) * window + wanted
    # The bias is added and the softmax taken; a step joins the scores of past and canvas, and parts their weights.
    scores = (4 if kind == "refresh" else 8) * g.heads * computed * (past + window)
    # Two norms and two sums; queries scaled, rotated, and turned to heads, as is what attention mixed, in a step of
    # past and canvas.
    mixed = (2 + 11 + 2 + 2 + (0 if kind == "refresh" else 3)) * g.heads * g.head_size
    wide = (4 + 6) * g.hidden_size + mixed
    inner = 5 * g.intermediate_size
    # Keys and values turned to heads, and keys rotated; a refresh keeps both.
    kept = (11 + 2 * 2) * g.kv_heads * g.head_size * window + 2 * 2 * g.kv_heads * g.head_size * (sizes.prompt - past)
    logits = 2 * wanted * g.vocab_rows if manifest.head_parts > 1 else 0
    floats = scores + computed * (wide + inner) + g.layers * kept + logits
    integers = _rounding(g, window, wanted, numbers)
    if numbers.prompt_kv is not None:
        integers += _int8_prompt(g, past, sizes.prompt - past, computed)
    return sizes.batch * (_FLOAT * floats + integers)


def _int8_prompt(g: LanguageGeometry, past: int, kept: int, computed: int) -> int:
    """Bytes that keys and values in int8 cost more: those of the past are widened, those that are kept rounded.

    Scales are multiplied with scores and with weights of the past.
    """
    widened = g.layers * 2 * g.kv_heads * past * ((1 + _FLOAT) * g.head_size + 2 * _FLOAT)
    scaled = 2 * 2 * _FLOAT * g.heads * computed * past
    # Magnitudes, the largest of them, quotients and codes; the scale, in three nodes.
    vector = (6 * _FLOAT + 1) * g.head_size + 6 * _FLOAT
    return widened + scaled + g.layers * 2 * g.kv_heads * kept * vector


def _rounding(g: LanguageGeometry, window: int, wanted: int, numbers: Numbers) -> int:
    """Bytes that making inputs integers reads and writes, and giving rows their size back; per sequence."""
    total = 0
    rounded: set[_Input] = set()
    for source, layer, rows in _denoiser_layers(g, window, wanted):
        if numbers.form(layer.name, layer.inputs) != "w8a8":
            continue
        # Of no known range, each row is looked at and divided by its largest magnitude, which its product is
        # multiplied by.
        unknown = layer.name == HEAD or numbers.quantization is None or numbers.quantization.form != "w8a8"
        if source not in rounded:
            rounded.add(source)
            total += rows * layer.inputs * (_FLOAT + 1 + (5 * _FLOAT if unknown else 0))
        total += 2 * _FLOAT * rows * layer.outputs if unknown else 0
    return total


def _past_and_window(kind: PassName, sizes: Sizes) -> tuple[int, int]:
    return (0, sizes.prompt + sizes.canvas) if kind == "refresh" else (sizes.prompt, sizes.canvas)


def _sum(products: Iterable[Product]) -> int:
    return sum(product.operations for product in products)


def _product(layer: _Linear, rows: int, numbers: Numbers) -> Product:
    return Product(numbers.form(layer.name, layer.inputs), rows, 2 * rows * layer.products)


def _denoiser(g: LanguageGeometry, kind: PassName, sizes: Sizes, numbers: Numbers, rows: int) -> Cost:
    past, window = _past_and_window(kind, sizes)
    position = position_bytes(g, numbers.width, numbers.prompt_kv)
    embeds_and_logits = _FLOAT * (window * g.hidden_size + rows * g.vocab_rows)
    positions_and_bias = _INDEX * window + _FLOAT * (past + window)
    # Which rows, and which keys and values to keep: a list of them, or how many on the CPU.
    chosen = _INDEX * (rows + (1 if numbers.cpu else sizes.prompt - past))
    return Cost(
        weights=_denoiser_weights(g, numbers),
        values=sizes.batch * (embeds_and_logits + positions_and_bias + sizes.prompt * position) + chosen,
        operations=_sum(_denoiser_products(g, kind, sizes, numbers, rows)),
    )


def _denoiser_weights(g: LanguageGeometry, numbers: Numbers) -> int:
    """Linear layers, norms and head; the embedding table is read by row, outside."""
    layers = (layer for number in range(g.layers) for layer in _layer(g, number))
    norms = _FLOAT * (2 * g.layers + 1) * g.hidden_size
    return _bytes_of((*layers, _head(g)), numbers) + norms


def _head(g: LanguageGeometry) -> _Linear:
    return _Linear(HEAD, g.hidden_size, g.vocab_rows)


def _layer(g: LanguageGeometry, number: int) -> tuple[_Linear, ...]:
    """Keys and values first."""
    name, wide, inner = f"model.layers.{number}", g.hidden_size, g.intermediate_size
    queries, shared = g.heads * g.head_size, g.kv_heads * g.head_size
    return (
        _Linear(f"{name}.self_attn.k_proj", wide, shared),
        _Linear(f"{name}.self_attn.v_proj", wide, shared),
        _Linear(f"{name}.self_attn.q_proj", wide, queries),
        _Linear(f"{name}.self_attn.o_proj", queries, wide),
        _Linear(f"{name}.mlp.gate_proj", wide, inner),
        _Linear(f"{name}.mlp.up_proj", wide, inner),
        _Linear(f"{name}.mlp.down_proj", inner, wide),
    )


def _tower(g: VisionGeometry) -> Iterable[_Linear]:
    d, inner = g.hidden_size, g.intermediate_size
    for number in range(g.layers):
        name = f"{_TOWER}.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield _Linear(f"{name}.self_attn.{part}", d, d, bias=True)
        yield _Linear(f"{name}.mlp.fc1", d, inner, bias=True)
        yield _Linear(f"{name}.mlp.fc2", inner, d, bias=True)


def _tower_floats(g: VisionGeometry) -> int:
    """Weights that are float32 always: patches, positions and norms."""
    return g.hidden_size * (3 * g.patch_size**2 + 1 + g.tokens + 4 * g.layers)


def _connector(vision: VisionGeometry, language: LanguageGeometry) -> Iterable[_Linear]:
    yield _Linear("model.mm_projector.0", vision.hidden_size, language.hidden_size, bias=True)
    yield _Linear("model.mm_projector.2", language.hidden_size, language.hidden_size, bias=True)
