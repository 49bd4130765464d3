"""`lladav calibrate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lladav.calib.questions import LEAST_PICTURES
from lladav.cli.app import app
from lladav.statistics import Statistics


def calibrate(*arguments: object, expect: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    assert result.exit_code == expect, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(LEAST_PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (50, 90, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def test_it_says_what_was_seen(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.npz"
    options = ("--limit", 1, "--gen-length", 8, "--steps", 4, "--refresh-interval", 2)
    out, err = calibrate(tiny_bundle, "--images", pictures, "--output", output, *options)
    assert f"{output}: linear layers: 29, questions: 1, pictures: 1" in out.replace("\n", "")
    assert "masks left" in out
    assert "vision_encoder: positions seen: 16 of base, " in out
    asked = Statistics.open(output).header.run.asked
    assert asked is not None
    assert (asked.gen_length, asked.steps, asked.refresh_interval) == (8, 4, 2)
    assert "100 %" in err
    warning = err[err.index("warning:") :].replace("\n", " ")
    assert "denoiser: nothing was seen of refresh, image, 75% masks" in warning
    assert "step, canvas, 75% masks" not in warning


def test_inputs_are_saved_and_run(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    questions = ("--images", pictures, "--limit", 1, "--gen-length", 8, "--steps", 2)
    calibrate(tiny_bundle, *questions, "--output", tmp_path / "a.npz", "--save-inputs", tmp_path / "inputs")
    crops, windows = tmp_path / "inputs" / "vision_encoder", tmp_path / "inputs" / "denoiser"
    out, err = calibrate(tiny_bundle, "--inputs", crops, "--inputs", windows, "--output", tmp_path / "b.npz")
    assert f"files: {len(list(crops.iterdir())) + 1}," in out
    assert "warning" not in err


def test_it_does_not_replace_what_is_there(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.npz"
    output.write_text("mine")
    _, err = calibrate(tiny_bundle, "--output", output, expect=1)
    assert "pass --force" in err
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hm\n")
    calibrate(tiny_bundle, "--output", output, "--prompts", prompts, "--gen-length", 4, "--force")
    assert Statistics.open(output).header.run.count == 1


def test_options_that_mean_nothing(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.npz"
    _, err = calibrate(tiny_bundle, "--output", output, "--inputs", "a.npz", "--images", pictures, expect=2)
    assert "--inputs takes the place" in err
    calibrate(tiny_bundle, "--output", output, "--limit", 0, expect=2)


def test_without_onnx_it_names_the_extra(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lladav.export.find_spec", lambda name: None if name == "onnx" else object())
    _, err = calibrate(tiny_bundle, "--output", tmp_path / "s.npz", expect=1)
    assert "onnx cannot be imported" in err
    assert "pip install 'lladav[export]'" in err
