"""The graph of one matrix product, written without the onnx package, which robots lack."""

from __future__ import annotations

from collections.abc import Sequence

# Numbers of fields and types in ONNX's `onnx.proto3`.
_IR_VERSION, _OPSET = 9, 20
_FLOAT = 1


def product_graph(rows: int, inputs: int, outputs: int) -> bytes:
    """A model that multiplies `a` `[rows, inputs]` by `b` `[inputs, outputs]` to `c`, float32."""
    node = _text(1, "a") + _text(1, "b") + _text(2, "c") + _text(4, "MatMul")
    graph = (
        _field(1, node)
        + _text(2, "product")
        + _field(11, _value("a", (rows, inputs)))
        + _field(11, _value("b", (inputs, outputs)))
        + _field(12, _value("c", (rows, outputs)))
    )
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _value(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_field(1, _number(1, size)) for size in shape)
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
