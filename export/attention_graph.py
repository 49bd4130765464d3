"""Attention of a window to the past and to itself, in the two forms that the denoiser's graphs need.

Both compute `softmax(q [past | window]^T + bias) [past | window]`. They differ in what they
join: keys and values, which is the pattern that engine builders fuse, or only the scores.
"""

from __future__ import annotations

from typing import NamedTuple

from lladav.export.onnx_graph import GraphBuilder


class KeyValues(NamedTuple):
    """Names of keys and values `[B, H_kv, positions, Dh]` in the compute type."""

    key: str
    value: str


class JointAttention:
    """Joins keys and values, and multiplies once."""

    def __init__(self, b: GraphBuilder, bias: str) -> None:
        self._b = b
        self._bias = bias

    def __call__(self, query: str, past: KeyValues, window: KeyValues) -> str:
        """Mixed values `[B, H, rows, Dh]`.

        Args:
            query: `[B, H, rows, Dh]` in the compute type, scaled; H and rows may be H_kv and a
                multiple of the rows.
        """
        b = self._b
        keys = b.op("Concat", past.key, window.key, axis=2, name="keys")
        values = b.op("Concat", past.value, window.value, axis=2, name="values")
        weights = _softmax(b, _scores(b, query, keys), self._bias)
        return b.op("MatMul", weights, values, name="mix")


class SplitAttention:
    """Reads the past where it lies: only scores are joined, and without a past nothing is.

    A step copies in this form `rows` numbers per head and past position twice, instead of the
    position's key and value, which lie in main memory.
    """

    def __init__(self, b: GraphBuilder, bias: str, window_rows: str, past: KeyValues) -> None:
        """`window_rows` has the window as its second dimension; `past` is that of any layer."""
        self._b = b
        self._bias = bias
        with b.scope("parts"):
            length = b.op("Shape", past.key, start=2, end=3, name="past")
            window = b.op("Shape", window_rows, start=1, end=2, name="window")
            self._sizes = b.op("Concat", length, window, axis=0, name="sizes")
            self._no_past = b.op("Equal", length, b.constant([0], "int64"), name="no_past")

    def __call__(self, query: str, past: KeyValues, window: KeyValues) -> str:
        """As `JointAttention`."""

        def alone() -> str:
            weights = _softmax(self._b, _scores(self._b, query, window.key), self._bias)
            return self._b.op("MatMul", weights, window.value, name="mix")

        def both() -> str:
            return self._two_parts(query, past, window)

        return self._b.choose(self._no_past, alone, both, self._b.compute, name="attend")

    def _two_parts(self, query: str, past: KeyValues, window: KeyValues) -> str:
        b = self._b
        scores = [_scores(b, query, part.key) for part in (past, window)]
        weights = _softmax(b, b.op("Concat", *scores, axis=3, name="all_scores"), self._bias)
        parts = b.split_at(weights, self._sizes, 2, axis=3)
        mixed = [b.op("MatMul", w, part.value, name="mix") for w, part in zip(parts, (past, window), strict=True)]
        wide = [b.cast(part, "float32", b.compute) for part in mixed]
        return b.cast(b.op("Add", *wide, name="mixed"), b.compute, "float32")


def _scores(b: GraphBuilder, query: str, keys: str) -> str:
    return b.op("MatMul", query, b.op("Transpose", keys, perm=[0, 1, 3, 2]), name="scores")


def _softmax(b: GraphBuilder, scores: str, bias: str) -> str:
    """In float32, with the bias added."""
    biased = b.op("Add", b.cast(scores, "float32", b.compute), bias, name="mask")
    return b.cast(b.op("Softmax", biased, axis=-1), b.compute, "float32")
