"""The ONNX graph of the denoiser: one pass of the language model over a window of positions.

A window of W positions attends to C cached positions and to itself, all in both directions.
With C = 0 and the whole sequence as window it is the full (refresh) pass; with the canvas as
window and the prompt's keys and values as past it is the step pass, with the same weights.
"""

from __future__ import annotations

import numpy as np

from lladav.export.onnx_graph import GraphBuilder
from lladav.geometry import LanguageGeometry
from lladav.manifest import TensorType

# float16 ends at 65,504, and products that enter the residual stream of LLaDA, which was
# trained in bfloat16, may lie beyond it. They are computed this much smaller (a power of
# two, so nothing is rounded) and enlarged again in float32.
FLOAT16_HEADROOM = 32.0


def denoiser(g: LanguageGeometry, compute: TensorType) -> GraphBuilder:
    """The language model's pass over a window.

    Inputs: `inputs_embeds` `[B, W, D]` float32, `position_ids` `[B, W]` int64,
    `attention_bias` `[B, 1, 1, C + W]` float32 (0, or very negative where a key is padding),
    `rows` `[R]` int64 (window positions whose logits are wanted) and per layer
    `past_key_values.N.{key,value}` `[B, H_kv, C, Dh]`.

    Outputs: `logits` `[B, R, V]` float32 and per layer `present.N.{key,value}`
    `[B, H_kv, W, Dh]`: the window's own, keys after rotary embedding. The caller decides which
    of them to keep.

    Args:
        g: sizes; `vocab_rows` is the number of rows of logits.
        compute: type of matrix products; RMSNorm, rotary embedding, softmax, the residual
            stream and the logits are float32.
    """
    b = GraphBuilder("denoiser", compute)
    x = b.input("inputs_embeds", "float32", ("batch", "window", g.hidden_size))
    positions = b.input("position_ids", "int64", ("batch", "window"))
    bias = b.input("attention_bias", "float32", ("batch", 1, 1, "keys"))
    rows = b.input("rows", "int64", ("rows",))
    cache = ("batch", g.kv_heads, "past", g.head_size)
    past = [
        (b.input(f"past_key_values.{i}.key", compute, cache), b.input(f"past_key_values.{i}.value", compute, cache))
        for i in range(g.layers)
    ]
    with b.scope("rotary"):
        cos, sin = _rotary_tables(b, positions, g)
    present = []
    for i in range(g.layers):
        prefix = f"model.layers.{i}"
        with b.scope(f"layers.{i}"):
            with b.scope("self_attn"):
                h = b.cast(_rms_norm(b, x, f"{prefix}.input_layernorm", g), compute, "float32")
                mixed, key, value = _attention(b, h, f"{prefix}.self_attn", g, cos, sin, bias, past[i])
                present.append((key, value))
                x = b.op("Add", x, mixed, name="residual")
            with b.scope("mlp"):
                h = b.cast(_rms_norm(b, x, f"{prefix}.post_attention_layernorm", g), compute, "float32")
                x = b.op("Add", x, _mlp(b, h, f"{prefix}.mlp", g), name="residual")
    with b.scope("head"):
        chosen = _rms_norm(b, b.op("Gather", x, rows, axis=1), "model.norm", g)
        shape = (g.vocab_rows, g.hidden_size)
        logits = b.linear(b.cast(chosen, compute, "float32"), "lm_head", shape, name="lm_head")
        logits = b.cast(logits, "float32", compute)
    b.output(logits, "logits", "float32", ("batch", "rows", g.vocab_rows))
    window = ("batch", g.kv_heads, "window", g.head_size)
    for i, (key, value) in enumerate(present):
        b.output(key, f"present.{i}.key", compute, window)
        b.output(value, f"present.{i}.value", compute, window)
    return b


def _rotary_tables(b: GraphBuilder, positions: str, g: LanguageGeometry) -> tuple[str, str]:
    """Cosine and sine `[B, 1, W, Dh / 2]` float32."""
    half = np.arange(0, g.head_size, 2, dtype=np.float32) / np.float32(g.head_size)
    inverse = (1.0 / np.power(np.float32(g.rope_theta), half)).astype(np.float32)
    columns = b.op("Unsqueeze", b.op("Cast", positions, to=1), b.constant([1, 3], "int64"))
    angles = b.op("Mul", columns, b.constant(inverse, "float32"), name="angles")
    return b.op("Cos", angles), b.op("Sin", angles)


