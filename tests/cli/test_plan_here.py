"""`lladav plan --target cpu`: predictions that are checked where they are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from machine_rates import even_rates
from typer.testing import CliRunner

from lladav.cli.app import app
from lladav.export import ExportConfig, export
from lladav.runtime.profiling import probe as probing
from lladav.runtime.profiling.probe import Probe


@pytest.fixture(scope="module")
def small(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two prompt buckets."""
    path = tmp_path_factory.mktemp("small") / "bundle"
    sizes = ExportConfig(dtype="fp32", prompt_buckets=(64, 128), canvas_buckets=(8, 16), verify=False)
    return export(tiny_checkpoint, path, sizes).path


@pytest.fixture(autouse=True)
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads of every probe, which takes no time here."""
    asked: list[int] = []

    def measure(threads: int) -> Probe:
        asked.append(threads)
        return even_rates(threads=threads)

    monkeypatch.setattr(probing, "measure_apart", measure)
    monkeypatch.setattr(probing.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return asked


def call(*arguments: str, expect: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "160"})
    assert result.exit_code == expect, result.output
    return result.stdout, result.stderr


def test_predictions_without_running_anything(small: Path, probes: list[int]) -> None:
    out, err = call(str(small), "--target", "cpu", "--threads", "1", "--canvas", "8")
    for part in (
        "a processor, threads 1, canvas 8, batch 1",
        "1.0 GB/s",
        "10 GFLOPS",
        "limit",
        "10, 10 GFLOPS for 1, 64 rows",
    ):
        assert part in out
    assert err == ""
    assert "%" not in out
    call(str(small), "--target", "cpu", "--threads", "1")
    assert probes == [1]
    call(str(small), "--target", "cpu", "--threads", "1", "--probe")
    assert probes == [1, 1]


def test_measured_passes_give_the_error(small: Path) -> None:
    told = json.loads(call(str(small), "--target", "cpu", "--threads", "1", "--canvas", "8", "--measure", "--json")[0])
    assert (told["target"], told["canvas"], told["batch"], told["probe"]["threads"]) == ("cpu", 8, 1, 1)
    assert [row["prompt"] for row in told["rows"]] == [64, 128]
    for row in told["rows"]:
        for one in (row["refresh"], row["step"]):
            assert one["measured_ms"] > 0
            assert one["error"] == pytest.approx(one["ms"] / one["measured_ms"] - 1)
            assert one["limit_ms"] < one["ms"]
    shown, _ = call(str(small), "--target", "cpu", "--threads", "1", "--canvas", "8", "--measure")
    assert shown.count("%") == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "cpu", "--precision", "int8"), "the CPU computes what the bundle holds"),
        (("--target", "cpu", "--canvas", "9"), "9 is no canvas bucket"),
        (("--target", "cpu", "--batch", "0"), "batch of 0"),
        (("--target", "cpu", "--threads", "0"), "0 threads"),
        (("--target", "cpu", "--threads", "100000"), "100,000 threads cannot work at once: this machine has"),
        (("--target", "thor", "--measure"), "are for this machine's CPU"),
        (("--target", "thor", "--threads", "2"), "are for this machine's CPU"),
    ],
)
def test_refuses(small: Path, probes: list[int], options: tuple[str, ...], said: str) -> None:
    assert said in call(str(small), *options, expect=2)[1]
    assert probes == []


def test_bfloat16_is_not_for_a_cpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = export(tiny_checkpoint, tmp_path / "bundle", ExportConfig(dtype="bf16", verify=False)).path
    assert "is for engines" in call(str(path), "--target", "cpu", expect=2)[1]
