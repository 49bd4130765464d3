"""Engines built for real, ahead of time, and what stops a build."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import lladav.engines.builder
import lladav.engines.compile
from lladav.bundle import Bundle
from lladav.engines import Progress, build, load_target, read_records
from lladav.engines.builder import check_builder, check_precision
from lladav.engines.here import Here
from lladav.engines.plan_file import sole_writer, staged_stream
from lladav.engines.target import EnginePrecision
from lladav.errors import EngineError, OptionError
from lladav.inspect import inspect
from lladav.machine import Machine, Memory
from lladav.manifest import MANIFEST_NAME, Manifest, Precision, sealed
from lladav.records import EngineRecord

NOWHERE = Here("tensorrt", "10.3.0", "", "", "", 0, None)
TENSORRT = SimpleNamespace(__name__="tensorrt", __version__="10.3.0")
_KERNEL = re.compile(rb"__global__ void (?:__launch_bounds__\([0-9, ]*\) )?(\w+)")


def fused_attentions(plan: Path) -> int:
    """TensorRT-RTX writes the source of its fused kernels into the plan, one copy per use."""
    return sum(name.startswith(b"_gemm_mha_v2") for name in _KERNEL.findall(plan.read_bytes()))


def contents(bundle: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((bundle / "engines").rglob("*")) if file.is_file()}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_attention_is_fused_in_every_layer_and_profile(
    engines_in: Callable[[Precision], Path], precision: Precision
) -> None:
    bundle = engines_in(precision)
    geometry = Manifest.read(bundle).geometry
    assert geometry.vision is not None
    expected = {"denoiser": 2 * geometry.language.layers, "vision_encoder": geometry.vision.layers, "connector": 0}
    found = {(r.target, r.graph): fused_attentions(bundle / r.plan.path) for r in read_records(bundle)}
    assert found == {(t, g): n for t in ("rtx-30", "rtx-40", "rtx-50") for g, n in expected.items()}


def test_record_says_what_was_built(rtx: Any, engines_in: Callable[[Precision], Path]) -> None:
    bundle = engines_in("fp16")
    records = {r.graph: r for r in read_records(bundle, "rtx-40")}
    denoiser = records["denoiser"]
    assert records.keys() == {"denoiser", "vision_encoder", "connector"}
    assert (denoiser.library, denoiser.library_version) == ("tensorrt_rtx", rtx.__version__)
    assert (denoiser.precision, denoiser.compute_capability, denoiser.device) == ("fp16", "8.9", "")
    assert denoiser.bundle == Manifest.read(bundle).sha256
    assert [profile.name for profile in denoiser.profiles] == ["refresh", "step"]
    assert len(denoiser.activations) == 2
    assert denoiser.plan.bytes == (bundle / denoiser.plan.path).stat().st_size
    found = inspect(bundle, checksums=True)
    assert len(found.engines) == 9
    assert json.loads(json.dumps(found.to_json()))["engines"][0]["graph"] == "connector"


def test_weights_are_in_a_plan_once(engines_in: Callable[[Precision], Path]) -> None:
    bundle = engines_in("fp16")
    manifest = Manifest.read(bundle)
    weights = bundle.joinpath(manifest.graphs["denoiser"].weights).read_bytes()
    # The start of the largest matrix, which no builder has a reason to take apart.
    model = onnx.load(bundle / "denoiser.onnx", load_external_data=False)
    place = next(
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.name == "lm_head.weight"
    )
    start = int(place["offset"])
    plan = (bundle / read_records(bundle, "rtx-40")[1].plan.path).read_bytes()
    assert plan.count(weights[start : start + 64]) == 1


@pytest.mark.usefixtures("rtx")
def test_building_again_replaces(fp16_bundle: Path) -> None:
    first = build(fp16_bundle, "rtx-30", precision="fp16")
    again = build(fp16_bundle, "rtx-30")
    assert [r.graph for r in again] == [r.graph for r in first]
    assert read_records(fp16_bundle) == tuple(sorted(again, key=lambda r: r.graph))


@pytest.mark.usefixtures("rtx")
def test_progress_reaches_the_end_of_every_graph(fp16_bundle: Path) -> None:
    done: dict[str, list[int]] = {}
    build(
        fp16_bundle,
        "rtx-50",
        progress=Progress(lambda name, _: done.update({name: []}), lambda n: list(done.values())[-1].append(n)),
    )
    assert {name: sum(steps) for name, steps in done.items()} == {
        "denoiser": 100,
        "vision_encoder": 100,
        "connector": 100,
    }
    assert len(done["denoiser"]) > 10


def interrupting(at: int) -> tuple[Progress, list[int]]:
    """A progress that presses Ctrl-C at so many percent of the first graph."""
    seen: list[int] = []
    main = threading.main_thread().ident
    assert main is not None

    def advance(percent: int) -> None:
        before = sum(seen)
        seen.append(percent)
        if before < at <= before + percent:
            signal.pthread_kill(main, signal.SIGINT)

    return Progress(lambda *_: None, advance), seen


@pytest.mark.usefixtures("rtx")
def test_interrupted_build_leaves_nothing(fp16_bundle: Path) -> None:
    progress, seen = interrupting(at=5)
    with pytest.raises(KeyboardInterrupt):
        build(fp16_bundle, "rtx-40", progress=progress)
    assert sum(seen) < 100
    assert not (fp16_bundle / "engines").exists()
    assert len(build(fp16_bundle, "rtx-40")) == 3


def test_interrupted_build_keeps_what_was_there(built_bundle: Path) -> None:
    before = contents(built_bundle)
    progress, _ = interrupting(at=5)
    with pytest.raises(KeyboardInterrupt):
        build(built_bundle, "rtx-40", progress=progress)
    assert contents(built_bundle) == before


@pytest.mark.usefixtures("rtx")
def test_killed_build_is_cleaned_up_by_the_next(fp16_bundle: Path) -> None:
    folder = fp16_bundle / "engines" / "rtx-40"
    folder.mkdir(parents=True)
    (folder / ".denoiser.plan.new").write_bytes(b"half")
    (folder / "denoiser.plan").write_bytes(b"a plan whose record was never written")
    assert read_records(fp16_bundle) == ()
    build(fp16_bundle, "rtx-40")
    assert not list(folder.glob(".*"))
    inspect(fp16_bundle, checksums=True)


@pytest.mark.usefixtures("rtx")
def test_two_builds_at_once(fp16_bundle: Path) -> None:
    with sole_writer(fp16_bundle / "engines" / "rtx-40"), pytest.raises(EngineError, match="another process"):
        build(fp16_bundle, "rtx-40")
    assert not (fp16_bundle / "engines").exists()


def test_without_streams(rtx: Any, fp16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT 10.3 builds."""
    monkeypatch.delattr(rtx.Builder, "build_serialized_network_to_stream")
    build(fp16_bundle, "rtx-40")
    inspect(fp16_bundle, checksums=True)


