"""A graph cut at the borders of its scopes, so that a model larger than memory runs layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

_STORED: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: np.uint16,
}


class Piece:
    """One scope as a graph of its own, whose weights are inputs.

    ONNX Runtime copies and repacks the weights of a graph, but takes inputs as they are: a
    piece needs little memory beyond the file cache.

    Attributes:
        inputs: names of the values it needs.
        outputs: names of the values that other scopes or the caller use, in the order in which
            they are computed; the last one is what the scope hands on to the next.
        bytes: size of its weights in their file.
    """

    def __init__(self, model: onnx.ModelProto, inputs: tuple[str, ...], weights: Mapping[str, Array]) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._weights = weights
        self.inputs = inputs
        self.outputs = tuple(output.name for output in model.graph.output)
        self.bytes = sum(array.nbytes for array in weights.values())

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Its outputs by name.

        Args:
            values: its inputs; others are ignored.
        """
        feeds = {name: np.ascontiguousarray(values[name]) for name in self.inputs}
        feeds |= {name: _widened(array) for name, array in self._weights.items()}
        return dict(zip(self.outputs, self._session.run(list(self.outputs), feeds), strict=True))


class GraphPieces:
    """One of a bundle's graphs, by scope: the part of a node's name before the first slash.

    bfloat16, which ONNX Runtime cannot multiply on the CPU, becomes float32 throughout: weights
    keep their values, and results are not rounded in between.

    Attributes:
        results: names that values have inside the graph, by name of the graph's output.
    """

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._model = onnx.load(str(file), load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(self._model).graph
        self._types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._scopes: dict[str, list[onnx.NodeProto]] = {}
        self._users: dict[str, set[str]] = {}
        self.results: dict[str, str] = {}
        for node in self._model.graph.node:
            scope = node.name.rpartition("/")[0].partition("/")[0]
            if scope == "output":
                self.results[node.output[0]] = node.input[0]
            else:
                self._scopes.setdefault(scope, []).append(node)
            for name in node.input:
                self._users.setdefault(name, set()).add(scope)

    def piece(self, scope: str = "") -> Piece:
        """The nodes of one scope; those of a graph without scopes have the empty one."""
        nodes = [_with_wide_cast(node) for node in self._scopes[scope]]
        made = [name for node in nodes for name in node.output]
        used = list(dict.fromkeys(name for node in nodes for name in node.input))
        tensors = [self._initializers[name] for name in used if name in self._initializers]
        external = {t.name: self._map(t) for t in tensors if t.data_location == TensorProto.EXTERNAL}
        constants = [_wide_constant(t) for t in tensors if t.name not in external]
        inputs = tuple(name for name in used if name not in made and name not in self._initializers)
        outputs = [name for name in made if self._users.get(name, set()) - {scope}]
        graph = helper.make_graph(
            nodes,
            scope or "whole",
            [self._describe(name) for name in (*inputs, *external)],
            [self._describe(name) for name in outputs],
            initializer=constants,
        )
        opset, version = self._model.opset_import, self._model.ir_version
        return Piece(helper.make_model(graph, opset_imports=opset, ir_version=version), inputs, external)

    def _describe(self, name: str) -> onnx.ValueInfoProto:
        tensor = self._initializers.get(name)
        element = self._types[name] if tensor is None else tensor.data_type
        return helper.make_tensor_value_info(name, _wide(element), None if tensor is None else list(tensor.dims))

    def _map(self, weight: onnx.TensorProto) -> Array:
        place = {entry.key: entry.value for entry in weight.external_data}
        file, offset = self._folder / place["location"], int(place["offset"])
        return np.memmap(file, _STORED[weight.data_type], "r", offset, tuple(weight.dims))


def _wide(element: int) -> int:
    return TensorProto.FLOAT if element == TensorProto.BFLOAT16 else element


def _widened(stored: Array) -> Array:
    """bfloat16, which NumPy reads as bits, as float32; other types as they are."""
    if stored.dtype != np.uint16:
        return stored
    return np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)


def _wide_constant(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.BFLOAT16:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _with_wide_cast(node: onnx.NodeProto) -> onnx.NodeProto:
    if node.op_type != "Cast" or node.attribute[0].i != TensorProto.BFLOAT16:
        return node
    return helper.make_node("Cast", list(node.input), list(node.output), name=node.name, to=TensorProto.FLOAT)
