"""An engine that does not fit a machine is refused before it is loaded, without a GPU at hand."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unbuilt import engine_record

import lladav.engines.here
import lladav.engines.preflight
from lladav.bundle import Bundle
from lladav.engines import find_engines, read_records
from lladav.engines.here import Here, describe
from lladav.engines.needs import memory_needs
from lladav.engines.preflight import check_engines, needed_bytes, preflight
from lladav.errors import EngineError
from lladav.inspect import inspect
from lladav.linear_layers import Numbers
from lladav.machine import Gpu, Machine, Memory
from lladav.manifest import sealed

BUNDLE = Path("bundle")
RECORD = engine_record()
FITTING = Here("tensorrt_rtx", "1.7.1.116", "NVIDIA GeForce RTX 4090", "8.9", "580.95.05", 13, 20_000_000_000)


def refusal(here: Here, needed: int = 17_000_000_000) -> EngineError:
    with pytest.raises(EngineError) as caught:
        preflight(RECORD, here, needed, BUNDLE)
    assert caught.value.what.startswith(
        "bundle/engines/rtx-40/denoiser.plan was built by tensorrt_rtx 1.7.1.116 for rtx-40, compute capability 8.9; "
    )
    return caught.value


def test_machine_that_fits() -> None:
    preflight(RECORD, FITTING, 17_000_000_000, BUNDLE)
    preflight(RECORD, replace(FITTING, free_bytes=None, cuda=0, driver=""), 17_000_000_000, BUNDLE)


@pytest.mark.parametrize(
    ("change", "said", "cure"),
    [
        ({"library_version": "1.8.0.1"}, "here is tensorrt_rtx 1.8.0.1", "lladav build bundle --target rtx-40"),
        ({"library_version": ""}, "tensorrt_rtx is not installed here", "pip install 'lladav[tensorrt-rtx]'"),
        ({"gpu": "", "compute_capability": ""}, "here is no NVIDIA GPU with a driver", "a machine with the GPU"),
        (
            {"gpu": "NVIDIA GeForce RTX 3090", "compute_capability": "8.6"},
            "here is NVIDIA GeForce RTX 3090 with compute capability 8.6",
            "lladav build bundle --target rtx-30",
        ),
        (
            {"gpu": "Tesla V100", "compute_capability": "7.0"},
            "Tesla V100 with compute capability 7.0",
            "a machine with",
        ),
        ({"driver": "570.133.20"}, "the driver here is 570.133.20 and CUDA 13 needs 580", "upgrade the driver to 580"),
        (
            {"free_bytes": 16_000_000_000},
            "takes 17.00 GB of memory and 16.00 GB are free",
            "smaller --prompt-buckets and --canvas-buckets",
        ),
    ],
)
def test_machine_that_does_not(change: dict[str, Any], said: str, cure: str) -> None:
    error = refusal(replace(FITTING, **change))
    assert said in error.what
    assert cure in error.cure


def test_all_that_differs_is_said_at_once() -> None:
    error = refusal(replace(FITTING, library_version="1.6.0.1", compute_capability="12.0", free_bytes=0))
    assert error.what.count(";") == 3
    assert error.cure == "lladav build bundle --target rtx-40"


def test_older_cuda_needs_no_new_driver() -> None:
    preflight(RECORD, replace(FITTING, driver="535.104", cuda=12), 0, BUNDLE)


def machine(**parts: Any) -> Machine:
    whole = Machine("", "", 1, (), Memory(10, 6_000_000_000, 0, 0, 0), "", (), "", "", "")
    return replace(whole, **parts)


def test_a_card_is_described_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu("NVIDIA H200", "570.1", "143771 MiB", "9.0")
    monkeypatch.setattr(lladav.engines.here, "examine", lambda: machine(gpus=(card,)))
    monkeypatch.setattr(lladav.engines.here, "_free_bytes", lambda: 100)
    monkeypatch.setattr(lladav.engines.here, "_cuda", lambda _: 12)
    found = describe("tensorrt")
    assert (found.gpu, found.compute_capability, found.driver, found.cuda) == ("NVIDIA H200", "9.0", "570.1", 12)
    assert found.free_bytes == 100


def test_a_board_is_described_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    board = "NVIDIA Jetson AGX Orin Developer Kit"
    monkeypatch.setattr(lladav.engines.here, "examine", lambda: machine(board=board, l4t="36.4.3"))
    monkeypatch.setattr(lladav.engines.here, "_free_bytes", lambda: None)
    found = describe("tensorrt")
    assert (found.gpu, found.compute_capability, found.free_bytes) == (board, "8.7", 6_000_000_000)


def test_machine_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lladav.engines.here, "examine", machine)
    monkeypatch.setattr(lladav.engines.here, "_free_bytes", lambda: None)
    found = describe("tensorrt")
    assert (found.gpu, found.compute_capability, found.driver, found.free_bytes) == ("", "", "", None)


@pytest.fixture
def built_bundle(fp16_bundle: Path) -> Path:
    """A bundle with records of engines for two targets; the plans hold nothing that could run."""
    manifest = Bundle.open(fp16_bundle).manifest
    for target, capability in (("rtx-30", "8.6"), ("rtx-40", "8.9")):
        folder = fp16_bundle / "engines" / target
        folder.mkdir(parents=True)
        for graph in ("connector", "denoiser", "vision_encoder"):
            plan = random.Random(graph).randbytes(5000)
            (folder / f"{graph}.plan").write_bytes(plan)
            record = engine_record(graph, target, plan, compute_capability=capability, bundle=manifest.sha256)
            (folder / f"{graph}.json").write_text(record.text(), "utf-8")
    return fp16_bundle


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the GPU and the library that the engines were built for."""
    monkeypatch.setattr(lladav.engines.preflight, "describe", lambda _: FITTING)


