"""How much memory answering takes on a GPU, from the geometry."""

from __future__ import annotations

from dataclasses import dataclass

from lladav.geometry import Geometry, LanguageGeometry
from lladav.inspect import count_parameters
from lladav.manifest import INT4_BLOCK, Manifest, Precision, QuantizedForm
from lladav.memory_plan import BYTES, PAST, Sizes, most_tiles, plan_memory

# What TensorRT-RTX 1.7.1 asked for at compute capabilities 8.6 and 8.9 lay below this, by a fifth
# at most where it matters (docs/decisions.md): a fixed part, rows of the residual stream, of
# projections and of the feed-forward layer, keys and values of past and window joined, and logits
# before they are widened.
_FIXED = 8 << 20
_PER_WIDTH = 16
_PER_FEED_FORWARD = 4
_PER_KEY_WIDTH = 4


@dataclass(frozen=True)
class Needs:
    """Bytes, for one size of prompt and canvas.

    Attributes:
        weights: of all graphs.
        activations: of the larger of the two passes; an estimate.
        prompt_kv: keys and values of the prompt, which a refresh writes where steps read them.
        logits: of every canvas position, float32.
        buffers: the embedding table, inputs of passes, and what goes through the vision encoder at once.
    """

    weights: int
    activations: int
    prompt_kv: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.planned

    @property
    def planned(self) -> int:
        """What is allocated as `lladav.memory_plan` lays it out."""
        return self.prompt_kv + self.logits + self.buffers


def memory_needs(
    manifest: Manifest,
    prompt: int,
    canvas: int,
    *,
    batch: int = 1,
    precision: Precision,
    form: QuantizedForm | None = None,
) -> Needs:
    """What one size of prompt and canvas takes.

    Args:
        manifest: of the bundle.
        prompt: positions.
        canvas: positions.
        batch: sequences side by side.
        precision: of matrix products, which may be another than the bundle's.
        form: of the linear layers, where they are integers.
    """
    g, width = manifest.geometry.language, BYTES[precision]
    window = prompt + canvas
    plan = plan_memory(manifest, Sizes(batch, prompt, canvas, most_tiles(manifest)), precision=precision)
    prompt_kv, logits = plan.bytes_of(PAST), plan.bytes_of("logits")
    return Needs(
        weights=sum(weight_bytes(manifest.geometry, precision, form).values()),
        activations=max(
            activation_bytes(g, window, window, past=0, rows=canvas, batch=batch, width=width),
            activation_bytes(g, canvas, window, past=prompt, rows=canvas, batch=batch, width=width),
        ),
        prompt_kv=prompt_kv,
        logits=logits,
        buffers=plan.total - prompt_kv - logits,
    )


def weight_bytes(geometry: Geometry, precision: Precision, form: QuantizedForm | None = None) -> dict[str, int]:
    """Bytes of every engine's weights; norms, which stay float32, are counted like the rest."""
    g, counts = geometry.language, count_parameters(geometry)
    parts = {"denoiser": counts["language_model"] - g.vocab_rows * g.hidden_size}
    if geometry.vision is not None:
        parts |= {"vision_encoder": counts["vision_tower"], "connector": counts["connector"]}
    width = BYTES[precision]
    if form is None:
        return {name: count * width for name, count in parts.items()}
    # A scale per output feature is less than a thousandth, one per block is not.
    of_linear = {"denoiser": 0.5 + width / INT4_BLOCK} if form == "w4" else {}
    linear = _linear_parameters(geometry)
    return {
        name: (count - linear[name]) * width + round(linear[name] * of_linear.get(name, 1))
        for name, count in parts.items()
    }


def _linear_parameters(geometry: Geometry) -> dict[str, int]:
    """Weights of the layers that a quantised export turns into integers, by graph."""
    g, vision = geometry.language, geometry.vision
    layer = 2 * g.hidden_size * g.head_size * (g.heads + g.kv_heads) + 3 * g.hidden_size * g.intermediate_size
    counts = {"denoiser": g.layers * layer}
    if vision is not None:
        d = vision.hidden_size
        counts["vision_encoder"] = vision.layers * (4 * d * d + 2 * d * vision.intermediate_size)
        counts["connector"] = (d + g.hidden_size) * g.hidden_size
    return counts


def activation_bytes(
    g: LanguageGeometry, window: int, keys: int, *, past: int, rows: int, batch: int, width: int
) -> int:
    """What a pass needs beside weights, inputs and outputs; measured at two bytes a value.

    Args:
        g: sizes.
        window: positions computed.
        keys: positions attended to.
        past: of these, those that come from an earlier pass and are joined to the window's.
        rows: of logits.
        batch: sequences.
        width: bytes of a value in the compute type.
    """
    position = _PER_WIDTH * g.hidden_size + _PER_FEED_FORWARD * g.intermediate_size
    joined = _PER_KEY_WIDTH * g.kv_heads * g.head_size * keys if past else 0
    return _FIXED + batch * (position * window + joined + 2 * g.vocab_rows * rows) * width // 2
