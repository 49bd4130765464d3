"""Graphs of matrix products, as bundles have them, written without the onnx package, which robots lack."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from lladav.linear_layers import ProductForm

BLOCK = 128
"""Inputs that share a scale in int4."""

# Numbers of fields and types in ONNX's `onnx.proto3`; int4 came with opset 21.
_IR_VERSION, _OPSET = 10, 21
_FLOAT, _UINT8, _INT8, _INT4 = 1, 2, 3, 22
_INT_ATTRIBUTE, _INTS_ATTRIBUTE = 2, 7
_ONE = {_FLOAT: struct.pack("<f", 1.0), _INT8: b"\x01", _INT4: b"\x11"}
_PACKED = {_INT4: 2}

Shape = Sequence[int | str]
"""Sizes, and names of those that are open."""


def weights_product(form: ProductForm, inputs: int, outputs: int) -> bytes:
    """A model that multiplies `a` `[rows, inputs]` by weights to `c` `[rows, outputs]`, float32.

    Args:
        form: of the weights, all of which are 1 times their scale, and of `a`.
        inputs: of a layer, a multiple of `BLOCK`.
        outputs: of a layer.
    """
    weights = (inputs, outputs)
    if form == "float":
        tensors, nodes = [_tensor("w", _FLOAT, weights)], [_node("MatMul", "a", "w", to="c")]
    elif form == "int4":
        tensors = [_tensor("w", _INT4, weights), _tensor("scales", _FLOAT, (inputs // BLOCK, outputs))]
        nodes = [_node("DequantizeLinear", "w", "scales", to="wide", axis=0, block_size=BLOCK)]
        nodes.append(_node("MatMul", "a", "wide", to="c"))
    else:
        tensors = [_tensor("w", _INT8, weights), _tensor("scales", _FLOAT, (outputs,))]
        nodes = [_node("DequantizeLinear", "w", "scales", to="wide", axis=1)]
        if form == "w8a8":
            tensors += [_tensor("scale", _FLOAT, ()), _tensor("zero", _UINT8, (), b"\x80")]
            nodes.append(_node("QuantizeLinear", "a", "scale", "zero", to="codes"))
            nodes.append(_node("DequantizeLinear", "codes", "scale", "zero", to="rounded"))
        nodes.append(_node("MatMul", "rounded" if form == "w8a8" else "a", "wide", to="c"))
    return _model(nodes, {"a": ("rows", inputs)}, {"c": ("rows", outputs)}, tensors)


def plain_product() -> bytes:
    """A model that multiplies `a` `[rows, inputs]` by `b` `[inputs, outputs]` to `c`, float32."""
    shapes: dict[str, Shape] = {"a": ("rows", "inputs"), "b": ("inputs", "outputs")}
    return _model([_node("MatMul", "a", "b", to="c")], shapes, {"c": ("rows", "outputs")}, ())


def attention_products() -> bytes:
    """A model that multiplies `q` `[1, heads, rows, size]` by `k`, transposed, and that by `v`, to `c`, float32.

    `k` and `v` are `[1, heads, keys, size]`. There is no softmax in between.
    """
    rows, keys = (1, "heads", "rows", "size"), (1, "heads", "keys", "size")
    nodes = [
        _node("Transpose", "k", to="turned", perm=(0, 1, 3, 2)),
        _node("MatMul", "q", "turned", to="scores"),
        _node("MatMul", "scores", "v", to="c"),
    ]
    return _model(nodes, {"q": rows, "k": keys, "v": keys}, {"c": rows}, ())


def _model(
    nodes: Sequence[bytes], inputs: dict[str, Shape], outputs: dict[str, Shape], tensors: Sequence[bytes]
) -> bytes:
    graph = b"".join(_field(1, node) for node in nodes) + _text(2, "products")
    graph += b"".join(_field(5, tensor) for tensor in tensors)
    graph += b"".join(_field(11, _value(name, shape)) for name, shape in inputs.items())
    graph += b"".join(_field(12, _value(name, shape)) for name, shape in outputs.items())
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _node(operator: str, *inputs: str, to: str, **attributes: int | Sequence[int]) -> bytes:
    node = b"".join(_text(1, name) for name in inputs) + _text(2, to) + _text(4, operator)
    return node + b"".join(_field(5, _attribute(name, value)) for name, value in attributes.items())


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE)
    return _text(1, name) + b"".join(_number(8, one) for one in value) + _number(20, _INTS_ATTRIBUTE)


def _tensor(name: str, kind: int, shape: Sequence[int], item: bytes | None = None) -> bytes:
    """All of it the same item, which is 1."""
    item = item or _ONE[kind]
    count = math.prod(shape) // _PACKED.get(kind, 1)
    dims = b"".join(_number(1, size) for size in shape)
    return dims + _number(2, kind) + _text(8, name) + _field(9, count * item)


def _value(name: str, shape: Shape) -> bytes:
    dims = b"".join(_field(1, _number(1, size) if isinstance(size, int) else _text(2, size)) for size in shape)
    tensor = _number(1, _FLOAT) + _field(2, dims)
    return _text(1, name) + _field(2, _field(1, tensor))


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())


def _field(field: int, content: bytes) -> bytes:
    """A field of given length."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
