"""A graph cut at the borders of its scopes, so that a model larger than memory runs layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from lladav.export.quantize import unpacked

Array = npt.NDArray[Any]

_STORED: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: np.uint16,
    TensorProto.INT8: np.int8,
}
_INTEGERS = (TensorProto.INT8, TensorProto.INT4)
_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# They pass values on as they are, so there is nothing to round.
_MOVES = frozenset({"Concat", "Gather", "Reshape", "Split", "Transpose"})


class Piece:
    """One scope as a graph of its own, whose weights are inputs.

    ONNX Runtime copies and repacks the weights of a graph, but takes inputs as they are: a
    piece needs little memory beyond the file cache.

    Args:
        model: without weights of its own.
        inputs: names of the values it needs.
        weights: its further inputs, by name, as they lie in their file.
        size: bytes of these there.

    Attributes:
        inputs: names of the values it needs.
        outputs: names of the values that other scopes or the caller use, in the order in which
            they are computed; the last one is what the scope hands on to the next.
        bytes: size of its weights in their file.
    """

    def __init__(
        self, model: onnx.ModelProto, inputs: tuple[str, ...], weights: Mapping[str, Array], size: int
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Optimized, a graph loses the casts that round.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # An arena would live as long as any output that was taken from it.
        options.enable_cpu_mem_arena = False
        # PyTorch's threads work between the runs of this session.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._weights = weights
        self.inputs = inputs
        self.outputs = tuple(output.name for output in model.graph.output)
        self.bytes = size

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Its outputs by name.

        Args:
            values: its inputs; others are ignored.
        """
        feeds = {name: np.ascontiguousarray(values[name]) for name in self.inputs}
        results = self._session.run(list(self.outputs), {**feeds, **self._weights})
        return dict(zip(self.outputs, results, strict=True))


class LinearInput(NamedTuple):
    """What a linear layer multiplies: the name of the value, and its channels."""

    value: str
    channels: int