@pytest.mark.usefixtures("at_home")
def test_engines_at_home(built_bundle: Path) -> None:
    records = check_engines(Bundle.open(built_bundle), "rtx-40", 128, 32)
    assert {record.graph for record in records} == {"denoiser", "vision_encoder", "connector"}


def test_memory_is_that_of_the_plans_and_what_the_library_asked_for(built_bundle: Path) -> None:
    records = read_records(built_bundle, "rtx-40")
    bundle = Bundle.open(built_bundle)
    needs = memory_needs(bundle.manifest, 128, 32, batch=2, numbers=Numbers("fp16"))
    buffers = needs.prompt_kv + needs.logits + needs.buffers
    assert needed_bytes(bundle, records, 128, 32, 2) == 3 * 5000 + buffers + needs.activations
    asked = tuple(record.model_copy(update={"activations": (7, 9)}) for record in records)
    assert needed_bytes(bundle, asked, 128, 32, 2) == 3 * 5000 + buffers + 9


@pytest.mark.usefixtures("at_home")
def test_engines_for_another_card(built_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"for rtx-30, compute capability 8\.6; here is .* 8\.9") as caught:
        check_engines(Bundle.open(built_bundle), "rtx-30", 128, 32)
    assert caught.value.cure.endswith("--target l4 or lladav build " + f"{built_bundle} --target rtx-40")


@pytest.mark.usefixtures("at_home")
def test_engines_of_this_machine_are_found(built_bundle: Path) -> None:
    assert find_engines(Bundle.open(built_bundle), "tensorrt_rtx") == "rtx-40"


def test_engines_built_on_this_gpu_are_preferred(built_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, device in (("rtx-30", "NVIDIA H100"), ("rtx-40", "NVIDIA H200")):
        for path in (built_bundle / "engines" / target).glob("*.json"):
            record = json.loads(path.read_text("utf-8"))
            path.write_text(sealed({**record, "compute_capability": "9.0", "device": device}), "utf-8")
    for gpu, target in (("NVIDIA H200", "rtx-40"), ("NVIDIA H100", "rtx-30"), ("NVIDIA GH200", "rtx-30")):
        here = replace(FITTING, gpu=gpu, compute_capability="9.0")
        monkeypatch.setattr(lladav.engines.preflight, "describe", lambda _, here=here: here)
        assert find_engines(Bundle.open(built_bundle), "tensorrt_rtx") == target


@pytest.mark.parametrize(
    ("change", "library", "said", "cure"),
    [
        ({"compute_capability": "12.0"}, "tensorrt_rtx", "for NVIDIA GeForce RTX 4090 with .* 12.0", "--target rtx-50"),
        (
            {"gpu": "", "compute_capability": ""},
            "tensorrt_rtx",
            "for no NVIDIA GPU; it has rtx-30 .8.6., rtx-40",
            "other",
        ),
        ({}, "tensorrt", "no engines of tensorrt .* it has none at all", "--target l4"),
    ],
)
def test_engines_of_another_machine_are_not(
    built_bundle: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], library: Any, said: str, cure: str
) -> None:
    monkeypatch.setattr(lladav.engines.preflight, "describe", lambda _: replace(FITTING, **change))
    with pytest.raises(EngineError, match=said) as caught:
        find_engines(Bundle.open(built_bundle), library)
    assert cure in caught.value.cure


