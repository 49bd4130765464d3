"""The speed benchmark's own passes, which nothing else runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lladav.bundle import Bundle

pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[dev]'")

from benchmarks.cpu import CANVAS, JointStep


def test_a_step_in_the_graph_for_engines_runs(tiny_bundle: Path) -> None:
    """Against as many cached positions as asked, whatever inputs the graph has."""
    bundle = Bundle.open(tiny_bundle)
    step = JointStep(bundle, threads=1).bound(prompt=24, rows=3)
    step.run()
    logits = step.arrays["logits"]
    assert logits.shape == (1, 3, bundle.manifest.geometry.language.vocab_rows)
    assert np.isfinite(logits).all()
    assert logits.any()
    assert step.arrays["attention_bias"].shape[-1] == 24 + CANVAS