def _rotate(b: GraphBuilder, x: str, cos: str, sin: str) -> str:
    """Rotate-half RoPE on `[B, H, W, Dh]`."""
    first, second = b.split(x, 2, axis=-1)
    left = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
    right = b.op("Add", b.op("Mul", second, cos), b.op("Mul", first, sin))
    return b.op("Concat", left, right, axis=-1)


def _rms_norm(b: GraphBuilder, x: str, source: str, g: LanguageGeometry) -> str:
    mean = b.op("ReduceMean", b.op("Mul", x, x, name="square"), b.constant([-1], "int64"), keepdims=1, name="mean")
    root = b.op("Sqrt", b.op("Add", mean, b.constant(g.rms_norm_eps, "float32")))
    scale = b.weight(f"{source}.weight", (g.hidden_size,), "float32")
    return b.op("Mul", b.op("Div", x, root), scale, name="rms_norm")


def _into_residual(b: GraphBuilder, x: str, source: str, shape: tuple[int, int], name: str) -> str:
    """`x @ W` for a float32 `x`, as float32, with headroom where the compute type needs it."""
    headroom = FLOAT16_HEADROOM if b.compute == "float16" else None
    if headroom:
        x = b.op("Mul", x, b.constant(1 / headroom, "float32"), name="shrink")
    y = b.cast(b.linear(b.cast(x, b.compute, "float32"), source, shape, name=name), "float32", b.compute)
    return b.op("Mul", y, b.constant(headroom, "float32"), name="enlarge") if headroom else y


def _attention(
    b: GraphBuilder,
    h: str,
    source: str,
    g: LanguageGeometry,
    cos: str,
    sin: str,
    bias: str,
    past: tuple[str, str],
) -> tuple[str, str, str]:
    """Returns the mixed values `[B, W, D]` float32 and the window's keys and values."""
    kinds = (("q_proj", g.heads), ("k_proj", g.kv_heads), ("v_proj", g.kv_heads))
    q, k, v = (
        b.op(
            "Transpose",
            b.op(
                "Reshape",
                b.linear(h, f"{source}.{p}", (n * g.head_size, g.hidden_size), name=p),
                b.constant([0, 0, n, g.head_size], "int64"),
            ),
            perm=[0, 2, 1, 3],
        )
        for p, n in kinds
    )
    q = _rotate(b, b.cast(q, "float32", b.compute), cos, sin)
    # Scaling before the product keeps its float16 result small.
    q = b.cast(b.op("Mul", q, b.constant(g.head_size**-0.5, "float32"), name="scale"), b.compute, "float32")
    key = b.cast(_rotate(b, b.cast(k, "float32", b.compute), cos, sin), b.compute, "float32")
    keys = b.op("Concat", past[0], key, axis=2, name="keys")
    values = b.op("Concat", past[1], v, axis=2, name="values")
    group = g.heads // g.kv_heads
    if group > 1:  # heads that share keys become further rows of one product
        q = b.op("Reshape", q, b.constant([0, g.kv_heads, -1, g.head_size], "int64"))
    scores = b.op("MatMul", q, b.op("Transpose", keys, perm=[0, 1, 3, 2]), name="scores")
    scores = b.op("Add", b.cast(scores, "float32", b.compute), bias, name="mask")
    weights = b.cast(b.op("Softmax", scores, axis=-1), b.compute, "float32")
    mixed = b.op("MatMul", weights, values, name="mix")
    if group > 1:
        mixed = b.op("Reshape", mixed, b.constant([0, g.heads, -1, g.head_size], "int64"))
    width = g.heads * g.head_size
    rows = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant([0, 0, width], "int64"))
    rows = b.cast(rows, "float32", b.compute)
    return _into_residual(b, rows, f"{source}.o_proj", (g.hidden_size, width), "o_proj"), key, v


def _mlp(b: GraphBuilder, h: str, source: str, g: LanguageGeometry) -> str:
    """SwiGLU; the product of gate and up is taken in float32, where it cannot overflow."""
    shape = (g.intermediate_size, g.hidden_size)
    gate = b.cast(b.linear(h, f"{source}.gate_proj", shape, name="gate_proj"), "float32", b.compute)
    up = b.cast(b.linear(h, f"{source}.up_proj", shape, name="up_proj"), "float32", b.compute)
    product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate), name="silu"), up, name="product")
    return _into_residual(b, product, f"{source}.down_proj", (g.hidden_size, g.intermediate_size), "down_proj")
