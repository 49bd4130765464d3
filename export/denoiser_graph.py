"""The ONNX graph of the denoiser: one pass of the language model over a window of positions.

A window of W positions attends to C cached positions and to itself, all in both directions.
With C = 0 and the whole sequence as window it is the full (refresh) pass; with the canvas as
window and the prompt's keys and values as past it is the step pass, with the same weights.

There are two graphs of it over one file of weights, which differ in how past and window are
joined: one for engine builders and one for ONNX Runtime on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from lladav.export.attention_graph import JointAttention, KeyValues, Past, SplitAttention
from lladav.export.graph_form import GraphForm
from lladav.export.onnx_graph import GraphBuilder
from lladav.export.prompt_kv_graph import PromptKVTensors
from lladav.geometry import LanguageGeometry
from lladav.manifest import CPU_DENOISER, HEAD, TensorType

# float16 ends at 65,504, and products that enter the residual stream of LLaDA, which was
# trained in bfloat16, may lie beyond it. They are computed this much smaller (a power of
# two, so nothing is rounded) and enlarged again in float32.
FLOAT16_HEADROOM = 32.0
# Parts of the head begin at a multiple of what matrix units take at once.
_HEAD_MULTIPLE = 64


def denoiser(g: LanguageGeometry, form: GraphForm) -> GraphBuilder:
    """The language model's pass over a window, in the form that engine builders fuse.

    Inputs: `inputs_embeds` `[B, W, D]` float32, `position_ids` `[B, W]` int64,
    `attention_bias` `[B, 1, 1, C + W]` float32 (0, or very negative where a key is padding),
    `rows` `[R]` int64 (window positions whose logits are wanted), per layer
    `past_key_values.N.{key,value}` `[B, H_kv, C, Dh]`, and `kept` `[K]` int64 (window positions
    whose keys and values are returned).

    Outputs: `logits` `[B, R, V]` float32 and per layer `present.N.{key,value}`
    `[B, H_kv, K, Dh]`, keys after rotary embedding: a refresh keeps the prompt's, which it so
    writes straight to where the next steps read them, and a step none. With `form.prompt_kv` both are
    int8 codes, beside `.key_scale` and `.value_scale` `[B, H_kv, C or K, 1]` float32; a window attends
    to its own keys and values as floats all the same.

    Args:
        g: sizes; `vocab_rows` is the number of rows of logits.
        form: of weights and matrix products; RMSNorm, rotary embedding, softmax, the residual
            stream and the logits are float32.
    """
    b = GraphBuilder("denoiser", form)
    inputs = _inputs(b, g, form.compute)
    kept = b.input("kept", "int64", ("kept",))

    def keep(part: str) -> str:
        return b.op("Gather", part, kept, axis=2, name="kept")

    _language_model(b, g, inputs, JointAttention(b, inputs.bias, form.compute), keep, "kept")
    return b


def denoiser_cpu(g: LanguageGeometry, form: GraphForm, joint: GraphBuilder) -> GraphBuilder:
    """The same pass in the form that costs ONNX Runtime least, on the weights of `joint`.

    Past keys and values are read where they lie. Of the window's own only the first are
    returned: `keep` `[1]` int64 says how many, so that a refresh writes the prompt's straight to
    where the next steps read them; `present.N.{key,value}` are `[B, H_kv, keep, Dh]`.

    All of it computes in float32, because that is what ONNX Runtime multiplies on the CPU: keys and
    values in float16 it would widen in every step. Weights and scales in float16 it widens once,
    when it loads the graph.
    """
    form = replace(form, compute="float32", input_codes="uint8", rounds_rows=True)
    b = GraphBuilder(CPU_DENOISER, form, weights_of=joint)
    inputs = _inputs(b, g, "float32")
    count = b.input("keep", "int64", (1,))

    def keep(part: str) -> str:
        return b.op("Slice", part, b.constant([0], "int64"), count, b.constant([2], "int64"), name="kept")

    attend = SplitAttention(b, inputs.bias, "float32", inputs.embeds, inputs.prompt_kv.past(0))
    _language_model(b, g, inputs, attend, keep, "keep")
    return b


class _Inputs(NamedTuple):
    """Names of the graph's inputs; `cache` is the type in which attention multiplies."""

    cache: TensorType
    embeds: str
    positions: str
    bias: str
    rows: str
    prompt_kv: PromptKVTensors


class _Attend(Protocol):
    def __call__(self, query: str, past: Past, window: KeyValues) -> str: ...


