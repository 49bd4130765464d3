"""Calibrations that are refused, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Tensors, without_pictures, write_tiny_checkpoint

from lladav.calib import CalibrationConfig, calibrate
from lladav.calib.questions import LEAST_PICTURES, find_pictures
from lladav.errors import BundleError, CalibrationError, ImageError, OptionError, PromptError
from lladav.export import ExportConfig, export
from lladav.statistics import Statistics

SHORT = CalibrationConfig(gen_length=8, steps=4, refresh_interval=2, limit=2)
"""Two questions of four passes."""


@pytest.fixture
def refused(tiny_bundle: Path, tmp_path: Path) -> Callable[..., None]:
    """Calibrates with arguments that must be refused, and looks that nothing was written."""
    folder = tmp_path / "out"
    folder.mkdir()

    def refuse(error: type[Exception], match: str, **arguments: Any) -> None:
        given = {"bundle": tiny_bundle, "output": folder / "s.npz", "config": SHORT, **arguments}
        with pytest.raises(error, match=match):
            calibrate(**given)
        assert not any(folder.iterdir())

    return refuse


def test_too_few_pictures(refused: Callable[..., None], pictures: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    refused(CalibrationError, f"holds 0 pictures; a calibration needs at least {LEAST_PICTURES}", images=few)
    refused(CalibrationError, "is not a folder", images=pictures / "0.png")


def test_a_picture_that_cannot_be_read(refused: Callable[..., None], pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in find_pictures(pictures):
        (folder / picture.name).write_bytes(picture.read_bytes())
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:500])
    refused(ImageError, r"3\.png", images=folder, config=CalibrationConfig(gen_length=8))


@pytest.mark.parametrize(
    ("contents", "said"), [(b"", "holds no prompt"), (b" \n\n", "holds no prompt"), (b"\xff", "cannot be read")]
)
def test_prompts_that_say_nothing(refused: Callable[..., None], tmp_path: Path, contents: bytes, said: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(contents)
    refused(CalibrationError, said, prompts=file)
    refused(CalibrationError, "cannot be read", prompts=tmp_path / "none.txt")


def test_prompts_with_masks_of_their_own(refused: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("What is <|mdm_mask|>?")
    refused(PromptError, "holds the mask token", prompts=file)


def test_outputs_that_are_refused(
    refused: Callable[..., None],
    tiny_bundle: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused(CalibrationError, r"does not end in \.npz", output=tmp_path / "s.json")
    refused(CalibrationError, "is not a folder", output=tmp_path / "none" / "s.npz")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)  # root may write anywhere
        refused(CalibrationError, "may not be written to", output=tmp_path / "s.npz")
    there = tmp_path / "there.npz"
    there.write_text("mine")
    refused(CalibrationError, "exists already", output=there)
    assert there.read_text() == "mine"
    calibrate(tiny_bundle, there, prompts=prompts, config=SHORT, force=True)
    assert Statistics.open(there).header.done == 2


def test_inputs_beside_questions(refused: Callable[..., None], pictures: Path) -> None:
    refused(OptionError, "--inputs takes the place of questions", images=pictures, inputs=["a.npz"])


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (0.0, r"input of model\.layers\.0\.mlp\.down_proj is 0 at all"),
        (1e30, r"input of model\.layers\.0\.mlp\.down_proj is not a finite number"),
    ],
)
def test_a_model_that_computes_constants_or_no_numbers(
    refused: Callable[..., None], prompts: Path, tmp_path: Path, factor: float, said: str
) -> None:
    def edit(tensors: Tensors, _: object) -> None:
        for part in ("gate", "up"):
            tensors[f"model.layers.0.mlp.{part}_proj.weight"][:] *= factor

    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", edit=edit)
    bundle = export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp32", verify=False)).path
    refused(CalibrationError, said, bundle=bundle, prompts=prompts)


def test_pictures_for_a_model_of_text_alone(refused: Callable[..., None], pictures: Path, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "text", edit=without_pictures)
    bundle = export(checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp32", verify=False)).path
    refused(BundleError, "text-only", bundle=bundle, images=pictures)


def test_a_bundle_that_is_quantised(refused: Callable[..., None], tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = ExportConfig(dtype="fp32", quantize="w8", verify=False)
    bundle = export(tiny_checkpoint, tmp_path / "bundle", config).path
    refused(CalibrationError, "is quantised to w8 already", bundle=bundle)


def test_a_folder_that_is_no_bundle(refused: Callable[..., None], tmp_path: Path) -> None:
    refused(BundleError, "holds no", bundle=tmp_path)
