"""The form of the graphs: what every runtime we target can build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tiny import sharing_heads, write_tiny_checkpoint

from benchmarks.make_full_size import real_geometry
from lladav.bundle import Bundle
from lladav.export.config import ExportConfig
from lladav.export.denoiser_graph import denoiser
from lladav.export.exporter import export
from lladav.export.graph_form import GraphForm
from lladav.export.stored_weight import ELEMENT_TYPES
from lladav.manifest import COMPUTE_TYPES
from lladav.runtime.sessions import open_session

GRAPHS = ("denoiser", "denoiser_cpu", "vision_encoder", "connector")


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    return export(checkpoint, folder / "bundle", ExportConfig(dtype=request.param, verify=False))


def load(bundle: Bundle, name: str) -> onnx.ModelProto:
    if name not in bundle.manifest.graphs:
        pytest.skip("ONNX Runtime has no bf16 on the CPU, so there is no graph for it")
    return onnx.load(bundle.file(bundle.manifest.graphs[name].file), load_external_data=False)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", GRAPHS)
def test_standard_operators_and_named_external_weights(bundle: Bundle, name: str) -> None:
    model = load(bundle, name)
    onnx.checker.check_model(str(bundle.file(f"{name}.onnx")), full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    kinds = {node.op_type for node in model.graph.node}
    assert not {"Attention", "RMSNormalization", "Loop"} & kinds
    assert ("If" in kinds) == (name == "denoiser_cpu")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("const."):
            assert np.prod(tensor.dims) <= 64
        else:
            assert tensor.data_location == TensorProto.EXTERNAL
            assert {e.key: e.value for e in tensor.external_data}["location"] == bundle.manifest.graphs[name].weights
    assert "model.embed_tokens.weight" not in {tensor.name for tensor in model.graph.initializer}


def test_manifest_says_what_the_graphs_say(bundle: Bundle) -> None:
    for name, spec in bundle.manifest.graphs.items():
        model = load(bundle, name)
        for listed, values in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
            assert [(s.name, ELEMENT_TYPES[s.dtype]) for s in listed] == [
                (v.name, v.type.tensor_type.elem_type) for v in values
            ]
            for s, v in zip(listed, values, strict=True):
                assert list(s.shape) == [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]


def test_names_follow_onnx_runtime_genai(bundle: Bundle) -> None:
    spec = bundle.manifest.graphs["denoiser"]
    inputs, outputs = [s.name for s in spec.inputs], [s.name for s in spec.outputs]
    assert inputs[:4] == ["inputs_embeds", "position_ids", "attention_bias", "rows"]
    assert inputs[4:-1] == [f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert inputs[-1] == "kept"
    assert outputs == ["logits", *(f"present.{i}.{part}" for i in range(2) for part in ("key", "value"))]
    assert [s.name for s in bundle.manifest.graphs["connector"].outputs] == ["image_features"]


@pytest.mark.parametrize("name", GRAPHS)
def test_sensitive_parts_stay_in_float32(bundle: Bundle, name: str) -> None:
    model = load(bundle, name)
    types = element_types(model)
    compute = ELEMENT_TYPES[COMPUTE_TYPES[bundle.manifest.precision]]
    assert types[model.graph.output[0].name] == TensorProto.FLOAT
    for node in model.graph.node:
        kinds = {types[value] for value in node.input if value in types}
        if node.op_type in {"Softmax", "LayerNormalization", "ReduceMean", "Sqrt", "Gelu", "Cos", "Sin", "Conv"}:
            assert TensorProto.FLOAT in kinds
            assert not kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}, node.name
        if node.name.endswith("/residual"):
            assert kinds == {TensorProto.FLOAT}, node.name
        if node.op_type == "MatMul":
            assert kinds == {TensorProto.FLOAT if name == "denoiser_cpu" else compute}, node.name


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_step_pass_equals_full_pass(tmp_path: Path, kv_heads: int) -> None:
    """The same weights serve both: with the prompt's keys and values as past, the canvas alone."""
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", edit=sharing_heads(kv_heads))
    bundle = export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp32", verify=False))
    session = open_session(bundle, "denoiser", 1)
    prompt, canvas = 11, 6
    window = prompt + canvas
    embeds = np.random.default_rng(1).normal(0, 0.5, (2, window, 32)).astype(np.float32)
    positions = np.tile(np.arange(window), (2, 1))
    feeds = {
        "inputs_embeds": embeds,
        "position_ids": positions,
        "attention_bias": np.zeros((2, 1, 1, window), np.float32),
        "rows": np.arange(prompt, window),
        "kept": np.arange(prompt),
    }
    caches = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    empty = {f"past_key_values.{c}": np.zeros((2, kv_heads, 0, 8), np.float32) for c in caches}
    full = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds | empty), strict=True))
    past = {f"past_key_values.{c}": full[f"present.{c}"] for c in caches}
    step = {
        "inputs_embeds": embeds[:, prompt:],
        "position_ids": positions[:, prompt:],
        "attention_bias": feeds["attention_bias"],
        "rows": np.arange(canvas),
        "kept": np.arange(0),
    }
    logits, key = session.run(["logits", "present.0.key"], step | past)
    assert key.shape == (2, kv_heads, 0, 8)
    np.testing.assert_allclose(logits, full["logits"], atol=1e-5)


def test_graph_of_the_real_geometry_needs_no_weights() -> None:
    builder = denoiser(real_geometry().language, GraphForm("float16"))
    assert len(builder.model().SerializeToString()) < 1_000_000
    assert 14.9e9 < builder.weights_bytes < 15.1e9
