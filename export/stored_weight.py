"""A weight as a bundle stores it: its type, its place, and what of the checkpoint it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from lladav.export.graph_form import LinearForm

StoredType = Literal["float32", "float16", "bfloat16", "int64", "int8", "uint8", "int4"]
"""Of weights and constants: those of a graph's inputs and outputs, and integers that stand for weights."""

ELEMENT_TYPES: dict[StoredType, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
}
ELEMENT_BITS: dict[StoredType, int] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int64": 64,
    "int8": 8,
    "uint8": 8,
    "int4": 4,
}


@dataclass(frozen=True)
class Weight:
    """One tensor of the weights file.

    Attributes:
        name: initializer in the graph.
        source: tensor in the checkpoint.
        shape: as stored; a transposed weight is `[in, out]`, so that the graph computes `x @ W`.
        start, stop: which rows of the checkpoint's tensor it holds; further parts of a tensor follow
            one another.
        offset: position in the weights file in bytes.
        form: of a layer whose weights are integers; its scales follow as a weight of the same source.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: StoredType
    transposed: bool
    start: int
    stop: int
    offset: int
    form: LinearForm | None = None

    @property
    def bytes(self) -> int:
        return -(-int(np.prod(self.shape)) * ELEMENT_BITS[self.dtype] // 8)
