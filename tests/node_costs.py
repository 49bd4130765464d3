"""What a pass costs, counted over the nodes of its graph: what `lladav.costs` is held against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
from onnx import NodeProto, TensorProto, shape_inference

from lladav.costs import Cost

_BITS = {
    **{TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.INT64: 64},
    **{TensorProto.INT8: 8, TensorProto.INT4: 4},
}


def counted(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Cost:
    """Bytes of weights, inputs and outputs, and operations of matrix products and convolutions.

    Args:
        model: graph whose weights are references into a file, which need not exist.
        sizes: of the dimensions that its inputs name; `past` says which branch of an `If` is taken.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    nodes = list(_flat(graph.node, no_past=sizes.get("past") == 0))
    graph.initializer.extend(_lengths(nodes, {value.name: _shape(value) for value in graph.input}))
    made = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in nodes if node.output[0] not in made]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    fixed = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = shape_inference.infer_shapes(fixed, strict_mode=True).graph
    shapes = {v.name: _shape(v) for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return Cost(
        weights=sum(_bytes(shapes[name], kinds[name]) for name in _weights(graph)),
        values=sum(_bytes(_shape(v), v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output)),
        operations=sum(_operations(node, shapes) for node in nodes),
    )


def _flat(nodes: Iterator[NodeProto], *, no_past: bool) -> Iterator[NodeProto]:
    """All nodes that run, those of the branch that is taken among them."""
    for node in nodes:
        if node.op_type != "If":
            yield node
            continue
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        taken = branches["then_branch" if no_past else "else_branch"]
        yield from taken.node
        yield onnx.helper.make_node("Identity", [taken.output[0].name], list(node.output))


def _lengths(nodes: list[NodeProto], inputs: Mapping[str, tuple[int, ...]]) -> list[TensorProto]:
    """Values that are lengths of inputs, which shape inference takes from constants alone."""
    known: dict[str, list[int]] = {}
    for node in nodes:
        if node.op_type == "Shape" and node.input[0] in inputs:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            known[node.output[0]] = list(inputs[node.input[0]][ends["start"] : ends["end"]])
        elif node.op_type == "Concat" and known.keys() >= set(node.input):
            known[node.output[0]] = [length for name in node.input for length in known[name]]
    return [onnx.helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in known.items()]


def _weights(graph: onnx.GraphProto) -> set[str]:
    """What passes read of weights: as they are stored, or what nodes make of them once, when the graph is loaded."""
    known = {tensor.name for tensor in graph.initializer}
    weights = {tensor.name for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    read = set()
    for node in graph.node:
        # Products take integers and scales as they are.
        if node.op_type != "DequantizeLinear" and known.issuperset(node.input):
            known.update(node.output)
            if weights.intersection(node.input):
                weights.update(node.output)
        else:
            read.update(weights.intersection(node.input))
    return read


def _operations(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    made = math.prod(shapes[node.output[0]])
    if node.op_type == "MatMul":
        return 2 * made * shapes[node.input[0]][-1]
    if node.op_type == "Conv":
        return 2 * made * math.prod(shapes[node.input[1]][1:])
    assert node.op_type not in ("Attention", "ConvTranspose", "Einsum", "Gemm", "MatMulInteger"), "it is not counted"
    return 0


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    return math.prod(shape) * _BITS[kind] // 8
