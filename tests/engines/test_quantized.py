"""Engines of the demo checkpoint with integers for weights, built ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_builder import fused_attentions

from lladav.bundle import Bundle
from lladav.calib import CalibrationConfig, calibrate
from lladav.engines import build, load_target, read_records
from lladav.engines.builder import check_head, check_precision
from lladav.engines.target import EnginePrecision
from lladav.errors import EngineError
from lladav.export import ExportConfig, export
from lladav.machine import Machine, Memory
from lladav.manifest import QuantizedForm

DEMO = Path(__file__).resolve().parents[2] / "benchmarks" / "demo_checkpoint" / "checkpoint"
SIZES: dict[str, Any] = {"prompt_buckets": (64, 128), "canvas_buckets": (8, 32), "tile_buckets": (1,), "verify": False}

MakeBundle = Callable[[QuantizedForm | None], Path]


@pytest.fixture(scope="module")
def demo_in(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """The demo checkpoint's bundle in a form, each made once; engines are built into it."""
    folder = tmp_path_factory.mktemp("quantized")

    def bundle(form: QuantizedForm | None) -> Path:
        path = folder / str(form)
        if not path.exists():
            seen = statistics(folder) if form == "w8a8" else None
            export(DEMO, path, ExportConfig(dtype="fp16", quantize=form, statistics=seen, **SIZES))
        return path

    return bundle


def statistics(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("What is this?\n", "utf-8")
    export(DEMO, folder / "plain", ExportConfig(dtype="fp32", **SIZES))
    asked = CalibrationConfig(gen_length=8, steps=2, refresh_interval=2)
    calibrate(folder / "plain", folder / "seen.npz", prompts=folder / "prompts.txt", config=asked)
    return folder / "seen.npz"


def plans(bundle: Path, target: str) -> dict[str, Path]:
    if not read_records(bundle, target):
        build(bundle, target)
    return {record.graph: bundle / record.plan.path for record in read_records(bundle, target)}


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("form", "target"),
    [
        # The vision tower is in w8 with each of them.
        ("w4", "rtx-50"),
        ("w8a8", "rtx-30"),
        *(
            pytest.param(form, target, marks=pytest.mark.slow)
            for form, target in (
                *(("w8", "rtx-30"), ("w8", "rtx-40"), ("w8", "rtx-50"), ("w4", "rtx-30"), ("w4", "rtx-40")),
                *(("w8a8", "rtx-40"), ("w8a8", "rtx-50")),
            )
        ),
    ],
)
def test_integers_stay_integers_and_attention_fused(demo_in: MakeBundle, form: QuantizedForm, target: str) -> None:
    plain, quantized = demo_in(None), demo_in(form)
    before, after = plans(plain, "rtx-30"), plans(quantized, target)
    assert all(record.integers is None for record in read_records(plain))
    manifests = [Bundle.open(path).manifest for path in (plain, quantized)]
    sizes = [{entry.path: entry.bytes for entry in manifest.files} for manifest in manifests]
    for graph in ("denoiser", "vision_encoder"):
        saved = sizes[0][f"{graph}.weights"] - sizes[1][f"{graph}.weights"]
        # Kernels are in the plan as well, and are others.
        assert before[graph].stat().st_size - after[graph].stat().st_size > saved / 2, graph
        assert fused_attentions(after[graph]) == fused_attentions(before[graph]) > 0, graph
    expected: EnginePrecision = "int4" if form == "w4" else "int8"
    records = read_records(quantized, target)
    assert {record.precision for record in records} == {expected}
    for record in records:
        assert record.integers is not None
        assert record.integers.weights > 0
        assert record.integers.widened == ()
    # With one bucket of crops, TensorRT-RTX 1.7.1 has these written as floats by a layer of their own, in every pass.
    alone = {record.graph: record.integers.conversions for record in records if record.integers}
    vision = manifests[1].geometry.vision
    assert vision is not None
    assert {graph: len(found) for graph, found in alone.items()} == {
        "denoiser": 0,
        "vision_encoder": vision.layers,
        "connector": 0,
    }
    assert all(one.node.endswith("/out_proj.weight") for one in alone["vision_encoder"])


@pytest.mark.usefixtures("rtx")
def test_attention_is_fused_with_an_int8_prompt(demo_in: MakeBundle, tmp_path: Path) -> None:
    before = plans(demo_in(None), "rtx-30")["denoiser"]
    bundle = export(DEMO, tmp_path / "bundle", ExportConfig(dtype="fp16", prompt_kv="int8", **SIZES)).path
    assert fused_attentions(plans(bundle, "rtx-50")["denoiser"]) == fused_attentions(before) > 0


@pytest.mark.parametrize(
    ("form", "asked", "target", "said", "cure"),
    [
        ("w8", "int4", "rtx-40", "is in int8, and an engine of it cannot be in int4", "--quantize w4"),
        ("w8", "fp16", "orin-agx-64", "is in int8, and an engine of it cannot be in fp16", "--dtype fp16"),
        (None, "int8", "orin-agx-64", "is in fp16, and an engine of it cannot be in int8", "--quantize w8"),
    ],
)
def test_precision_must_be_the_bundles(
    demo_in: MakeBundle, form: QuantizedForm | None, asked: EnginePrecision, target: str, said: str, cure: str
) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        check_precision(Bundle.open(demo_in(form)), load_target(target), asked)
    assert cure in caught.value.cure


def test_target_without_integers_refuses(demo_in: MakeBundle) -> None:
    bundle = Bundle.open(demo_in("w4"))
    check_precision(bundle, load_target("orin-nx-16"), "int4")
    without = load_target("orin-nx-16").model_copy(update={"precisions": ("fp16", "int8")})
    with pytest.raises(EngineError, match="takes fp16, int8, not int4") as caught:
        check_precision(bundle, without)
    assert "--dtype fp16" in caught.value.cure


@pytest.mark.usefixtures("rtx")
def test_int4_is_unpacked_while_it_is_built(demo_in: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = demo_in("w4")
    weights = max(e.bytes for e in Bundle.open(bundle).manifest.files if e.path.endswith(".weights"))
    short = Machine("", "", 1, (), Memory(10 * weights, 2 * weights, 0, 0, 0), "", (), "", "", "")
    monkeypatch.setattr("lladav.engines.builder.examine", lambda: short)
    with pytest.raises(EngineError, match="GB of swap are free"):
        build(bundle, "rtx-40")


def test_whole_head_is_refused_where_it_may_not_build(demo_in: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(demo_in(None))
    check_head(bundle, load_target("orin-agx-64"))
    monkeypatch.setattr("lladav.engines.prediction.FAILED_HEAD_BYTES", 1e6)
    check_head(bundle, load_target("rtx-40"))
    with pytest.raises(EngineError, match="MB in one product") as caught:
        check_head(bundle, load_target("orin-agx-64"))
    assert "without --head-parts" in caught.value.cure