@pytest.mark.usefixtures("at_home")
def test_engines_that_were_never_built(built_bundle: Path) -> None:
    with pytest.raises(EngineError, match="has no engines for thor") as caught:
        check_engines(Bundle.open(built_bundle), "thor", 128, 32)
    assert caught.value.cure == f"lladav build {built_bundle} --target thor"


@pytest.mark.usefixtures("at_home")
def test_engines_of_some_graphs_alone(built_bundle: Path) -> None:
    for graph in ("connector", "denoiser"):
        (built_bundle / "engines" / "rtx-40" / f"{graph}.json").unlink()
    with pytest.raises(EngineError, match="has no engine of connector, denoiser for rtx-40") as caught:
        check_engines(Bundle.open(built_bundle), "rtx-40", 128, 32)
    assert caught.value.cure == f"lladav build {built_bundle} --target rtx-40"


@pytest.mark.usefixtures("at_home")
def test_engines_of_another_export(built_bundle: Path) -> None:
    edit_record(built_bundle, lambda record: record.update(bundle="1" * 64))
    with pytest.raises(EngineError, match="built from another export"):
        check_engines(Bundle.open(built_bundle), "rtx-40", 128, 32)


def edit_record(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "engines" / "rtx-40" / "denoiser.json"
    values = json.loads(path.read_text("utf-8"))
    edit(values)
    path.write_text(sealed(values), "utf-8")


def test_truncated_plan(built_bundle: Path) -> None:
    plan = built_bundle / "engines" / "rtx-40" / "denoiser.plan"
    size = plan.stat().st_size
    os.truncate(plan, size - 1)
    with pytest.raises(EngineError, match=f"has {size - 1:,} bytes instead of {size:,}") as caught:
        read_records(built_bundle)
    assert caught.value.cure == f"lladav build {built_bundle} --target rtx-40"
    plan.unlink()
    with pytest.raises(EngineError, match="is missing"):
        read_records(built_bundle)


def test_altered_plan_is_found_by_its_checksum(built_bundle: Path) -> None:
    plan = built_bundle / "engines" / "rtx-40" / "denoiser.plan"
    contents = bytearray(plan.read_bytes())
    contents[1000] ^= 1
    plan.write_bytes(contents)
    inspect(built_bundle)
    with pytest.raises(EngineError, match="differ from the record's sha256"):
        inspect(built_bundle, checksums=True)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r: r.update(novelty=1), "novelty: Extra inputs"),
        (lambda r: r.pop("library"), "library: Field required"),
        (lambda r: r["plan"].update(path="../../etc/passwd"), r"is the record of \.\./\.\./etc/passwd"),
        (lambda r: r["plan"].update(path="engines/rtx-30/denoiser.plan"), "not of the plan beside it"),
    ],
)
def test_record_that_is_wrong(built_bundle: Path, edit: Callable[[dict[str, Any]], object], said: str) -> None:
    edit_record(built_bundle, edit)
    with pytest.raises(EngineError, match=said):
        read_records(built_bundle)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"{}"])
def test_record_that_is_none(built_bundle: Path, text: bytes) -> None:
    (built_bundle / "engines" / "rtx-40" / "denoiser.json").write_bytes(text)
    with pytest.raises(EngineError, match="is damaged"):
        read_records(built_bundle)


def test_record_edited_by_hand(built_bundle: Path) -> None:
    path = built_bundle / "engines" / "rtx-40" / "denoiser.json"
    path.write_text(path.read_text("utf-8").replace('"8.9"', '"8.6"'), "utf-8")
    with pytest.raises(EngineError, match="do not match the sha256 in it"):
        read_records(built_bundle)