class GraphPieces:
    """One of a bundle's graphs, by scope: the part of a node's name before the first slash.

    A float16 or bfloat16 graph computes in float32 here, and every value is rounded where the
    graph holds it in the narrow type, as on a GPU that accumulates in float32. ONNX Runtime on
    the CPU by itself leaves roundings to float16 out, and cannot multiply bfloat16. Branches of
    an `If` must be float32.

    Args:
        file: of the graph, with its weights' file beside it.

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
            for name in _read_by(node):
                self._users.setdefault(name, set()).add(scope)

    @property
    def scopes(self) -> tuple[str, ...]:
        """In the order in which they are computed; a graph without scopes has the empty one."""
        return tuple(self._scopes)

    def linear_inputs(self) -> dict[str, LinearInput]:
        """What linear layers multiply, by the layer's name in the checkpoint.

        These are the values of the model itself, before the cast and the headroom that a narrow
        type asks for.
        """
        nodes = self._model.graph.node
        makers = {node.output[0]: node for node in nodes}
        found = {}
        for node in nodes:
            if node.op_type == "MatMul" and node.input[1] in self._initializers:
                value = node.input[0]
                while (maker := makers.get(value)) and (maker.op_type == "Cast" or maker.name.endswith("/shrink")):
                    value = maker.input[0]
                weight = self._initializers[node.input[1]]
                found[layer_of(weight.name)] = LinearInput(value, weight.dims[0])
        return found

    def linear_outputs(self) -> dict[str, str]:
        """What linear layers give, by name of the weight in the graph, integers included.

        These are the values of the model itself: with the bias, and after the headroom that a narrow
        type asks for.
        """
        nodes = self._model.graph.node
        makers = {node.output[0]: node for node in nodes}
        users = {name: node for node in nodes for name in node.input}
        found = {}
        for node in nodes:
            if node.op_type != "MatMul":
                continue
            weight, value = node.input[1], node.output[0]
            while (maker := makers.get(weight)) and maker.op_type in ("Cast", "DequantizeLinear"):
                weight = maker.input[0]
            while (user := users.get(value)) and (user.op_type == "Cast" or user.name.endswith(("/enlarge", ".bias"))):
                value = user.output[0]
            if weight in self._initializers:
                found[weight] = value
        return found

    def piece(self, scope: str = "", shown: Collection[str] = ()) -> Piece:
        """The nodes of one scope.

        Args:
            scope: one of `scopes`.
            shown: values that are outputs too if the scope makes them.
        """
        nodes = self._scopes[scope]
        made = [name for node in nodes for name in node.output]
        used = list(dict.fromkeys(name for node in nodes for name in _read_by(node)))
        tensors = [self._initializers[name] for name in used if name in self._initializers]
        external = [t for t in tensors if t.data_location == TensorProto.EXTERNAL]
        inputs = tuple(name for name in used if name not in made and name not in self._initializers)
        outputs = [name for name in made if self._users.get(name, set()) - {scope} or name in shown]
        weights = {f"{t.name}/stored": map_weight(self._folder, t) for t in external}
        graph = helper.make_graph(
            [helper.make_node("Cast", [f"{t.name}/stored"], [t.name], to=_computed(t)) for t in external]
            + [rounded for node in nodes for rounded in self._rounded(node)],
            scope or "whole",
            [helper.make_tensor_value_info(name, self._element(name), None) for name in inputs]
            + [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in weights.items()
            ],
            [helper.make_tensor_value_info(name, self._element(name), None) for name in outputs],
            initializer=[_wide(t) for t in tensors if t not in external],
        )
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        return Piece(model, inputs, weights, sum(int(_place(t)["length"]) for t in external))

    def _element(self, name: str) -> int:
        element = self._types[name]
        return TensorProto.FLOAT if element in _NARROW else element

    def _rounded(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node in float32, its result rounded to the type it had."""
        result, *_ = node.output
        kind = self._types[result]
        if kind not in _NARROW or node.op_type in _MOVES:
            return [node]
        steps = []
        wide = node.input[0]
        if node.op_type != "Cast":
            wide = f"{result}/wide"
            step = onnx.NodeProto()
            step.CopyFrom(node)
            step.output[0] = wide
            steps.append(step)
        # Two casts next to each other would be taken for one that does nothing.
        steps.append(helper.make_node("Cast", [wide], [f"{result}/narrow"], to=kind))
        steps.append(helper.make_node("Identity", [f"{result}/narrow"], [f"{result}/rounded"]))
        steps.append(helper.make_node("Cast", [f"{result}/rounded"], [result], to=TensorProto.FLOAT))
        return steps


def layer_of(weight: str) -> str:
    """The linear layer whose weight a graph calls so: parts of a head, `lm_head.weight.1`, are one layer."""
    return weight.partition(".weight")[0]


def map_weight(folder: Path, weight: onnx.TensorProto) -> Array:
    """A weight as it lies in a bundle's file; bfloat16, which NumPy does not know, as float32, and int4 as int8."""
    place, shape = _place(weight), tuple(weight.dims)
    stored = np.memmap(folder / place["location"], np.uint8, "r", int(place["offset"]), int(place["length"]))
    if weight.data_type == TensorProto.INT4:
        return unpacked(stored, shape)
    values = stored.view(_STORED[weight.data_type]).reshape(shape)
    if weight.data_type != TensorProto.BFLOAT16:
        return values
    return np.left_shift(values, 16, dtype=np.uint32).view(np.float32)


def _computed(weight: onnx.TensorProto) -> int:
    """The type in which a piece takes a weight."""
    return int(TensorProto.INT8 if weight.data_type in _INTEGERS else TensorProto.FLOAT)


def _read_by(node: onnx.NodeProto) -> list[str]:
    """Values from outside that a node uses, in its branches too."""
    names = list(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            inside = attribute.g.node
            made = {name for inner in inside for name in inner.output}
            names += [name for inner in inside for name in _read_by(inner) if name not in made]
    return names


def _place(weight: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in weight.external_data}


def _wide(constant: onnx.TensorProto) -> onnx.TensorProto:
    if constant.data_type not in _NARROW:
        return constant
    return numpy_helper.from_array(numpy_helper.to_array(constant).astype(np.float32), constant.name)
