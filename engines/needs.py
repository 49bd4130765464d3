"""How much memory answering takes on a GPU, from the geometry."""

from __future__ import annotations

from dataclasses import dataclass

from lladav.costs import weight_bytes
from lladav.geometry import LanguageGeometry
from lladav.linear_layers import Numbers
from lladav.manifest import Manifest
from lladav.memory_plan import Sizes, most_tiles, plan_memory
from lladav.prompt_kv import PAST

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
    numbers: Numbers,
) -> Needs:
    """What one size of prompt and canvas takes.

    Args:
        manifest: of the bundle.
        prompt: positions.
        canvas: positions.
        batch: sequences side by side.
        numbers: of the passes, which may be others than the bundle's.
    """
    g, width = manifest.geometry.language, numbers.width
    window = prompt + canvas
    plan = plan_memory(manifest, Sizes(batch, prompt, canvas, most_tiles(manifest)), precision=numbers.precision)
    prompt_kv, logits = plan.bytes_of(PAST), plan.bytes_of("logits")
    return Needs(
        weights=sum(weight_bytes(manifest.geometry, numbers).values()),
        activations=max(
            activation_bytes(g, window, window, past=0, rows=canvas, batch=batch, width=width),
            activation_bytes(g, canvas, window, past=prompt, rows=canvas, batch=batch, width=width),
        ),
        prompt_kv=prompt_kv,
        logits=logits,
        buffers=plan.total - prompt_kv - logits,
    )


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
