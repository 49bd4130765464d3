"""The prompt's keys and values in int8: what a refresh writes, what steps make of it, and who notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from changed_graph import changed_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny import sharing_heads, write_tiny_checkpoint

from benchmarks.make_full_size import real_geometry
from lladav.bundle import Bundle
from lladav.calib.observed_graph import ObservedGraph
from lladav.calib.passes import refresh_inputs, step_inputs
from lladav.errors import VerificationError
from lladav.export.agreement import agreement
from lladav.export.attention_graph import KeyValues
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.export.graph_form import GraphForm
from lladav.export.onnx_graph import GraphBuilder
from lladav.export.prompt_kv_graph import PromptKVTensors
from lladav.geometry import LanguageGeometry
from lladav.manifest import Precision, QuantizedForm
from lladav.prompt_kv import PAST, PRESENT, kept_arrays, position_bytes
from lladav.runtime import GenerationConfig, Pipeline

WIDTH, HEAD_SIZE, HEADS = 32, 8, 4
KINDS = ("int8", None)
PROMPT = [5, 17, 230, 7, 11, 29]
GEOMETRY = LanguageGeometry(
    **{"hidden_size": 32, "intermediate_size": 48, "layers": 1, "heads": 4, "kv_heads": 4, "head_size": HEAD_SIZE},
    **{"vocab_rows": 292, "rope_theta": 5e5, "rms_norm_eps": 1e-5, "max_positions": 512},
)

Rounding = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def rounding() -> Rounding:
    """The nodes that round, alone: vectors `[B, H, K, Dh]` to codes and scales."""
    b = GraphBuilder("rounding", GraphForm("float32", prompt_kv="int8"))
    vectors = b.input("vectors", "float32", ("batch", HEADS, "kept", HEAD_SIZE))
    tensors = PromptKVTensors(b, GEOMETRY, "float32")
    tensors.keep(0, KeyValues(vectors, vectors), lambda all_of_them: all_of_them)
    tensors.declare_outputs("kept")
    model = b.model()
    # What takes the past is not there.
    inputs = [value for value in model.graph.input if value.name == "vectors"]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, scale = session.run([f"{PRESENT}0.key", f"{PRESENT}0.key_scale"], {"vectors": vectors})
        return codes, scale

    return run


def bundle_of(folder: Path, prompt_kv: Any = "int8", kv_heads: int = HEADS, **options: Any) -> Bundle:
    checkpoint = folder / f"checkpoint-{kv_heads}"
    if not checkpoint.exists():
        write_tiny_checkpoint(checkpoint, edit=sharing_heads(kv_heads))
    made = folder / "-".join(map(str, (prompt_kv, kv_heads, *options.values())))
    return export(checkpoint, made, ExportConfig(prompt_kv=prompt_kv, verify=False, **{"dtype": "fp32", **options}))


@given(
    seed=st.integers(0, 2**32 - 1),
    exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=5),
    zero=st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_every_vector_is_rounded_to_the_nearest_of_its_own_steps(
    rounding: Rounding, seed: int, exponents: list[int], zero: bool
) -> None:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(0, 1, (2, HEADS, len(exponents), HEAD_SIZE)).astype(np.float32)
    vectors *= np.exp2(np.array(exponents, np.float32))[:, None]
    if zero:
        vectors[0, 0, 0] = 0
    codes, scale = rounding(vectors)
    assert codes.dtype == np.int8
    assert scale.shape == (2, HEADS, len(exponents), 1)
    assert (np.abs(vectors - codes * scale) <= 0.501 * scale).all()
    largest = np.abs(codes.astype(int)).max(axis=3)
    assert (largest[np.abs(vectors).max(axis=3) > 1e-9] == 127).all()
    # No vector is rounded otherwise for what stands beside it.
    alone, _ = rounding(np.ascontiguousarray(vectors[1:, :, -1:]))
    np.testing.assert_array_equal(alone, codes[1:, :, -1:])


def test_no_vector_is_rounded_to_none(rounding: Rounding) -> None:
    codes, scale = rounding(np.zeros((1, HEADS, 0, HEAD_SIZE), np.float32))
    assert (codes.shape, scale.shape) == ((1, HEADS, 0, HEAD_SIZE), (1, HEADS, 0, 1))
    codes, scale = rounding(np.zeros((1, HEADS, 2, HEAD_SIZE), np.float32))
    assert not codes.any()
    assert (scale > 0).all()


def session_of(bundle: Bundle, graph: str) -> ort.InferenceSession:
    return ort.InferenceSession(str(bundle.file(f"{graph}.onnx")), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("precision", "kv_heads", "tolerance"), [("fp32", 4, 2e-6), ("fp32", 2, 2e-6), ("fp32", 1, 2e-6), ("fp16", 4, 1e-2)]
)
def test_both_forms_compute_the_same(tmp_path: Path, precision: Precision, kv_heads: int, tolerance: float) -> None:
    bundle = bundle_of(tmp_path, kv_heads=kv_heads, dtype=precision)
    language = bundle.manifest.geometry.language
    joint, split = (session_of(bundle, name) for name in ("denoiser", "denoiser_cpu"))
    draw = np.random.default_rng(0)
    for past, window, keep in ((0, 17, 11), (11, 6, 0), (1, 6, 6), (300, 5, 2)):
        inputs = {
            "inputs_embeds": draw.normal(0, 0.5, (2, window, WIDTH)).astype(np.float32),
            "position_ids": np.tile(np.arange(past, past + window), (2, 1)),
            "attention_bias": np.zeros((2, 1, 1, past + window), np.float32),
            "rows": np.array([window - 1, window - 3]),
        }
        for array in kept_arrays(language, "float32", "int8"):
            shape = (2, array.heads, past, array.width)
            kept = draw.integers(-127, 128, shape) if array.dtype == "int8" else draw.uniform(0.001, 0.01, shape)
            inputs[f"{PAST}{array.name}"] = kept.astype(array.dtype)
        ours = split.run(None, inputs | {"keep": np.array([keep])})
        theirs = joint.run(None, inputs | {"kept": np.arange(keep)})
        for output, a, b in zip(split.get_outputs(), ours, theirs, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            # A value half-way between two integers may go to either.
            limit = tolerance * float(np.abs(b).max()) if a.dtype == np.float32 and a.size else 1
            np.testing.assert_allclose(a.astype(float), b.astype(float), atol=limit, err_msg=output.name)


@pytest.mark.parametrize("form", ["w8", "w4"])
def test_forms_of_weights_go_with_it(tmp_path: Path, form: QuantizedForm) -> None:
    bundle = bundle_of(tmp_path, quantize=form)
    assert bundle.manifest.numbers.endswith(f"linear layers in {form}, prompt KV in int8")
    answer = Pipeline.load(bundle.path, threads=1).generate(
        prompt_ids=PROMPT, config=GenerationConfig(gen_length=8, preset="fast")
    )
    assert {step.kind for step in answer.steps} == {"refresh", "step"}


def test_where_no_step_reads_them_answers_are_the_same(tmp_path: Path) -> None:
    config = GenerationConfig(gen_length=16, steps=8)
    ours, theirs = (
        Pipeline.load(bundle_of(tmp_path, kind).path, threads=1).generate(prompt_ids=PROMPT, config=config)
        for kind in KINDS
    )
    assert ours.passes["step"] == 0
    told = [[(s.positions, s.tokens, s.confidences, s.canvas) for s in answer.steps] for answer in (ours, theirs)]
    assert told[0] == told[1]


def test_a_step_deviates_from_the_refresh_by_the_rounding_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    prompt, canvas = (draw.standard_normal((n, WIDTH)).astype(np.float32) for n in (40, 6))
    errors = []
    for kind in KINDS:
        bundle = bundle_of(tmp_path, kind)
        graph = ObservedGraph(bundle, "denoiser")
        refreshed = graph.run(refresh_inputs(bundle.manifest, prompt, canvas, np.arange(6)), lambda *_: None)
        stepped = graph.run(step_inputs(refreshed, canvas, np.arange(6)), lambda *_: None)
        errors.append(np.abs(stepped["logits"] - refreshed["logits"]).max() / np.abs(refreshed["logits"]).max())
    assert errors[1] < 1e-4 < errors[0] < 0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_verification_passes(tmp_path: Path, precision: Precision) -> None:
    pytest.importorskip("torch")
    from lladav.export.verify import verify

    bundle = bundle_of(tmp_path, dtype=precision)
    assert verify(bundle.path, tmp_path / f"checkpoint-{HEADS}").passed


@pytest.mark.parametrize(
    ("harmed", "operator", "inputs", "where"),
    [
        pytest.param("QuantizeLinear", "Ceil", 1, "layers.1 key", id="up instead of to the nearest"),
        pytest.param("Max", "Sum", 4, "layers.1 key scale", id="steps four times too coarse"),
    ],
)
def test_verification_finds_integers_that_are_not_the_best(
    tmp_path: Path, harmed: str, operator: str, inputs: int, where: str
) -> None:
    pytest.importorskip("torch")
    from lladav.export.verification import DeviationError
    from lladav.export.verify import verify

    bundle = bundle_of(tmp_path)
    layer = "layers.1/self_attn/"
    with changed_graph(bundle, "denoiser") as graph:
        position = next(i for i, n in enumerate(graph.node) if n.op_type == harmed and n.name.startswith(layer))
        given = [graph.node[position].input[0]] * inputs
        graph.node.insert(position, helper.make_node(operator, given, ["wrong"], name=f"{layer}wrong"))
        graph.node[position + 1].input[0] = "wrong"
    with pytest.raises(VerificationError) as caught:
        verify(bundle.path, tmp_path / f"checkpoint-{HEADS}")
    assert isinstance(caught.value, DeviationError)
    wrong = [(row.what, row.note) for row in caught.value.report.rows if not row.passed]
    assert wrong[0] == ("present keys and values", where)


def test_bundles_with_and_without_are_compared(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "What is this?"}\n{"prompt": "Where is it?"}\n', "utf-8")
    ours, plain = (bundle_of(tmp_path, kind).path for kind in KINDS)
    report = agreement(ours, plain, questions=tmp_path / "questions.jsonl")
    assert {layer.error for layer in report.layers} == {0.0}
    assert report.steps[0].divergence_max == 0  # a refresh
    assert 0 < report.total.divergence_max < 0.1


def test_inputs_and_outputs_are_int8_with_scales(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, dtype="fp16")
    for name, spec in bundle.manifest.graphs.items():
        if not name.startswith("denoiser"):
            continue
        model = onnx.load(str(bundle.file(spec.file)), load_external_data=False)
        types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
        for prefix in (PAST, PRESENT):
            assert {types[f"{prefix}{i}.{part}"] for i in range(2) for part in ("key", "value")} == {TensorProto.INT8}
            scales = {types[f"{prefix}{i}.{part}_scale"] for i in range(2) for part in ("key", "value")}
            assert scales == {TensorProto.FLOAT}


def test_bytes_of_a_position_of_the_real_model() -> None:
    real = real_geometry().language
    assert position_bytes(real, 2, None) == 524_288
    assert position_bytes(real, 2, "int8") == 524_288 // 2 + 32 * 2 * 32 * 4
