"""Two bundles beside each other: what differs is found and measured, and what cannot be compared is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tiny import Tensors, write_tiny_checkpoint
from typer.testing import CliRunner

from lladav.bundle import Bundle
from lladav.cli.app import app
from lladav.errors import BundleError, VerificationError
from lladav.export import ExportConfig, export
from lladav.export import agreement as module
from lladav.export.agreement import AgreementReport, agreement
from lladav.export.agreement_layers import LayerError, Values, layer_errors, no_past, refresh_inputs
from lladav.export.agreement_questions import AgreementQuestion
from lladav.export.agreement_steps import Player, divergence
from lladav.export.graph_pieces import GraphPieces
from lladav.export.migration import Migration
from lladav.export.progress import Progress
from lladav.manifest import Manifest, Precision, QuantizedForm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and questions about them."""
    folder = tmp_path_factory.mktemp("agreement")
    (folder / "pictures").mkdir()
    draw = np.random.default_rng(0)
    for number in range(2):
        pixels = draw.integers(0, 256, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    lines = [{"image": f"{n}.png", "prompt": "What is this?", "answer": "a cat"} for n in range(2)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of 8 tokens, so that these tests are fast."""
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")
    (path / "generation_config.json").write_text('{"gen_length": 8}', "utf-8")
    return path


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.parent / "plain", ExportConfig(dtype="fp32", verify=False)).path


def quantised(checkpoint: Path, form: QuantizedForm) -> Path:
    path = checkpoint.parent / form
    if not path.exists():
        export(checkpoint, path, ExportConfig(dtype="fp32", quantize=form, verify=False))
    return path


@pytest.fixture(scope="module")
def report(checkpoint: Path, plain: Path, folder: Path) -> AgreementReport:
    return agreement(
        quantised(checkpoint, "w4"), plain, images=folder / "pictures", questions=folder / "questions.jsonl"
    )


def test_a_bundle_agrees_with_itself(plain: Path, folder: Path) -> None:
    found = agreement(plain, plain, images=folder / "pictures")
    assert {layer.error for layer in found.layers} == {0.0}
    assert found.total.divergence_max == 0
    assert found.total.same == found.total.same_by_margin == found.answers.equal == 1
    assert found.answers.reference_right is None
    assert found.notes == ()


def test_every_linear_layer_is_measured(report: AgreementReport, plain: Path) -> None:
    manifest = Manifest.read(plain)
    assert manifest.geometry.vision is not None
    counts = {(kind.graph, kind.kind): kind.layers for kind in report.kinds}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert counts["denoiser", name] == manifest.geometry.language.layers
    assert counts["vision_encoder", "fc2"] == manifest.geometry.vision.layers
    assert counts["connector", "mm_projector.0"] == 1
    (head,) = (layer for layer in report.layers if layer.layer == "lm_head")
    assert (head.error, head.bits) == (0.0, None)
    assert all(0 < layer.error < 0.5 for layer in report.layers if layer.bits == 4)
    errors = [layer.error for layer in report.worst]
    assert errors == sorted(errors, reverse=True)


def test_errors_are_relative_to_outputs(plain: Path, checkpoint: Path) -> None:
    # By hand: the query layer of the first block sees the normed embeddings, whose weights are rounded.
    bundles = plain, quantised(checkpoint, "w8")
    ours, theirs = (GraphPieces(path / "denoiser.onnx") for path in bundles)
    values = inputs_of_first_layer(plain, "denoiser")
    found = layer_errors(*map(Bundle.open, bundles), {"denoiser": [values]}, Progress())
    layer = "model.layers.0.self_attn.q_proj"
    outputs = []
    for graph in (ours, theirs):
        name = graph.linear_outputs()[f"{layer}.weight"]
        outputs.append(graph.piece("layers.0", shown={name}).run(values)[name])
    expected = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    (own,) = (one for one in found if one.layer == layer)
    assert own == LayerError("denoiser", layer, 8, pytest.approx(expected, rel=1e-5))


def test_sizes_that_moved_into_other_layers_are_no_errors(tmp_path: Path, calibrated: Callable[[Path], Path]) -> None:
    def plant(tensors: Tensors, _: object) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][:3] *= 50
        tensors["model.layers.0.mlp.down_proj.weight"][:, :3] /= 50

    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", edit=plant)
    plain = export(checkpoint, tmp_path / "plain", ExportConfig(dtype="fp32", verify=False))
    options = ExportConfig(dtype="fp32", quantize="w8a8", statistics=calibrated(plain.path), verify=False)
    smoothed = export(checkpoint, tmp_path / "smoothed", options)
    source = "model.layers.0.mlp.up_proj"
    factors = Migration.read(smoothed.path, smoothed.manifest.geometry).sources[source]
    assert factors.max() / factors.min() > 10
    values = inputs_of_first_layer(plain.path, "denoiser")
    found = layer_errors(plain, smoothed, {"denoiser": [values]}, Progress())
    (own,) = (one for one in found if one.layer == source)
    # Random rows are larger than those of text, which the ranges are of; divided outputs would be off by 0.97.
    assert 0 < own.error < 0.3


def inputs_of_first_layer(bundle: Path, graph: str) -> Values:
    """Random ones, with what earlier scopes make of them."""
    draw, pieces = np.random.default_rng(0), GraphPieces(bundle / f"{graph}.onnx")
    if graph == "vision_encoder":
        values: Values = {"pixel_values": draw.normal(0, 1, (1, 3, 56, 56)).astype(np.float32)}
    else:
        manifest = Manifest.read(bundle)
        rows = draw.normal(0, 1, (12, manifest.geometry.language.hidden_size)).astype(np.float32)
        values = refresh_inputs(rows[:8], rows[8:], np.arange(4)) | no_past(manifest)
    for scope in pieces.scopes[: pieces.scopes.index("layers.0")]:
        values |= pieces.piece(scope).run(values)
    return values


@pytest.mark.parametrize("graph", ["denoiser", "vision_encoder"])
@pytest.mark.parametrize(("precision", "rounding"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_outputs_of_layers_do_not_depend_on_the_type(
    checkpoint: Path, plain: Path, graph: str, precision: Precision, rounding: float
) -> None:
    # Headroom, bias and casts belong to the layer.
    narrow = checkpoint.parent / f"plain-{precision}"
    if not narrow.exists():
        export(checkpoint, narrow, ExportConfig(dtype=precision, verify=False))
    values, results = inputs_of_first_layer(plain, graph), []
    for bundle in (plain, narrow):
        pieces = GraphPieces(bundle / f"{graph}.onnx")
        names = pieces.linear_outputs()
        made = pieces.piece("layers.0", shown=names.values()).run(values)
        results.append({weight: made[name] for weight, name in names.items() if name in made})
    assert len(results[0]) == (7 if graph == "denoiser" else 6)
    assert results[0].keys() == results[1].keys()
    for weight, expected in results[0].items():
        error = np.linalg.norm(results[1][weight] - expected) / np.linalg.norm(expected)
        assert error < 8 * rounding, weight


def test_passes_are_compared_on_the_reference_canvases(report: AgreementReport) -> None:
    total = report.total
    assert total.rows == sum(step.rows for step in report.steps)
    assert total.decisions == sum(step.decisions for step in report.steps)
    assert 2 <= total.decisions <= 2 * 8
    assert [step.step for step in report.steps] == list(range(1, len(report.steps) + 1))
    assert 0 < total.divergence_mean < total.divergence_max
    assert 0 <= total.same <= 1
    # Every answer begins with all of its 8 positions masked.
    assert report.steps[0].rows == 2 * 8


def test_answers_are_judged_by_the_right_ones(checkpoint: Path, plain: Path, folder: Path, tmp_path: Path) -> None:
    question = AgreementQuestion(prompt="What is this?", image=folder / "pictures" / "0.png")
    text = Player(Bundle.open(plain)).text(question)
    lines = [{"image": "0.png", "prompt": "What is this?", "answer": answer} for answer in (text, "something else")]
    lines.append({"image": "1.png", "prompt": "What is this?", "answer": None})
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = agreement(
        quantised(checkpoint, "w8"), plain, images=folder / "pictures", questions=tmp_path / "asked.jsonl"
    ).answers
    assert (found.asked, found.judged, found.reference_right) == (3, 2, 0.5)


def test_bundles_change_places_before_logits_fill_the_disk(
    checkpoint: Path, plain: Path, folder: Path, report: AgreementReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGIT_BYTES", 1)
    found = agreement(
        quantised(checkpoint, "w4"), plain, images=folder / "pictures", questions=folder / "questions.jsonl"
    )
    assert (found.steps, found.layers, found.answers) == (report.steps, report.layers, report.answers)


def test_a_coarser_reference_is_said(checkpoint: Path, folder: Path) -> None:
    options: Any = {"images": folder / "pictures", "limit": 1}
    (note,) = agreement(quantised(checkpoint, "w8"), quantised(checkpoint, "w4"), **options).notes
    assert "more coarsely" in note
    (note,) = agreement(quantised(checkpoint, "w4"), quantised(checkpoint, "w8"), **options).notes
    assert "finer" in note


@given(
    arrays(np.float32, (3, 7), elements=st.floats(-50, 50, width=32)),
    arrays(np.float32, (3, 7), elements=st.floats(-50, 50, width=32)),
    st.floats(-20, 20, width=32),
)
def test_divergence_is_a_divergence(one: np.ndarray, other: np.ndarray, shift: float) -> None:
    assert (divergence(one, other) >= 0).all()
    # The same distribution, whatever is added to its logits.
    np.testing.assert_allclose(divergence(one, one + np.float32(shift)), 0, atol=1e-4)


def test_divergence_of_two_coins() -> None:
    fair, biased = np.zeros((1, 2), np.float32), np.log([[0.9, 0.1]]).astype(np.float32)
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert divergence(fair, biased) == pytest.approx([expected], rel=1e-5)


def test_bundles_of_different_models_are_refused(plain: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "checkpoint", seed=1)
    found = export(other, tmp_path / "other", ExportConfig(dtype="fp32", verify=False))
    with pytest.raises(BundleError, match="is of the checkpoint"):
        agreement(found.path, plain)
    manifest = Manifest.read(plain)
    same = manifest.model_dump() | {"checkpoint": found.manifest.checkpoint.model_dump()}
    language = {**same["geometry"]["language"], "rope_theta": 1e4}
    shutil.copytree(found.path, tmp_path / "stretched")
    changed = {
        **same,
        "files": found.manifest.model_dump()["files"],
        "geometry": {**same["geometry"], "language": language},
    }
    Manifest.model_validate(changed).write(tmp_path / "stretched")
    with pytest.raises(BundleError, match="another geometry"):
        agreement(tmp_path / "stretched", found.path)


def test_a_full_disk_is_said(plain: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(VerificationError, match="No space left"):
        agreement(plain, plain, images=folder / "pictures", limit=1)


def call(*arguments: str, expect: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["verify", *arguments])
    assert result.exit_code == expect, result.stderr
    return result.stdout, result.stderr


def test_the_verb_reports_and_does_not_judge(checkpoint: Path, plain: Path, folder: Path) -> None:
    pair = ("--quantized", str(quantised(checkpoint, "w4")), "--reference", str(plain))
    asked = ("--images", str(folder / "pictures"), "--questions", str(folder / "questions.jsonl"))
    out, _ = call(*pair, *asked)
    assert "fp32, linear layers in w4, beside fp32" in out
    assert "down_proj" in out
    assert "answers: " in out
    found = json.loads(call(*pair, *asked, "--json")[0])
    assert found["answers"]["judged"] == 2
    assert {"layers", "kinds", "steps", "total", "seconds"} <= found.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bundle",),
        ("bundle", "checkpoint", "--json"),
        ("bundle", "checkpoint", "--limit", "2"),
        ("--quantized", "a"),
        ("--reference", "b"),
        ("bundle", "--quantized", "a", "--reference", "b"),
        ("--quantized", "a", "--reference", "b", "--image", "c"),
        ("--quantized", "a", "--reference", "b", "--limit", "0"),
    ],
)
def test_options_that_contradict_one_another(arguments: tuple[str, ...]) -> None:
    call(*arguments, expect=2)
