"""Verification: a faithful bundle passes in every precision, and what is wrong is named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import Tensors, sharing_heads, without_pictures, write_tiny_checkpoint

from lladav.bundle import Bundle
from lladav.errors import BackendError, CheckpointError, VerificationError
from lladav.export.checkpoint import Checkpoint
from lladav.export.config import ExportConfig
from lladav.export.exporter import build_graphs, export
from lladav.export.graph_form import GraphForm
from lladav.export.progress import Progress
from lladav.export.verification import TOLERANCES, Comparison, DeviationError, Tolerance
from lladav.export.verify import verify
from lladav.manifest import Precision

pytest.importorskip("torch")

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("verify") / "checkpoint")


@pytest.fixture(scope="module")
def bundles(checkpoint: Path) -> dict[str, Path]:
    folders = {precision: checkpoint.parent / precision for precision in PRECISIONS}
    for precision, folder in folders.items():
        export(checkpoint, folder, ExportConfig(dtype=precision, verify=False))
    return folders


@pytest.fixture
def altered(bundles: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Copies the fp32 bundle and changes some float32 values of one of its files."""

    def alter(file: str, offset: int, values: np.ndarray) -> Path:
        folder = tmp_path / "altered"
        shutil.copytree(bundles["fp32"], folder)
        with (folder / file).open("r+b") as stream:
            stream.seek(offset)
            stream.write(np.asarray(values, np.float32).tobytes())
        return folder

    return alter


def offset_of(bundle: Path, graph: str, source: str) -> int:
    """Where a weight begins in its file."""
    (builder,) = (
        b for b in build_graphs(Bundle.open(bundle).manifest.geometry, GraphForm("float32")) if b.name == graph
    )
    return next(weight.offset for weight in builder.weights if weight.source == source)


def failed(bundle: Path, checkpoint: Path) -> list[tuple[str, str, str]]:
    """Component, comparison and note of every row that did not pass."""
    with pytest.raises(VerificationError) as caught:
        verify(bundle, checkpoint)
    assert isinstance(caught.value, DeviationError)
    report = caught.value.report
    assert not report.passed
    return [(row.component, row.what, row.note) for row in report.rows if not row.passed]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_faithful_bundle_passes(bundles: dict[str, Path], checkpoint: Path, precision: Precision) -> None:
    report = verify(bundles[precision], checkpoint)
    assert report.passed
    assert report.seconds > 0
    components = dict.fromkeys(row.component for row in report.rows)
    assert list(components) == ["vision_encoder", "connector", "prompt", "denoiser", "denoising"]
    steps = [row for row in report.rows if row.component == "denoising"]
    if precision == "bf16":
        assert [row.note for row in steps] == ["skipped: the runtime has no bf16 on the CPU"]
    else:
        assert [row.what for row in steps] == [f"step {n} logits" for n in (1, 2, 3, 4)]
    for row in report.rows:
        assert row.max_abs_error is None or row.max_abs_error <= (row.tolerance or 0)


def test_narrow_types_round(bundles: dict[str, Path], checkpoint: Path) -> None:
    """ONNX Runtime on the CPU would leave the roundings out, and an overflow with them."""
    errors = []
    for precision in PRECISIONS:
        rows = verify(bundles[precision], checkpoint).rows
        errors.append(next(row.max_abs_error or 0.0 for row in rows if row.what == "image features"))
    assert errors[1] > 100 * errors[0]
    assert errors[2] > 4 * errors[1]


def test_same_result_every_time(bundles: dict[str, Path], checkpoint: Path) -> None:
    assert verify(bundles["fp16"], checkpoint).rows == verify(bundles["fp16"], checkpoint).rows


def test_progress_counts_all_weights(bundles: dict[str, Path], checkpoint: Path) -> None:
    stages: list[tuple[str, int]] = []
    done: list[int] = []
    verify(
        bundles["bf16"], checkpoint, progress=Progress(lambda stage, total: stages.append((stage, total)), done.append)
    )
    ((stage, total),) = stages
    assert stage == "verify"
    # The files are padded to whole pages between weights.
    assert 0.2 * total < sum(done) <= total


def test_own_picture(bundles: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)).save(tmp_path / "noise.png")
    noise = verify(bundles["fp32"], checkpoint, tmp_path / "noise.png")
    assert noise.passed
    assert noise.rows[0] != verify(bundles["fp32"], checkpoint).rows[0]


