"""Calibration of random models, for which no question means anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lladav.bundle import Bundle
from lladav.calib import calibrate
from lladav.calib.passes import refresh_inputs

_POSITIONS = 64
"""Of the prompt, and of the canvas."""


def calibrate_on_noise(bundle: Bundle, file: Path) -> None:
    """Writes statistics of a refresh over rows as large as embeddings are, for forms of integers that need some."""
    shape = (2, _POSITIONS, bundle.manifest.geometry.language.hidden_size)
    prompt, canvas = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    inputs = file.with_suffix(".inputs.npz")
    np.savez(inputs, **refresh_inputs(bundle.manifest, prompt, canvas, np.arange(_POSITIONS)))
    calibrate(bundle.path, file, inputs=[inputs], force=True)