def _inputs(b: GraphBuilder, g: LanguageGeometry, cache: TensorType) -> _Inputs:
    return _Inputs(
        cache=cache,
        embeds=b.input("inputs_embeds", "float32", ("batch", "window", g.hidden_size)),
        positions=b.input("position_ids", "int64", ("batch", "window")),
        bias=b.input("attention_bias", "float32", ("batch", 1, 1, "keys")),
        rows=b.input("rows", "int64", ("rows",)),
        prompt_kv=PromptKVTensors(b, g, cache),
    )


def _language_model(
    b: GraphBuilder,
    g: LanguageGeometry,
    inputs: _Inputs,
    attend: _Attend,
    keep: Callable[[str], str],
    kept: str,
) -> None:
    """Everything from input rows to the outputs `logits` and `present.N`.

    The last layer's output is wanted for the chosen rows alone, so the rest of it, keys and
    values excepted, is computed for these.

    Args:
        b: the graph.
        g: sizes.
        inputs: of the graph.
        attend: mixes values.
        keep: reduces keys or values to the positions that are returned.
        kept: what the number of these is called in shapes.
    """
    x = inputs.embeds
    with b.scope("rotary"):
        rotary = rotary_of_rows = _rotary_tables(b, inputs.positions, g)
    for i in range(g.layers):
        prefix = f"model.layers.{i}"
        with b.scope(f"layers.{i}"):
            with b.scope("self_attn"):
                h = rows = b.cast(_rms_norm(b, x, f"{prefix}.input_layernorm", g), b.compute, "float32")
                if i == g.layers - 1:
                    x, rows = (b.op("Gather", value, inputs.rows, axis=1, name="rows") for value in (x, h))
                    rotary_of_rows = _Rotary(*(b.op("Gather", t, inputs.rows, axis=2, name="rows") for t in rotary))
                query = b.cast(_query(b, rows, f"{prefix}.self_attn", g, rotary_of_rows), inputs.cache, "float32")
                window = _key_values(b, h, f"{prefix}.self_attn", g, rotary, inputs.cache)
                inputs.prompt_kv.keep(i, window, keep)
                mixed = b.cast(attend(query, inputs.prompt_kv.past(i), window), "float32", inputs.cache)
                x = b.op("Add", x, _attention_output(b, mixed, f"{prefix}.self_attn", g), name="residual")
            with b.scope("mlp"):
                h = b.cast(_rms_norm(b, x, f"{prefix}.post_attention_layernorm", g), b.compute, "float32")
                x = b.op("Add", x, _mlp(b, h, f"{prefix}.mlp", g), name="residual")
    with b.scope("head"):
        normed = b.cast(_rms_norm(b, x, "model.norm", g), b.compute, "float32")
        logits = _head(b, normed, g)
    b.output(logits, "logits", "float32", ("batch", "rows", g.vocab_rows))
    inputs.prompt_kv.declare_outputs(kept)