@pytest.mark.parametrize(
    ("graph", "source", "expected"),
    [
        (
            "denoiser",
            "model.layers.1.self_attn.q_proj.weight",
            ("denoiser", "worst layer by itself", "layers.1"),
        ),
        ("denoiser", "lm_head.weight", ("denoiser", "worst layer by itself", "head")),
        (
            "vision_encoder",
            "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight",
            ("vision_encoder", "worst layer by itself", "layers.1"),
        ),
        ("connector", "model.mm_projector.2.bias", ("connector", "image features", "")),
    ],
)
def test_altered_weight_is_located(
    bundles: dict[str, Path],
    altered: Callable[..., Path],
    checkpoint: Path,
    graph: str,
    source: str,
    expected: tuple[str, str, str],
) -> None:
    bundle = altered(f"{graph}.weights", offset_of(bundles["fp32"], graph, source), np.array([3.0]))
    rows = failed(bundle, checkpoint)
    assert rows[0] == expected
    assert {component for component, *_ in rows} <= {graph, "denoising"}


def test_altered_newline_is_found(altered: Callable[..., Path], checkpoint: Path) -> None:
    assert failed(altered("image_newline.bin", 4, np.array([0.3])), checkpoint) == [("prompt", "merged rows", "")]


def test_altered_embedding_is_found(altered: Callable[..., Path], checkpoint: Path) -> None:
    rows = failed(altered("embed_tokens.bin", 77 * 32 * 4, np.array([0.3])), checkpoint)
    assert ("prompt", "embedding table") in [row[:2] for row in rows]


def test_weight_that_is_not_a_number_is_found(
    bundles: dict[str, Path], altered: Callable[..., Path], checkpoint: Path
) -> None:
    offset = offset_of(bundles["fp32"], "denoiser", "model.layers.0.mlp.up_proj.weight")
    assert ("denoiser", "worst layer by itself", "layers.0") in failed(
        altered("denoiser.weights", offset, np.array([np.nan])), checkpoint
    )


def test_other_checkpoint_is_found(bundles: dict[str, Path], tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    assert {component for component, *_ in failed(bundles["fp16"], other)} == {
        *("vision_encoder", "connector", "prompt", "denoiser", "denoising"),
    }


def test_other_geometry_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", edit=lambda _, config: config.update(rope_theta=1e4))
    with pytest.raises(CheckpointError, match="rope_theta"):
        verify(bundles["fp32"], other)


def test_steps_are_skipped_where_memory_is_short(
    bundles: dict[str, Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lladav.export.verify_steps.available_memory", lambda: 100_000_000)
    report = verify(bundles["fp32"], checkpoint)
    assert report.passed
    (row,) = (row for row in report.rows if row.component == "denoising")
    assert row.max_abs_error is None
    assert row.note == "skipped: needs 0.3 GB of memory, and 0.1 GB are available"


def test_missing_torch_has_a_cure(bundles: dict[str, Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lladav.export.")]:
        if name.rsplit(".")[-1] in ("streamed_reference", "verify_layers", "verify_steps", "reference"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendError, match=r"pip install 'lladav\[verify\]'"):
        verify(bundles["fp32"], checkpoint)


def test_export_verifies_before_the_bundle_appears(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp16", prompt_buckets=(16,), canvas_buckets=(3,)))
    assert verify(tmp_path / "bundle", checkpoint).passed


def test_deviating_export_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCES, "fp16", Tolerance(stored=1e-9, layer=1e-9, whole=1e-9))
    with pytest.raises(DeviationError, match="vision_encoder"):
        export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp16"))
    assert not list(tmp_path.iterdir())


def test_text_model_whose_heads_share_keys(tmp_path: Path) -> None:
    def edit(tensors: Tensors, config: dict[str, Any]) -> None:
        without_pictures(tensors, config)
        sharing_heads(2)(tensors, config)

    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", dtype="bfloat16", edit=edit)
    export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp16", verify=False))
    report = verify(tmp_path / "bundle", checkpoint)
    assert [row.component for row in report.rows[:3]] == ["prompt", "prompt", "denoiser"]


def test_comparison_keeps_what_is_worst_beside_its_tolerance() -> None:
    comparison = Comparison("denoiser", "layers", 0.1)
    comparison.add(np.array([100.0, 101.0]), np.array([100.0, 100.0]), "large")
    comparison.add(np.array([1.0, 1.05]), np.array([1.0, 1.0]), "small")
    assert comparison.row.note == "small"
    assert comparison.row.passed
    comparison.add(np.array([0.0, np.nan]), np.array([0.0, 1.0]), "broken")
    comparison.add(np.array([0.0, 9.0]), np.array([0.0, 1.0]), "wrong")
    assert comparison.row.note == "broken"
    assert not comparison.row.passed


def test_golden_checkpoint_passes(golden_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = golden_checkpoint("fp32")
    rows = Checkpoint.open(folder).tensors["model.embed_tokens.weight"].rows
    bundle = export(folder, tmp_path / "bundle", ExportConfig(dtype="fp32", verify=False))
    assert bundle.manifest.geometry.language.vocab_rows < rows
    assert verify(tmp_path / "bundle", folder).passed
