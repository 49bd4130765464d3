"""`lladav build` and `lladav plan` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lladav.cli.app import app
from lladav.engines import load_target
from lladav.export import ExportConfig, export
from lladav.records import Conversion, IntegerUse


@pytest.fixture(scope="module")
def half(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "bundle"
    return export(tiny_checkpoint, path, ExportConfig(dtype="fp16", verify=False, prompt_buckets=(64,))).path


def call(*arguments: str, expect: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == expect, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def test_build_says_what_it_made_and_inspect_shows_it(half: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    out, err = call("build", str(half), "--target", "rtx-40", "--precision", "fp16")
    assert "3 engines for rtx-40, " in out
    assert f"in fp16, built by tensorrt_rtx {rtx.__version__}, ahead of time" in out
    assert err.count("100 %") == 3
    out, _ = call("inspect", str(half), "--checksums")
    assert "and all 3 engines match their sha256" in out
    assert f"tensorrt_rtx {rtx.__version__} for compute capability 8.9" in out
    plan = half / "engines" / "rtx-40" / "connector.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    _, err = call("inspect", str(half), expect=1)
    assert f"lladav build {half} --target rtx-40" in err


def test_build_warns_of_what_integers_lose_and_inspect_shows_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    sizes: dict[str, Any] = {"prompt_buckets": (64,), "canvas_buckets": (8,), "tile_buckets": (1, 4)}
    config = ExportConfig(dtype="fp16", quantize="w8", verify=False, **sizes)
    bundle = str(export(tiny_checkpoint, tmp_path / "bundle", config).path)
    alone = Conversion(node="layers.0/mlp/int8", values=10**6, per_position=True)
    found = IntegerUse(weights=12, widened=("fc1.weight",), untold=3, conversions=(alone,))
    monkeypatch.setattr("lladav.engines.builder.integer_use", lambda *_: found)
    _, err = call("build", bundle, "--target", "rtx-40")
    assert "the engine of denoiser has weights in floats that the bundle has in integers: fc1.weight" in err
    assert "rounds or widens in layers of their own: layers.0/mlp/int8" in err
    assert "predicted for RTX 40 series; figures of the GeForce RTX 4090: refresh in" in err
    out, _ = call("inspect", bundle)
    assert "12 weights, 1 in floats, 3 not told, 1 converted by layers of their own" in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--target", "rtx-20"), 2, "there is no target 'rtx-20'"),
        (("--target", "rtx-40", "--precision", "int3"), 2, "--precision 'int3' is none"),
        (("--target", "rtx-40", "--precision", "bf16"), 1, "lladav export CHECKPOINT NEW_BUNDLE --dtype bf16"),
        (("--target", "orin-agx-64", "--precision", "fp8"), 1, "takes fp16, bf16, int8, int4, not fp8"),
        ((), 2, "--target"),
    ],
)
def test_build_refuses(half: Path, options: tuple[str, ...], code: int, said: str) -> None:
    assert said in call("build", str(half), *options, expect=code)[1]


def test_build_of_no_bundle(tmp_path: Path) -> None:
    assert "is no bundle" in call("build", str(tmp_path), "--target", "rtx-40", expect=1)[1]


def test_plan_prints_tables(half: Path) -> None:
    out, err = call("plan", str(half), "--target", "orin-nx-16")
    for part in (
        "Predicted, not measured",
        "Orin NX 16 GB",
        "refresh ms",
        "keys, values",
        "76% of 102.4 GB/s",
        "fits:",
    ):
        assert part in out
    assert err == ""


def test_plan_of_what_does_not_fit(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_target("thor").model_copy(update={"memory_gb": 1e-3})
    monkeypatch.setattr("lladav.engines.prediction.load_target", lambda _: small)
    out, _ = call("plan", str(half), "--target", "thor")
    assert "does not fit: 12.6 MB" in out
    assert "fits:" not in out


def test_plan_prints_json(half: Path) -> None:
    told = json.loads(call("plan", str(half), "--target", "h200", "--canvas", "16", "--batch", "2", "--json")[0])
    assert (told["predicted"], told["precision"], told["canvas"], told["batch"]) == (True, "fp16", 16, 2)
    assert told["target"]["compute_capability"] == "9.0"
    (row,) = told["rows"]
    assert row["prompt"] == 64
    assert row["fits"]
    assert row["total"] == sum(row["needs"].values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "fp8"), "--precision 'fp8' is not predicted"),
        (("--canvas", "15"), "15 is no canvas bucket"),
        (("--batch", "0"), "batch of 0"),
    ],
)
def test_plan_refuses(half: Path, options: tuple[str, ...], said: str) -> None:
    assert said in call("plan", str(half), "--target", "thor", *options, expect=2)[1]


def test_lines_that_reproduce_a_build_are_for_a_shell(half: Path) -> None:
    out, err = call("build", str(half), "--target", "orin-nx-16", "--reproduce")
    comments, commands = out.splitlines()[::2], out.splitlines()[1::2]
    assert not err
    assert all(line.startswith("# ") for line in comments)
    assert {line.split()[0] for line in commands} == {"polygraphy", "trtexec"}
    assert not (half / "engines" / "orin-nx-16").exists()
