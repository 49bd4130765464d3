"""The command `benchmarks.gpu`: what it runs on, what it makes, and what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_rig import Host

from benchmarks import make_full_size
from benchmarks.gpu import bundles, rtx_loads
from benchmarks.gpu.__main__ import CHECKS, main, parser, run
from benchmarks.gpu.finding import CannotRunError, Finding, Table, verdict, write
from benchmarks.gpu.rig import Rig, each_backend
from lladav.backends import Limits
from lladav.bundle import Bundle
from lladav.errors import BackendError, EngineError
from lladav.runtime.gpu.device import Device


def no_gpu() -> Device:
    raise BackendError("cuda-bindings cannot be imported", cure="pip install it")


def test_a_backend_that_does_not_load_leaves_its_reason(rig: Rig) -> None:
    def measure(name: str) -> str:
        if name == "broken":
            raise EngineError("it has no engines", cure="build some")
        return "fine"

    found, refused = each_backend(rig, measure)
    assert (found, list(refused)) == ({"host": "fine"}, ["broken"])
    assert "build some" in refused["broken"]
    with pytest.raises(CannotRunError, match="no backend works: broken: no; host: no"):
        each_backend(rig, lambda _: (_ for _ in ()).throw(CannotRunError("no")))


def test_memory_is_given_back(rig: Rig, bundle: Bundle) -> None:
    free = rig.device.memory()
    with rig.pipeline("host", bundle, Limits(prompt=64, canvas=16)):
        assert rig.device.memory() != free
    assert rig.device.memory() == free


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ("prepare", "authors")])
def test_without_a_gpu_every_check_says_so(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--output", str(tmp_path), "--work", str(tmp_path / "work")], Rig((), no_gpu, Host.load))
    facts = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    assert "cuda-bindings cannot be imported" in facts["skipped"]
    assert facts["versions"]["numpy"] == np.__version__
    page = (tmp_path / f"{name}.md").read_text("utf-8")
    assert "Not run: no GPU can be used" in page
    assert page in capsys.readouterr().out
    assert not (tmp_path / "work").exists(), "bundles were made for nothing"


def test_what_a_check_lacks_is_named(rig: Rig, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = parser().parse_args(["goldens", "--output", ".", "--shared", str(tmp_path), "--work", str(tmp_path)])
    assert "golden set is not in" in run("goldens", rig, options).skipped
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "finds no GPU" in run("authors", rig, options).skipped
    monkeypatch.setattr(rtx_loads, "load_library", lambda _: (_ for _ in ()).throw(EngineError("none", cure="pip")))
    with pytest.raises(CannotRunError, match="pip"):
        rtx_loads.rtx_loads(rig, bundle)
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    with pytest.raises(CannotRunError, match="GB, 1 are free"):
        bundles.full_size(tmp_path, 32)


def test_three_forms_take_room_for_three(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "full_size", lambda *_: bundle)
    total = make_full_size.total_bytes(make_full_size.real_geometry(1))
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3.9 * total}))
    with pytest.raises(CannotRunError, match="checkpoint and bundles take"):
        bundles.full_size_forms(tmp_path, 1)
    (tmp_path / "full-size-1-w8").mkdir()
    monkeypatch.setattr(make_full_size, "write_checkpoint", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        bundles.full_size_forms(tmp_path, 1)
    assert not (tmp_path / "checkpoint-1").exists()


def test_checks_behind_one_that_fails_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Finding:
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setitem(CHECKS, "prepare", fail)
    assert not main(["all", "--output", str(tmp_path), "--work", str(tmp_path / "work")], Rig((), no_gpu, Host.load))
    assert "nobody thought of it" in json.loads((tmp_path / "prepare.json").read_text("utf-8"))["failed"]
    assert "Failed:" in (tmp_path / "prepare.md").read_text("utf-8")
    assert (tmp_path / "soak.json").is_file()


@pytest.mark.parametrize("wrong", [["--prompts", "900,x"], ["--passes", "1"], ["--canvases", "0"], ["walk"]])
def test_arguments_that_mean_nothing(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["steps", "--output", "x", *wrong] if wrong[0] != "walk" else [*wrong, "--output", "x"])


def test_arguments() -> None:
    options = parser().parse_args(["all", "--output", "x", "--prompts", "900", "--cases", "a,b"])
    assert (options.prompts, options.canvases, options.cases) == ((900,), (32, 64, 128), ("a", "b"))


def test_pages_and_figures(tmp_path: Path) -> None:
    finding = Finding({"a": 1.5}, (Table("Title", ("x", "y"), (("1", "2"),)),))
    page = write("steps", finding, tmp_path / "new")
    assert page.startswith("# steps\n\n")
    assert page.endswith("Title:\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n")
    assert json.loads((tmp_path / "new" / "steps.json").read_text("utf-8"))["figures"] == {"a": 1.5}
    assert verdict(901.0, 900.0, ".0f") == "901, **missed**"


def test_every_form_is_made_of_one_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain = bundles._exported(tiny_checkpoint, tmp_path / "fp16")
    folders = {form: tmp_path / form for form in bundles.FORMS}
    bundles.export_forms(tiny_checkpoint, plain, folders)
    made = {form: Bundle.open(folder).manifest for form, folder in folders.items()}
    assert {form: found.quantization and found.quantization.form for form, found in made.items()} == {
        form: form for form in ("w8", "w4", "w8a8")
    }
    assert {found.checkpoint for found in made.values()} == {plain.manifest.checkpoint}
