"""The parts of the speed benchmark that decide what its figures mean."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cpu, mid_size
from benchmarks.speed_table import report
from lladav.bundle import Bundle
from lladav.export.checkpoint import Checkpoint
from lladav.export.coverage import check_coverage
from lladav.export.model_config import read_geometry

ANSWERS = {
    "exact, R=8": {
        "seconds": [2.0],
        "passes": 64.0,
        "refreshes": 8.0,
        "host_ms": {"refresh": 1.0, "step": 0.5},
        "host_share": {"refresh": 0.01, "step": 0.02},
        "authors_seconds": [50.0],
        "authors_passes": 64.0,
        "ratio": 25.0,
    }
}
RESULTS: dict[str, Any] = {
    "machine": {
        "processor": "X",
        "clock": "wall",
        "cores": 2,
        "load": 0.1,
        "load_after": 0.2,
        "torch": "2",
        "onnxruntime": "1",
    },
    "threads=1": {
        "passes": {
            "seconds": {"authors": [8.0], "refresh": [2.0], "step": [0.1]},
            "ratios": {"authors": 1.0, "refresh": 4.0, "step": 80.0},
        },
        "answers": ANSWERS,
        "lengths": {"seconds": {"1024": {"in place": [0.1], "joined": [0.2]}}, "bytes_per_position": 65_536},
        "demo": {"exact, R=8": ANSWERS["exact, R=8"] | {"same_as_authors": 9, "questions": 10}},
        "template": {"template": "{{4}}", "passes": 1.5, "host_ms": {"refresh": 0.4, "step": 0.3}},
    },
}


def test_ratio_is_the_median_of_pairs() -> None:
    assert cpu.ratio([10.0, 40.0, 90.0], [1.0, 2.0, 3.0]) == 20.0


def test_contestants_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("time.sleep", lambda _: None)
    times = cpu.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abababab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}


def test_page_says_what_was_reached_and_what_was_not() -> None:
    page = report(RESULTS)
    assert "| refresh | 2000.0 | 4.0 | 6: **missed** |" in page
    assert "| step | 100.0 | 80.0 | 40: reached |" in page
    assert "| exact, R=8 | 2 | 64.0 (8.0) | 25.0 | 0.50 | 2.0 % | 24: reached |" in page
    assert "| exact, R=8 | 2 | 64.0 (8.0) | 25.0 | 0.50 | 2.0 % | 9 of 10 |" in page
    assert "| 1,024 | 100.0 | 200.0 | 2.00 |" in page
    assert "`{{4}}`, which takes 1.5 passes, the host takes 0.40 ms of a refresh and 0.30 ms of a step" in page


def test_targets_are_for_one_thread() -> None:
    results = copy.deepcopy(RESULTS)
    results["threads=2"] = results.pop("threads=1")
    assert "reached" not in report(results)


def test_exporter_accepts_the_mid_size_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = mid_size.GEOMETRY.model_copy(
        update={"hidden_size": 16, "intermediate_size": 24, "layers": 2, "heads": 2, "kv_heads": 2, "head_size": 8}
    )
    monkeypatch.setattr(mid_size, "GEOMETRY", narrow)
    checkpoint = Checkpoint.open(mid_size.write_checkpoint(tmp_path / "mid"))
    geometry = read_geometry(checkpoint, narrow.vocab_rows)
    assert geometry.language == narrow
    assert geometry.vision is None
    check_coverage(checkpoint, geometry)


def test_a_step_in_the_graph_for_engines_runs(tiny_bundle: Path) -> None:
    """Against as many cached positions as asked, whatever inputs the graph has."""
    bundle = Bundle.open(tiny_bundle)
    step = cpu.JointStep(bundle, threads=1).bound(prompt=24, rows=3)
    step.run()
    logits = step.arrays["logits"]
    assert logits.shape == (1, 3, bundle.manifest.geometry.language.vocab_rows)
    assert np.isfinite(logits).all()
    assert logits.any()
    assert step.arrays["attention_bias"].shape[-1] == 24 + cpu.CANVAS
