"""The denoiser in the form for ONNX Runtime on the CPU, beside the form for engine builders."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from changed_graph import changed_graph
from tiny import sharing_heads, write_tiny_checkpoint

from lladav.bundle import Bundle
from lladav.errors import VerificationError
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.manifest import Precision

WIDTH, LAYERS, HEAD_SIZE, HEADS = 32, 2, 8, 4
CACHES = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]


def bundle_of(folder: Path, precision: Precision = "fp32", kv_heads: int = HEADS) -> Bundle:
    checkpoint = write_tiny_checkpoint(folder / "checkpoint", edit=sharing_heads(kv_heads))
    return export(checkpoint, folder / "bundle", ExportConfig(dtype=precision, verify=False))


def session_of(bundle: Bundle, graph: str, **options: Any) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    return ort.InferenceSession(str(bundle.file(f"{graph}.onnx")), settings, providers=["CPUExecutionProvider"])


def feeds(past: int, window: int, kv_heads: int = HEADS, batch: int = 2) -> dict[str, Any]:
    """A pass with some padding, for the last three positions of the window in another order."""
    draw = np.random.default_rng(past + window)
    bias = np.zeros((batch, 1, 1, past + window), np.float32)
    bias[-1, ..., 1 : 1 + past // 2] = -30000.0
    cache = (batch, kv_heads, past, HEAD_SIZE)
    return {
        "inputs_embeds": draw.normal(0, 0.5, (batch, window, WIDTH)).astype(np.float32),
        "position_ids": np.tile(np.arange(past, past + window), (batch, 1)),
        "attention_bias": bias,
        "rows": np.array([window - 1, window - 3, window - 2]),
        **{f"past_key_values.{name}": draw.normal(0, 0.5, cache).astype(np.float32) for name in CACHES},
    }


@pytest.mark.parametrize(
    ("precision", "kv_heads", "tolerance"),
    [("fp32", 4, 2e-6), ("fp32", 2, 2e-6), ("fp32", 1, 2e-6), ("fp16", 4, 1e-2), ("fp16", 2, 1e-2)],
)
def test_both_forms_compute_the_same(tmp_path: Path, precision: Precision, kv_heads: int, tolerance: float) -> None:
    bundle = bundle_of(tmp_path, precision, kv_heads)
    joint, split = (session_of(bundle, name) for name in ("denoiser", "denoiser_cpu"))
    names = ["logits", *(f"present.{name}" for name in CACHES)]
    for past, window, keep in ((0, 17, 11), (0, 17, 0), (11, 6, 0), (1, 6, 6), (300, 5, 2)):
        inputs = feeds(past, window, kv_heads)
        stored = np.float16 if precision == "fp16" else np.float32
        narrow = {n: v.astype(stored) if n.startswith("past") else v for n, v in inputs.items()}
        theirs = joint.run(names, narrow | {"kept": np.arange(keep)})
        ours = split.run(names, inputs | {"keep": np.array([keep])})
        scale = float(np.abs(theirs[0]).max())
        np.testing.assert_allclose(ours[0], theirs[0], atol=tolerance * scale)
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            assert a.shape[2] == keep
            np.testing.assert_allclose(a, b, atol=tolerance * scale)


def test_only_products_read_the_past(tmp_path: Path) -> None:
    """After ONNX Runtime's own rewriting: no operator copies or turns the prompt's keys and values."""
    bundle = bundle_of(tmp_path)
    rewritten = tmp_path / "rewritten.onnx"
    session_of(bundle, "denoiser_cpu", optimized_model_filepath=str(rewritten))
    readers = defaultdict(set)
    turned = set()

    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for value in node.input:
                if value.startswith("past_key_values."):
                    readers[value].add(node.op_type)
                    if node.op_type == "FusedMatMul" and {a.name: a.i for a in node.attribute}["transB"]:
                        turned.add(value)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(onnx.load(str(rewritten), load_external_data=False).graph)
    sizes = {"Shape"}  # reads no contents
    for name in CACHES:
        value = f"past_key_values.{name}"
        expected = {"FusedMatMul"} if name.endswith("key") else {"MatMul"}
        assert readers[value] - sizes == expected, value
        assert (value in turned) == name.endswith("key")


def test_no_value_of_a_step_grows_with_the_prompt_as_its_keys_do(tmp_path: Path) -> None:
    """Bytes that every operator writes in a step, at two prompt lengths."""
    bundle = bundle_of(tmp_path)
    rows, near, far = 3, 64, 576

    def written(graph: str, past: int) -> dict[str, int]:
        session = session_of(
            bundle, graph, enable_profiling=True, profile_file_prefix=str(tmp_path / f"{graph}-{past}")
        )
        inputs = feeds(past, rows, batch=1)
        none = {"keep": np.array([0])} if graph == "denoiser_cpu" else {"kept": np.arange(0)}
        session.run(["logits"], inputs | none)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        return {e["name"]: int(e["args"]["output_size"]) for e in events if "output_size" in e.get("args", {})}

    def growth(graph: str) -> float:
        """Of the operator that grows most, in bytes per prompt position."""
        before, after = (written(graph, past) for past in (near, far))
        assert before.keys() == after.keys()
        return max(after[name] - before[name] for name in after) / (far - near)

    key = HEADS * HEAD_SIZE * 4
    assert growth("denoiser") == key
    assert growth("denoiser_cpu") == HEADS * rows * 4  # scores


def test_weights_are_in_the_bundle_once(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    graphs = bundle.manifest.graphs
    assert graphs["denoiser_cpu"].weights == graphs["denoiser"].weights == "denoiser.weights"

    def places(name: str) -> dict[str, dict[str, str]]:
        model = onnx.load(str(bundle.file(graphs[name].file)), load_external_data=False)
        return {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}

    assert places("denoiser") == places("denoiser_cpu")
    assert [e.path for e in bundle.manifest.files if e.path.startswith("denoiser") and e.path.endswith(".weights")] == [
        "denoiser.weights"
    ]


def test_no_such_graph_where_the_cpu_cannot_run_it(tmp_path: Path) -> None:
    assert "denoiser_cpu" not in bundle_of(tmp_path, "bf16").manifest.graphs


def test_onnx_runtime_makes_one_operator_of_every_norm(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    rewritten = tmp_path / "rewritten.onnx"
    session_of(bundle, "denoiser_cpu", optimized_model_filepath=str(rewritten))
    kinds = [node.op_type for node in onnx.load(str(rewritten), load_external_data=False).graph.node]
    assert sum("SimplifiedLayerNormalization" in kind for kind in kinds) == 2 * LAYERS + 1
    assert not {"Pow", "ReduceMean", "Sqrt"} & set(kinds)


def test_verification_sees_a_step_that_forgets_the_prompt(tmp_path: Path) -> None:
    """Full passes, which alone the runtime's steps in a verification take, would not show it."""
    pytest.importorskip("torch")
    from lladav.export.verification import DeviationError
    from lladav.export.verify import verify

    bundle = bundle_of(tmp_path)
    with changed_graph(bundle, "denoiser_cpu") as graph:
        attend = next(node for node in graph.node if node.op_type == "If")
        inside = next(a.g for a in attend.attribute if a.name == "else_branch")
        mixed = next(node for node in inside.node if node.op_type == "Add" and node.name.endswith("mixed"))
        mixed.input[0] = mixed.input[1]
    with pytest.raises(VerificationError) as caught:
        verify(bundle.path, tmp_path / "checkpoint")
    assert isinstance(caught.value, DeviationError)
    wrong = [(row.component, row.what) for row in caught.value.report.rows if not row.passed]
    assert wrong == [("denoiser", "logits, step pass for the CPU")]
