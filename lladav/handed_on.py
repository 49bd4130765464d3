"""What the nodes of a pass hand to each other on the CPU, beside what its products read and write.

Caches hold it or not, so it is in no limit, but a prediction needs it.
"""

from __future__ import annotations

from lladav.geometry import LanguageGeometry
from lladav.linear_layers import FLOAT, Numbers
from lladav.manifest import HEAD, Manifest
from lladav.memory_plan import Sizes
from lladav.products import Input, PassName, denoiser_layers, past_and_window


def handed_on(manifest: Manifest, kind: PassName, sizes: Sizes, numbers: Numbers, rows: int | None = None) -> int:
    """Bytes that a refresh's or step's nodes other than products read and write, between them, on the CPU.

    Counted over the graph as ONNX Runtime fuses it, in float32.

    Args:
        manifest: of the bundle.
        kind: of pass, `refresh` or `step`.
        sizes: of its window, padding included.
        numbers: in which it computes.
        rows: of logits, per sequence; None is the whole canvas.
    """
    g = manifest.geometry.language
    wanted = sizes.canvas if rows is None else rows
    past, window = past_and_window(kind, sizes)
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
    return sizes.batch * (FLOAT * floats + integers)


def _int8_prompt(g: LanguageGeometry, past: int, kept: int, computed: int) -> int:
    """Bytes that keys and values in int8 cost more: those of the past are widened, those that are kept rounded.

    Scales are multiplied with scores and with weights of the past.
    """
    widened = g.layers * 2 * g.kv_heads * past * ((1 + FLOAT) * g.head_size + 2 * FLOAT)
    scaled = 2 * 2 * FLOAT * g.heads * computed * past
    # Magnitudes, the largest of them, quotients and codes; the scale, in three nodes.
    vector = (6 * FLOAT + 1) * g.head_size + 6 * FLOAT
    return widened + scaled + g.layers * 2 * g.kv_heads * kept * vector


def _rounding(g: LanguageGeometry, window: int, wanted: int, numbers: Numbers) -> int:
    """Bytes that making inputs integers reads and writes, and giving rows their size back; per sequence."""
    total = 0
    rounded: set[Input] = set()
    for source, layer, rows in denoiser_layers(g, window, wanted):
        if numbers.form(layer.name, layer.inputs) != "w8a8":
            continue
        # Of no known range, each row is looked at and divided by its largest magnitude, which its product is
        # multiplied by.
        unknown = layer.name == HEAD or numbers.quantization is None or numbers.quantization.form != "w8a8"
        if source not in rounded:
            rounded.add(source)
            total += rows * layer.inputs * (FLOAT + 1 + (5 * FLOAT if unknown else 0))
        total += 2 * FLOAT * rows * layer.outputs if unknown else 0
    return total
