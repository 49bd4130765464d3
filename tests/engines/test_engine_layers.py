"""What libraries say of their engines, and what of that became of integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lladav.engines.integers import GraphIntegers, graph_integers, integer_use
from lladav.engines.layers import Layer, layers_in_plan, layers_of
from lladav.records import Conversion, IntegerUse

WIDTH = 256
Built = tuple[GraphIntegers, Path]


def constants(bits: int) -> list[Any]:
    """Integer weights with their scales, and the scale of inputs."""
    draw = np.random.default_rng(0).integers(-7, 8, (WIDTH, WIDTH)).astype(np.int8)
    kind, scales = (TensorProto.INT4, (2, WIDTH)) if bits == 4 else (TensorProto.INT8, (WIDTH,))
    return [
        helper.make_tensor("w", kind, draw.shape, draw.flatten()),
        numpy_helper.from_array(np.full(scales, 0.01, np.float16), "w_scale"),
        numpy_helper.from_array(np.array(0.01, np.float16), "x_scale"),
    ]


def product(bits: int, *, rounded: bool = False) -> onnx.ModelProto:
    """A linear layer of integer weights, whose inputs are rounded as well or not."""
    blocks = {"axis": 0, "block_size": WIDTH // 2} if bits == 4 else {"axis": 1}
    rounding = [
        helper.make_node("QuantizeLinear", ["x", "x_scale"], ["q"], name="rounds"),
        helper.make_node("DequantizeLinear", ["q", "x_scale"], ["input"], name="widens"),
    ]
    nodes = [
        *(rounding if rounded else ()),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["f"], name="weights", **blocks),
        helper.make_node("MatMul", ["input" if rounded else "x", "f"], ["y"], name="product"),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ("rows", WIDTH))] for name in ("x", "y")
    )
    graph = helper.make_graph(nodes, "linear", inputs, outputs, constants(bits))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def built(rtx: Any, tmp_path: Path) -> Callable[[onnx.ModelProto], Built]:
    """Builds a graph for real."""
    from lladav.engines.library import log_of

    def build(model: onnx.ModelProto) -> Built:
        builder = rtx.Builder(log_of(rtx))
        network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert rtx.OnnxParser(network, log_of(rtx)).parse(model.SerializeToString())
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
        shapes = builder.create_optimization_profile()
        shapes.set_shape("x", (1, WIDTH), (32, WIDTH), (64, WIDTH))
        config.add_optimization_profile(shapes)
        plan = tmp_path / "linear.plan"
        plan.write_bytes(memoryview(builder.build_serialized_network(network, config)))
        return graph_integers(network), plan

    return build


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_stay_integers(built: Callable[[onnx.ModelProto], Built], bits: int) -> None:
    graph, plan = built(product(bits))
    assert graph.weights == {"weights": {"weights", "product"}}
    (layer,) = layers_in_plan(plan, profiles=1)
    assert (layer.nodes, layer.integer_weights, layer.integers) == ({"weights", "product"}, True, True)
    assert integer_use(graph, [layer]) == IntegerUse(weights=1, widened=(), conversions=())


def test_inputs_that_are_rounded_by_themselves(built: Callable[[onnx.ModelProto], Built]) -> None:
    graph, plan = built(product(8, rounded=True))
    rounds = Conversion(node="rounds", values=WIDTH, per_position=True)
    assert integer_use(graph, layers_in_plan(plan, 1)) == IntegerUse(weights=1, widened=(), conversions=(rounds,))


def test_weights_that_a_plan_has_in_floats(built: Callable[[onnx.ModelProto], Built]) -> None:
    graph, plan = built(product(8))
    plan.write_bytes(plan.read_bytes().replace(b" type=int8 }", b" type=half }"))
    found = integer_use(graph, layers_in_plan(plan, 1))
    assert found == IntegerUse(weights=0, widened=("weights",), conversions=())


def test_plan_of_a_version_that_says_nothing(built: Callable[[onnx.ModelProto], Built]) -> None:
    graph, plan = built(product(8))
    plan.write_bytes(plan.read_bytes().replace(b"version = 5\n", b"version = 6\n"))
    assert layers_in_plan(plan, 1) == ()
    assert integer_use(graph, ()) is None


def tensor(name: str, kind: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [32, WIDTH], key: kind}


# Keys and types as TensorRT 8.6 to 11 write them, composed by hand: where nothing is loaded, nothing is inspected.
INSPECTED: list[Any] = [
    {
        "Name": "Reformatting CopyNode for Input Tensor 0 to product",
        "LayerType": "Reformat",
        "Inputs": [tensor("x", "Row major linear FP16 format")],
        "Outputs": [tensor("q", "Thirty-two wide channel vectorized row major Int8 format")],
        "Metadata": "",
    },
    {
        "Name": "__myl_MulMinMaxRounCast_myl0_1",
        "LayerType": "kgen",
        "Inputs": [tensor("x", "Half")],
        "Outputs": [tensor("q", "Int8")],
        "Metadata": "[ONNX Layer: rounds]\x1e[ONNX Layer: cast]",
    },
    {
        "Name": "product_myl0_2",
        "LayerType": "gemm",
        "Inputs": [tensor("q", "Int8", "Datatype")],
        "Outputs": [tensor("y", "Half", "Datatype")],
        "Weights": {"Type": "Int8", "Count": WIDTH**2},
        "Metadata": "[ONNX Layer: weights]\x1e[ONNX Layer: product]",
    },
    {
        "Name": "other_myl0_3",
        "LayerType": "gemm",
        "Inputs": [tensor("y", "Half")],
        "Outputs": [tensor("z", "Half")],
        "Weights": {"Type": "Half", "Count": WIDTH**2},
        "Metadata": "[ONNX Layer: other]",
    },
]


def inspected(layers: list[Any], write: Callable[[Any], str] = json.dumps) -> tuple[Layer, ...]:
    given: dict[str, Any] = {}

    class Inspector:
        execution_context: object = None

        def get_engine_information(self, kind: str) -> str:
            given.update(context=self.execution_context, kind=kind)
            return write({"Layers": layers, "Bindings": ["x", "y"]})

    trt = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json"))
    found = layers_of(trt, SimpleNamespace(create_engine_inspector=Inspector), "context")
    assert given == {"context": "context", "kind": "json"}
    return found


def test_inspector_tells_of_types_and_nodes() -> None:
    copied, rounded, multiplied, other = inspected(INSPECTED)
    assert (copied.copies, copied.integers, copied.nodes) == (True, True, frozenset())
    assert (rounded.nodes, rounded.integers, rounded.integer_weights) == ({"rounds", "cast"}, True, None)
    assert (multiplied.integers, multiplied.integer_weights) == (True, True)
    assert (other.integers, other.integer_weights) == (False, False)
    assert inspected(["product", "other"]) == ()


def test_inspector_that_writes_no_json() -> None:
    raw = inspected(INSPECTED, lambda value: json.dumps(value).replace("\\u001e", "\x1e"))
    assert raw == inspected(INSPECTED)
    assert inspected(INSPECTED, lambda _: "no information") == ()


@pytest.mark.parametrize(
    "described",
    [
        *([], None, {"Layers": 3}),
        {"Layers": [{"LayerType": "gemm"}]},
        {"Layers": [{"Name": "product", "Weights": None}]},
        {"Layers": [{"Name": "product", "Inputs": ["x"]}]},
        {"Layers": [{"Name": "product", "Metadata": ["[ONNX Layer: product]"]}]},
    ],
)
def test_inspector_of_another_version_spoils_nothing(described: object) -> None:
    assert inspected([], lambda _: json.dumps(described)) == ()


def test_what_inspected_layers_make_of_integers() -> None:
    rounds = Conversion(node="rounds", values=WIDTH, per_position=True)
    graph = GraphIntegers(
        {"weights": frozenset({"weights", "product"}), "lost": frozenset({"other"}), "untold": frozenset({"nowhere"})},
        {"rounds": rounds, "weights": Conversion(node="weights", values=1, per_position=False)},
        frozenset({"cast"}),
    )
    copied = Conversion(node=INSPECTED[0]["Name"], values=None, per_position=True)
    assert integer_use(graph, inspected(INSPECTED)) == IntegerUse(
        weights=1, widened=("lost",), untold=1, conversions=(copied, rounds)
    )


def test_layers_that_say_nothing_of_weights_accuse_nobody() -> None:
    graph = GraphIntegers({"weights": frozenset({"weights", "product"})}, {}, frozenset())
    silent = [Layer("product", frozenset({"product"}), integer_weights=None, integers=False)]
    assert integer_use(graph, silent) is None
