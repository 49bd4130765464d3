"""What passes cost: by hand on small graphs, node by node on ours, and what bounds them."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_costs import counted
from onnx import TensorProto, helper

from benchmarks.make_full_size import real_geometry
from lladav.costs import Cost, Rates, pass_cost, weight_bytes
from lladav.export.exporter import build_graphs
from lladav.export.graph_form import GraphForm, linear_forms
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.linear_layers import Numbers
from lladav.manifest import Manifest, Precision, PromptKV, Quantization
from lladav.memory_plan import Sizes
from lladav.products import PassName

COMPUTE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
LANGUAGE = LanguageGeometry(
    hidden_size=64,
    intermediate_size=96,
    layers=3,
    heads=8,
    kv_heads=2,
    head_size=8,
    vocab_rows=50,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    max_positions=512,
)
VISION = VisionGeometry(
    hidden_size=24, intermediate_size=40, layers=2, heads=2, image_size=30, patch_size=14, layer_norm_eps=1e-6
)
GEOMETRY = Geometry(language=LANGUAGE, vision=VISION)
FORMS = {
    "none": None,
    "w8": Quantization(form="w8"),
    "w4": Quantization(form="w4", block=128),
    "w8a8": Quantization(form="w8a8"),
    "head": Quantization(form="w8", head=True),
    "widened": Quantization(form="w4", block=128, head=True, widened=True),
    "kept": Quantization(form="w4", block=64, kept=("model.layers.1.mlp.up_proj", "model.mm_projector.0")),
}


def manifest_of(geometry: Geometry) -> Manifest:
    """One of which only the geometry is looked at."""
    return Manifest.model_construct(geometry=geometry)


def weight(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="none")
    return tensor


def small_graph(
    nodes: list[onnx.NodeProto], inputs: dict, outputs: dict, weights: list[TensorProto]
) -> onnx.ModelProto:
    def values(shapes: dict) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]

    graph = helper.make_graph(nodes, "small", values(inputs), values(outputs), initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_product_by_hand() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    model = small_graph(nodes, {"x": ["n", 3]}, {"y": ["n", 5]}, [weight("w", 3, 5), weight("b", 5)])
    # 15 weights and 5 biases, 7 rows of 3 and of 5 floats; 7 x 5 results of 3 multiplications.
    assert counted(model, {"n": 7}) == Cost(4 * 20, 4 * 7 * 8, 2 * 7 * 5 * 3)


def test_convolution_by_hand() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2])]
    model = small_graph(nodes, {"x": ["n", 3, 6, 4]}, {"y": ["n", 5, 3, 2]}, [weight("w", 5, 3, 2, 2)])
    # Patches of 3 x 2 x 2, 3 x 2 of them for each of 5 channels.
    assert counted(model, {"n": 2}) == Cost(4 * 60, 4 * 2 * (72 + 30), 2 * 2 * 30 * 12)


def test_integers_and_batches_by_hand() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wide"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "wide"], ["h"]),
        helper.make_node("MatMul", ["h", "k"], ["y"]),
    ]
    weights = [weight("w", 4, 6, kind=TensorProto.INT4), weight("s", 2, 6)]
    model = small_graph(nodes, {"x": ["b", "n", 4], "k": ["b", 6, "n"]}, {"y": ["b", "n", "n"]}, weights)
    model.opset_import[0].version = 21
    # 24 weights of half a byte and 12 scales; of 2 x 3 rows, 6 products of 4 and then 3 of 6.
    assert counted(model, {"b": 2, "n": 3}) == Cost(12 + 48, 4 * 2 * (12 + 18 + 9), 2 * 2 * 3 * (6 * 4 + 3 * 6))


def test_only_the_branch_that_runs_is_counted() -> None:
    def branch(*names: str) -> onnx.GraphProto:
        made = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(len(names) - 1)]
        return helper.make_graph(
            made, "branch", [], [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, None)]
        )

    condition = helper.make_node("If", ["c"], ["y"], then_branch=branch("x", "a"), else_branch=branch("x", "d", "e"))
    model = small_graph([condition], {"x": ["past", 4]}, {"y": ["past", 4]}, [weight("w", 4, 4)])
    model.graph.initializer.append(helper.make_tensor("c", TensorProto.BOOL, [1], [True]))
    assert counted(model, {"past": 3}).operations == 2 * 2 * 3 * 16
    assert counted(model, {"past": 0}).operations == 0


@pytest.mark.parametrize("prompt_kv", [None, "int8"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("graph", "precision"),
    [("denoiser", "fp32"), ("denoiser", "fp16"), ("denoiser", "bf16"), ("denoiser_cpu", "fp32")],
)
def test_denoiser_costs_what_its_nodes_do(
    graph: str, precision: Precision, form: str, prompt_kv: PromptKV | None
) -> None:
    numbers = Numbers(precision, FORMS[form], cpu=graph == "denoiser_cpu", prompt_kv=prompt_kv)
    model = graphs(GEOMETRY, precision, form, prompt_kv)[graph]
    for batch, prompt, canvas, rows in ((1, 20, 8, 8), (2, 33, 5, 1), (3, 1, 7, 4)):
        sizes = Sizes(batch, prompt, canvas, 0)
        window = prompt + canvas
        common = {"batch": batch, "rows": rows, "keys": window}
        refresh = {"window": window, "past": 0, "kept": prompt, "keep": prompt}
        step = {"window": canvas, "past": prompt, "kept": 0, "keep": 0}
        for kind, named in (("refresh", refresh), ("step", step)):
            found = pass_cost(manifest_of(GEOMETRY), kind, sizes, numbers, rows)
            assert found == counted(model, common | named), (kind, sizes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", COMPUTE)
@pytest.mark.parametrize("graph", ["vision_encoder", "connector"])
def test_picture_costs_what_its_nodes_do(graph: PassName, precision: Precision, form: str) -> None:
    model = graphs(GEOMETRY, precision, form)[graph]
    for tiles in (1, 3):
        found = pass_cost(manifest_of(GEOMETRY), graph, Sizes(1, 0, 0, tiles), Numbers(precision, FORMS[form]))
        assert found == counted(model, {"tiles": tiles})


def test_llada_costs_what_its_nodes_do() -> None:
    """The published geometry, in the form for 8 bits of weights."""
    geometry = Geometry(language=real_geometry().language, vision=None)
    model = graphs(geometry, "fp16", "w8")["denoiser"]
    named = {"batch": 1, "rows": 32, "keys": 928, "window": 928, "past": 0, "kept": 896}
    found = pass_cost(manifest_of(geometry), "refresh", Sizes(1, 896, 32, 0), Numbers("fp16", FORMS["w8"]))
    assert found == counted(model, named)
    # 6.98 billion integers, and a head of 0.518 billion in two bytes.
    assert found.weights == pytest.approx(6.98e9 + 2 * 0.518e9, rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_the_passes(form: str) -> None:
    numbers = Numbers("fp16", FORMS[form])
    found, sizes = weight_bytes(GEOMETRY, numbers), Sizes(1, 4, 4, 1)
    kinds: dict[str, PassName] = {"denoiser": "step", "vision_encoder": "vision_encoder", "connector": "connector"}
    assert found == {
        name: pass_cost(manifest_of(GEOMETRY), kind, sizes, numbers).weights for name, kind in kinds.items()
    }


@given(
    cost=st.builds(Cost, *(st.integers(1, 10**12) for _ in range(3))),
    bandwidth=st.floats(1e6, 1e13),
    operations=st.floats(1e6, 1e16),
)
def test_a_pass_takes_as_long_as_the_slower_of_both(cost: Cost, bandwidth: float, operations: float) -> None:
    found = Rates(bandwidth, operations).roofline(cost)
    moving, computing = 1e3 * cost.bytes / bandwidth, 1e3 * cost.operations / operations
    assert found.ms == pytest.approx(max(moving, computing))
    assert found.bound == ("bandwidth" if moving >= computing else "arithmetic")
    twice = Rates(2 * bandwidth, 2 * operations).roofline(cost)
    assert twice.ms == pytest.approx(found.ms / 2)


def graphs(
    geometry: Geometry, precision: Precision, form: str, prompt_kv: PromptKV | None = None
) -> dict[str, onnx.ModelProto]:
    quantization = FORMS[form]
    linears = linear_forms(geometry, quantization) if quantization else {}
    if form == "w8a8":
        linears = {name: replace(one, input_range=1.0) for name, one in linears.items()}
    chosen = GraphForm(COMPUTE[precision], 2, linears, prompt_kv=prompt_kv)
    return {b.name: b.model() for b in build_graphs(geometry, chosen)}
