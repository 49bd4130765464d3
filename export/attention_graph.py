"""Attention of a window to the past and to itself, in the two forms that the denoiser's graphs need.

Both compute `softmax(q [past | window]^T + bias) [past | window]`. They differ in what they
join: keys and values, which is the pattern that engine builders fuse, or only the scores.
"""

from __future__ import annotations

from typing import NamedTuple

from lladav.export.onnx_graph import GraphBuilder
from lladav.manifest import TensorType


class KeyValues(NamedTuple):
    """Names of keys and values `[B, H_kv, positions, Dh]`."""

    key: str
    value: str


class Kept(NamedTuple):
    """Keys or values as passes hand them on.

    Attributes:
        values: name of floats, or of int8 codes, `[B, H_kv, positions, Dh]`.
        scale: of codes, what 1 stands for: name of a float32 `[B, H_kv, positions, 1]`.
    """

    values: str
    scale: str | None = None


class Past(NamedTuple):
    """What an earlier pass kept."""

    key: Kept
    value: Kept


class _Attention:
    """Softmax with bias in float32, between products of another type.

    Args:
        b: the graph.
        bias: float32 `[B, 1, 1, C + W]`.
        kind: type of query, keys, values and result.
    """

    def __init__(self, b: GraphBuilder, bias: str, kind: TensorType) -> None:
        self._b = b
        self._bias = bias
        self._kind = kind

    def _scores(self, query: str, keys: str) -> str:
        return self._b.op("MatMul", query, self._b.op("Transpose", keys, perm=[0, 1, 3, 2]), name="scores")

    def _softmax(self, scores: str) -> str:
        biased = self._b.op("Add", self._b.cast(scores, "float32", self._kind), self._bias, name="mask")
        return self._b.cast(self._b.op("Softmax", biased, axis=-1), self._kind, "float32")


class JointAttention(_Attention):
    """Joins keys and values, and multiplies once."""

    def __call__(self, query: str, past: Past, window: KeyValues) -> str:
        """Mixed values `[B, H, rows, Dh]`.

        Args:
            query: `[B, H, rows, Dh]`, scaled; H and rows may be H_kv and a multiple of the rows.
            past: of C positions.
            window: of W positions.
        """
        b = self._b
        keys = b.op("Concat", self._floats(past.key), window.key, axis=2, name="keys")
        values = b.op("Concat", self._floats(past.value), window.value, axis=2, name="values")
        return b.op("MatMul", self._softmax(self._scores(query, keys)), values, name="mix")

    def _floats(self, kept: Kept) -> str:
        if kept.scale is None:
            return kept.values
        # Engine builders read int8 with scales that are constants alone, so these come after.
        one, zero = self._b.constant(1.0, self._kind), self._b.constant(0, "int8")
        codes = self._b.op("DequantizeLinear", kept.values, one, zero, name="past_codes")
        return self._b.op("Mul", codes, self._b.cast(kept.scale, self._kind, "float32"), name="past")


class SplitAttention(_Attention):
    """Reads the past where it lies: only scores are joined, and without a past nothing is.

    A step copies in this form `rows` numbers per head and past position twice, instead of the
    position's key and value, which lie in main memory. Scales of int8 are multiplied with scores and
    with weights, which are fewer numbers than keys and values where rows are fewer than a head is wide.

    Args:
        b, bias, kind: see `_Attention`.
        window_rows: a value whose second dimension is the window.
        past: of any layer.
    """

    def __init__(self, b: GraphBuilder, bias: str, kind: TensorType, window_rows: str, past: Past) -> None:
        super().__init__(b, bias, kind)
        with b.scope("parts"):
            length = b.op("Shape", past.key.values, start=2, end=3, name="past")
            window = b.op("Shape", window_rows, start=1, end=2, name="window")
            self._sizes = b.op("Concat", length, window, axis=0, name="sizes")
            self._no_past = b.op("Equal", length, b.constant([0], "int64"), name="no_past")

    def __call__(self, query: str, past: Past, window: KeyValues) -> str:
        """As `JointAttention`."""

        def alone() -> str:
            weights = self._softmax(self._scores(query, window.key))
            return self._b.op("MatMul", weights, window.value, name="mix")

        def both() -> str:
            return self._two_parts(query, past, window)

        return self._b.choose(self._no_past, alone, both, self._kind, name="attend")

    def _two_parts(self, query: str, past: Past, window: KeyValues) -> str:
        b = self._b
        scores = self._scaled(self._scores(query, self._codes(past.key)), past.key), self._scores(query, window.key)
        weights = self._softmax(b.op("Concat", *scores, axis=3, name="all_scores"))
        of_past, of_window = b.split_at(weights, self._sizes, 2, axis=3)
        mixed = (
            b.op("MatMul", self._scaled(of_past, past.value), self._codes(past.value), name="mix"),
            b.op("MatMul", of_window, window.value, name="mix"),
        )
        return b.op("Add", *mixed, name="mixed")

    def _codes(self, kept: Kept) -> str:
        """Floats, of codes those that they are without their scale."""
        return kept.values if kept.scale is None else self._b.cast(kept.values, self._kind, "int8")

    def _scaled(self, by_position: str, kept: Kept) -> str:
        """A number `[B, H, rows, positions]` for every position, times the scale of what it belongs to."""
        if kept.scale is None:
            return by_position
        scales = self._b.op("Transpose", self._b.cast(kept.scale, self._kind, "float32"), perm=[0, 1, 3, 2])
        return self._b.op("Mul", by_position, scales, name="scaled")
