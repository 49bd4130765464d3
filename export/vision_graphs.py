"""ONNX graphs of the SigLIP2 tower and of the connector.

Matrix products run in the compute type; LayerNorm, softmax, GELU and the residual stream
stay in float32, as does the patch embedding, whose weights are few.
"""

from __future__ import annotations

from lladav.export.graph_form import GraphForm
from lladav.export.onnx_graph import GraphBuilder
from lladav.geometry import Geometry, VisionGeometry
from lladav.manifest import CONNECTOR, TOWER


def vision_encoder(g: VisionGeometry, form: GraphForm) -> GraphBuilder:
    """`pixel_values` `[tiles, 3, S, S]` -> `vision_features` `[tiles, N, D_vision]`, both float32.

    The last layer's output is the result: the authors apply no post-LayerNorm
    (`siglip_encoder.py`).
    """
    b = GraphBuilder("vision_encoder", form)
    compute = form.compute
    d = g.hidden_size
    pixels = b.input("pixel_values", "float32", ("tiles", 3, g.image_size, g.image_size))
    with b.scope("embeddings"):
        kernel = b.weight(f"{TOWER}.embeddings.patch_embedding.weight", (d, 3, g.patch_size, g.patch_size), "float32")
        bias = b.weight(f"{TOWER}.embeddings.patch_embedding.bias", (d,), "float32")
        patches = b.op("Conv", pixels, kernel, bias, strides=[g.patch_size] * 2, name="patch_embedding")
        rows = b.op("Transpose", b.op("Reshape", patches, b.constant([0, d, g.tokens], "int64")), perm=[0, 2, 1])
        table = b.weight(f"{TOWER}.embeddings.position_embedding.weight", (g.tokens, d), "float32")
        x = b.op("Add", rows, table, name="position_embedding")
    for i in range(g.layers):
        prefix = f"{TOWER}.encoder.layers.{i}"
        with b.scope(f"layers.{i}"):
            with b.scope("self_attn"):
                h = _layer_norm(b, x, f"{prefix}.layer_norm1", g)
                x = b.op("Add", x, b.cast(_attention(b, h, f"{prefix}.self_attn", g), "float32", compute))
            with b.scope("mlp"):
                h = _layer_norm(b, x, f"{prefix}.layer_norm2", g)
                h = b.linear(h, f"{prefix}.mlp.fc1", (g.intermediate_size, d), name="fc1", bias=True)
                h = b.op("Gelu", b.cast(h, "float32", compute), approximate="tanh")
                h = b.cast(h, compute, "float32")
                h = b.linear(h, f"{prefix}.mlp.fc2", (d, g.intermediate_size), name="fc2", bias=True)
                x = b.op("Add", x, b.cast(h, "float32", compute))
    b.output(x, "vision_features", "float32", ("tiles", g.tokens, d))
    return b


def _layer_norm(b: GraphBuilder, x: str, source: str, g: VisionGeometry) -> str:
    scale = b.weight(f"{source}.weight", (g.hidden_size,), "float32")
    bias = b.weight(f"{source}.bias", (g.hidden_size,), "float32")
    y = b.op("LayerNormalization", x, scale, bias, epsilon=g.layer_norm_eps, axis=-1)
    return b.cast(y, b.compute, "float32")


def _attention(b: GraphBuilder, h: str, source: str, g: VisionGeometry) -> str:
    d = g.hidden_size
    heads = b.constant([0, 0, g.heads, g.head_size], "int64")
    q, k, v = (
        b.op("Reshape", b.linear(h, f"{source}.{p}", (d, d), name=p, bias=True), heads)
        for p in ("q_proj", "k_proj", "v_proj")
    )
    q = b.op("Mul", b.op("Transpose", q, perm=[0, 2, 1, 3]), b.constant(g.head_size**-0.5, b.compute), name="scale")
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 3, 1]), name="scores")
    weights = b.op("Softmax", b.cast(scores, "float32", b.compute), axis=-1)
    mixed = b.op("MatMul", b.cast(weights, b.compute, "float32"), b.op("Transpose", v, perm=[0, 2, 1, 3]), name="mix")
    rows = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant([0, 0, d], "int64"))
    return b.linear(rows, f"{source}.out_proj", (d, d), name="out_proj", bias=True)


def connector(geometry: Geometry, form: GraphForm) -> GraphBuilder:
    """`vision_features` `[tiles, N, D_vision]` -> `image_features` `[tiles, N, D]`, both float32.

    Two layers with exact (erf) GELU. Stitching crops and appending `image_newline` depends
    on the picture's size, so it is the runtime's gather (`runtime/merge.py`), not a graph.
    """
    assert geometry.vision is not None
    b = GraphBuilder("connector", form)
    compute = form.compute
    d_vision, d = geometry.vision.hidden_size, geometry.language.hidden_size
    x = b.input("vision_features", "float32", ("tiles", geometry.vision.tokens, d_vision))
    h = b.linear(b.cast(x, compute, "float32"), f"{CONNECTOR}.0", (d, d_vision), name="fc1", bias=True)
    h = b.cast(b.op("Gelu", b.cast(h, "float32", compute)), compute, "float32")
    h = b.linear(h, f"{CONNECTOR}.2", (d, d), name="fc2", bias=True)
    out = b.cast(h, "float32", compute)
    b.output(out, "image_features", "float32", ("tiles", geometry.vision.tokens, d))
    return b
