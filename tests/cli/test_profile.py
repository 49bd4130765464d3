"""`lladav profile` as it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from machine_rates import even_rates
from typer.testing import CliRunner

from lladav.cli.app import app


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine's rates take ten seconds to measure."""
    found = even_rates()
    monkeypatch.setattr("lladav.runtime.profiling.probe.probe", lambda *_, **__: found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def call(*arguments: str, expect: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ("profile", *arguments))
    assert result.exit_code == expect, result.stderr
    return result.stdout, result.stderr


def profiled(bundle: Path, output: Path, *more: str) -> str:
    quick = ("--gen-length", "8", "--threads", "1", "--runs", "3", "--warmup", "1", "--no-layers")
    return call(str(bundle), *quick, "--output", str(output), *more)[0]


def test_tables_and_files(tiny_bundle: Path, tmp_path: Path) -> None:
    out = profiled(tiny_bundle, tmp_path / "a")
    for word in ("answer", "sampling", "masks left", "peak of an answer", "bound by", "missed frames"):
        assert word in out
    assert (tmp_path / "a" / "report.html").exists()
    written = json.loads((tmp_path / "a" / "profile.json").read_text())
    assert written["workload"]["synthetic"]
    assert len(written["runs"]) == 3
    assert written["memory"]["total"] > 0


def test_a_missing_matplotlib_is_said(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lladav.runtime.profiling.output.can_draw", lambda: False)
    quick = ("--threads", "1", "--gen-length", "4", "--runs", "1", "--no-layers")
    error = call(str(tiny_bundle), *quick, "--output", str(tmp_path / "a"))[1]
    assert "pip install 'lladav[report]'" in error
    assert not (tmp_path / "a" / "report.html").exists()


def test_a_question_of_ones_own(tiny_bundle: Path, tmp_path: Path) -> None:
    profiled(tiny_bundle, tmp_path / "a", "--prompt", "the image", "--deadline-ms", "10000", "--fps", "1000")
    written = json.loads((tmp_path / "a" / "profile.json").read_text())
    assert not written["workload"]["synthetic"]
    assert written["workload"]["crops"] == 0
    assert written["frames"]["# of Missed Deadlines"] == 0
    assert written["frames"]["# of Frames Sent"] > 3


def test_profiles_that_exist_are_compared_and_drawn(tiny_bundle: Path, tmp_path: Path) -> None:
    profiled(tiny_bundle, tmp_path / "a")
    file, page, other = (tmp_path / "a" / name for name in ("profile.json", "report.html", "other.json"))
    page.unlink()
    call("--report", str(file))
    assert page.exists()
    out, _ = call("--compare", str(file), str(file))
    assert "ratio" in out
    assert "do not differ by more than noise" in out
    raw = json.loads(file.read_text())
    raw["workload"]["gen_length"] = 64
    other.write_text(json.dumps(raw))
    assert "different workloads: gen_length 8 against 64" in call("--compare", str(file), str(other), expect=1)[1]


def test_an_output_that_exists_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    error = call(str(tmp_path / "no-bundle"), "--output", str(tmp_path / "a"), expect=1)[1]
    assert "exists already" in error
    assert "--force" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "exactly one of a bundle"),
        (("bundle", "--report", "p.json"), "exactly one of a bundle"),
        (("bundle", "--runs", "0"), "0 runs measure nothing"),
        (("bundle", "--synthetic", "--prompt", "x"), "contradict"),
        (("bundle", "--image", "x.png"), "asks nothing"),
        (("bundle", "--fps", "0"), "camera"),
        (("bundle", "--fps", "1e-9"), "no camera of 1e-09 frames a second"),
        (("bundle", "--fps", "inf"), "no camera of inf"),
        (("bundle", "--fps", "nan"), "no camera of nan"),
        (("bundle", "--threads", "100000"), "100,000 threads cannot work at once: this machine has"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...], said: str) -> None:
    assert said in call(*arguments, expect=2)[1]


def test_a_profile_without_answers_is_none(tiny_bundle: Path, tmp_path: Path) -> None:
    profiled(tiny_bundle, tmp_path / "a")
    file = tmp_path / "a" / "profile.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"runs": []}))
    assert "runs: " in call("--compare", str(file), str(file), expect=1)[1]


def test_profiles_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{"schema_version": 1, "runs": [')
    assert "cannot be read as a profile" in call("--compare", str(file), str(file), expect=1)[1]
    assert "cannot be read as a profile" in call("--report", str(file), expect=1)[1]
