"""Pictures and prompts for calibrations of the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lladav.calib.questions import LEAST_PICTURES


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of as many pictures as are needed, of several shapes, with a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(LEAST_PICTURES):
        noise = draw.integers(0, 256, (40 + 20 * number, 90, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "LICENSES.md").write_text("made here")
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("What is this?\n\n  the image and the user  \n")
    return file