def _head(b: GraphBuilder, x: str, g: LanguageGeometry) -> str:
    """Logits `[B, R, V]` float32, in products along the vocabulary of about one size."""
    step = -(-g.vocab_rows // (b.form.head_parts * _HEAD_MULTIPLE)) * _HEAD_MULTIPLE
    starts = range(0, g.vocab_rows, step)
    logits = []
    for number, start in enumerate(starts):
        shape = (min(step, g.vocab_rows - start), g.hidden_size)
        part = f".{number}" if len(starts) > 1 else ""
        product = b.linear(x, HEAD, shape, name="lm_head", start=start, part=part)
        logits.append(b.cast(product, "float32", b.compute))
    return b.op("Concat", *logits, axis=-1, name="logits") if len(logits) > 1 else logits[0]


class _Rotary(NamedTuple):
    """Cosine and sine `[B, 1, W, Dh / 2]` float32."""

    cos: str
    sin: str


def _rotary_tables(b: GraphBuilder, positions: str, g: LanguageGeometry) -> _Rotary:
    half = np.arange(0, g.head_size, 2, dtype=np.float32) / np.float32(g.head_size)
    inverse = (1.0 / np.power(np.float32(g.rope_theta), half)).astype(np.float32)
    columns = b.op("Unsqueeze", b.op("Cast", positions, to=1), b.constant([1, 3], "int64"))
    angles = b.op("Mul", columns, b.constant(inverse, "float32"), name="angles")
    return _Rotary(b.op("Cos", angles), b.op("Sin", angles))


def _rotate(b: GraphBuilder, x: str, rotary: _Rotary) -> str:
    """Rotate-half RoPE on `[B, H, W, Dh]`."""
    cos, sin = rotary
    first, second = b.split(x, 2, axis=-1)
    left = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
    right = b.op("Add", b.op("Mul", second, cos), b.op("Mul", first, sin))
    return b.op("Concat", left, right, axis=-1)


def _rms_norm(b: GraphBuilder, x: str, source: str, g: LanguageGeometry) -> str:
    """In the pattern that ONNX Runtime and engine builders make one operator of."""
    square = b.op("Pow", x, b.constant(2.0, "float32"), name="square")
    mean = b.op("ReduceMean", square, b.constant([-1], "int64"), keepdims=1, name="mean")
    root = b.op("Sqrt", b.op("Add", mean, b.constant(g.rms_norm_eps, "float32")))
    scale = b.weight(f"{source}.weight", (g.hidden_size,), "float32")
    return b.op("Mul", b.op("Div", x, root), scale, name="rms_norm")


def input_headroom(linear: str, compute: TensorType) -> float:
    """How many times smaller a graph computes a linear layer of the language model."""
    return FLOAT16_HEADROOM if compute == "float16" and linear.endswith((".o_proj", ".down_proj")) else 1.0


def _into_residual(b: GraphBuilder, x: str, source: str, shape: tuple[int, int], name: str) -> str:
    """`x @ W` for a float32 `x`, as float32, with headroom where the compute type needs it."""
    headroom = input_headroom(source, b.compute)
    if headroom > 1:
        x = b.op("Mul", x, b.constant(1 / headroom, "float32"), name="shrink")
    y = b.linear(b.cast(x, b.compute, "float32"), source, shape, name=name, shrunk=headroom)
    y = b.cast(y, "float32", b.compute)
    return b.op("Mul", y, b.constant(headroom, "float32"), name="enlarge") if headroom > 1 else y


def _heads(b: GraphBuilder, h: str, source: str, heads: int, g: LanguageGeometry) -> str:
    """`[B, W, D]` times a projection, as `[B, heads, W, Dh]`."""
    name = source.rpartition(".")[2]
    rows = b.linear(h, source, (heads * g.head_size, g.hidden_size), name=name)
    split = b.op("Reshape", rows, b.constant([0, 0, heads, g.head_size], "int64"))
    return b.op("Transpose", split, perm=[0, 2, 1, 3])


def _query(b: GraphBuilder, h: str, source: str, g: LanguageGeometry, rotary: _Rotary) -> str:
    """`[B, H_kv, rows, Dh]` float32; heads that share keys become further rows."""
    q = _rotate(b, b.cast(_heads(b, h, f"{source}.q_proj", g.heads, g), "float32", b.compute), rotary)
    # Scaling before the product keeps its float16 result small.
    q = b.op("Mul", q, b.constant(g.head_size**-0.5, "float32"), name="scale")
    if g.heads > g.kv_heads:
        q = b.op("Reshape", q, b.constant([0, g.kv_heads, -1, g.head_size], "int64"))
    return q


def _key_values(
    b: GraphBuilder, h: str, source: str, g: LanguageGeometry, rotary: _Rotary, cache: TensorType
) -> KeyValues:
    key, value = (_heads(b, h, f"{source}.{p}_proj", g.kv_heads, g) for p in ("k", "v"))
    key = _rotate(b, b.cast(key, "float32", b.compute), rotary)
    return KeyValues(b.cast(key, cache, "float32"), b.cast(value, cache, b.compute))


def _attention_output(b: GraphBuilder, mixed: str, source: str, g: LanguageGeometry) -> str:
    """Mixed values float32, shaped as a query, to `[B, rows, D]` float32."""
    if g.heads > g.kv_heads:
        mixed = b.op("Reshape", mixed, b.constant([0, g.heads, -1, g.head_size], "int64"))
    width = g.heads * g.head_size
    rows = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant([0, 0, width], "int64"))
    return _into_residual(b, rows, f"{source}.o_proj", (g.hidden_size, width), "o_proj")


def _mlp(b: GraphBuilder, h: str, source: str, g: LanguageGeometry) -> str:
    """SwiGLU; the product of gate and up is taken in float32, where it cannot overflow."""
    shape = (g.intermediate_size, g.hidden_size)
    gate = b.cast(b.linear(h, f"{source}.gate_proj", shape, name="gate_proj"), "float32", b.compute)
    up = b.cast(b.linear(h, f"{source}.up_proj", shape, name="up_proj"), "float32", b.compute)
    product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate), name="silu"), up, name="product")
    return _into_residual(b, product, f"{source}.down_proj", (g.hidden_size, g.intermediate_size), "down_proj")
