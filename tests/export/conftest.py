"""Calibrations of the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lladav.calib import CalibrationConfig, calibrate
from lladav.calib.questions import LEAST_PICTURES

Calibrate = Callable[..., Path]


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrate:
    """Statistics of a bundle, of two questions with or without pictures."""
    shown = tmp_path_factory.mktemp("shown")
    for number in range(LEAST_PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (60, 90, 3), np.uint8)
        Image.fromarray(noise).save(shown / f"{number}.png")
    prompts = shown / "prompts.txt"
    prompts.write_text("What is this?\nWhere is it?\n", "utf-8")

    def statistics(bundle: Path, *, pictures: bool = True, steps: int = 4) -> Path:
        file = tmp_path_factory.mktemp("statistics") / "seen.npz"
        config = CalibrationConfig(gen_length=8, steps=steps, refresh_interval=2, limit=2)
        calibrate(bundle, file, images=shown if pictures else None, prompts=prompts, config=config)
        return file

    return statistics


@pytest.fixture(scope="session")
def seen(calibrated: Calibrate, tiny_bundle: Path) -> Path:
    """Statistics of the tiny model, of pictures and several shares of masks."""
    return calibrated(tiny_bundle)