@pytest.mark.usefixtures("rtx")
@pytest.mark.filterwarnings("ignore:Timing cache:DeprecationWarning", "ignore::DeprecationWarning")
def test_timing_cache_is_kept_and_a_damaged_one_replaced(fp16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT builds; TensorRT-RTX has a timing cache that does nothing."""
    monkeypatch.setattr(lladav.engines.compile, "builds_ahead", lambda _: False)
    cache = fp16_bundle / "engines" / "rtx-40" / "timing.cache"
    build(fp16_bundle, "rtx-40")
    kept = cache.read_bytes()
    assert kept
    cache.write_bytes(b"no cache")
    build(fp16_bundle, "rtx-40")
    assert cache.read_bytes() == kept


@pytest.mark.usefixtures("rtx")
def test_full_disk_leaves_nothing(fp16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lladav.engines.plan_file.HashedStream.write", write)
    with pytest.raises(EngineError, match="No space left") as caught:
        build(fp16_bundle, "rtx-40")
    assert "free some space" in caught.value.cure
    assert not (fp16_bundle / "engines").exists()


@pytest.mark.usefixtures("rtx")
def test_unknown_node_is_named(fp16_bundle: Path) -> None:
    file = fp16_bundle / "denoiser.onnx"
    model = onnx.load(file, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.op_type, node.domain = "Mystery", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((fp16_bundle / MANIFEST_NAME).read_text("utf-8"))
    next(entry for entry in manifest["files"] if entry["path"] == file.name)["bytes"] = file.stat().st_size
    (fp16_bundle / MANIFEST_NAME).write_text(sealed(manifest), "utf-8")
    with pytest.raises(EngineError, match=f"node {re.escape(node.name)} \\(Mystery\\)") as caught:
        build(fp16_bundle, "rtx-40")
    assert "lladav export" in caught.value.cure
    assert not (fp16_bundle / "engines").exists()


def test_missing_library(fp16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match="tensorrt_rtx cannot be imported") as caught:
        build(fp16_bundle, "rtx-40")
    assert "pip install 'lladav[tensorrt-rtx]'" in caught.value.cure


def test_unknown_target(fp16_bundle: Path) -> None:
    with pytest.raises(OptionError, match="no target 'rtx-20'") as caught:
        build(fp16_bundle, "rtx-20")
    assert "orin-agx-64" in caught.value.cure


@pytest.mark.parametrize(
    ("has", "asked", "target", "said", "cure"),
    [
        ("fp32", None, "rtx-40", "takes fp16, bf16, int8, int4, fp8, not fp32", "--dtype fp16"),
        ("fp16", "bf16", "rtx-40", "is in fp16, and an engine of it cannot be in bf16", "--dtype bf16"),
        ("fp16", "fp8", "orin-agx-64", "takes fp16, bf16, int8, int4, not fp8", "--dtype fp16"),
        ("fp16", "int8", "orin-agx-64", "is in fp16, and an engine of it cannot be in int8", "--quantize w8"),
        ("fp16", "fp4", "thor", "does not write fp4", "--dtype fp16"),
    ],
)
def test_precision_that_does_not_fit(
    bundle_in: Callable[[Precision], Path],
    has: Precision,
    asked: EnginePrecision | None,
    target: str,
    said: str,
    cure: str,
) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        check_precision(Bundle.open(bundle_in(has)), load_target(target), asked)
    assert cure in caught.value.cure


def test_tensorrt_builds_for_the_gpu_that_it_runs_on() -> None:
    target = load_target("orin-agx-64")
    check_builder(TENSORRT, target, Here("tensorrt", "10.3.0", "Jetson AGX Orin", "8.7", "", 0, None))
    with pytest.raises(EngineError, match=r"has compute capability 8\.7, here is no GPU") as caught:
        check_builder(TENSORRT, target, NOWHERE)
    assert "copy the bundle" in caught.value.cure
    with pytest.raises(EngineError, match=r"here is NVIDIA H200 with 9\.0"):
        check_builder(TENSORRT, target, Here("tensorrt", "10.3.0", "NVIDIA H200", "9.0", "580.1", 13, None))


def test_library_that_is_too_old_or_too_new() -> None:
    old = SimpleNamespace(__name__="tensorrt", __version__="8.6.1")
    with pytest.raises(EngineError, match=r"from 10\.3 and before 12; 8\.6\.1 is installed") as caught:
        check_builder(old, load_target("h200"), NOWHERE)
    assert caught.value.cure == "pip install 'tensorrt>=10.3,<12'"
    new = SimpleNamespace(__name__="tensorrt", __version__="11.4.1")
    with pytest.raises(EngineError, match=r"from 10\.3 and before 11; 11\.4\.1 is installed") as caught:
        check_builder(new, load_target("orin-nx-16"), NOWHERE)
    assert "JetPack" in caught.value.cure


def test_gpu_that_the_library_does_not_know(rtx: Any) -> None:
    target = load_target("rtx-40").model_copy(update={"compute_capability": "9.0"})
    with pytest.raises(EngineError, match=r"builds for compute capabilities 7\.5, 8\.0, 8\.6, .* has 9\.0"):
        check_builder(rtx, target, NOWHERE)


@pytest.mark.usefixtures("rtx")
def test_too_little_memory_to_build(fp16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = Machine("", "", 1, (), Memory(1000, 10, 0, 0, 0), "", (), "", "", "")
    monkeypatch.setattr(lladav.engines.builder, "examine", lambda: poor)
    with pytest.raises(EngineError, match="GB of swap are free"):
        build(fp16_bundle, "rtx-40")
    assert not (fp16_bundle / "engines").exists()


def test_records_survive_writing(engines_in: Callable[[Precision], Path]) -> None:
    bundle = engines_in("fp16")
    for record in read_records(bundle):
        file = bundle / "engines" / record.target / f"{record.graph}.json"
        assert file.read_text("utf-8") == record.text()
        assert EngineRecord.read(file, bundle) == record


def test_staged_file_of_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be written"), staged_stream(tmp_path / "absent" / "file"):
        pass
