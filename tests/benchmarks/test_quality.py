"""What the benchmark of presets writes of what it measured."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.quality import Measured, gates, table
from benchmarks.quality_picture import draw

EXACT = Measured(
    **{"right": 0.5, "by_type": {"name": 0.5}, "nfe": 4.0, "refreshes": 4.0, "tokens_per_pass": 0.6, "ms": 80.0},
    **{"answer_ms": 100.0, "arr": 0.0, "srr": 0.0, "seq_rep": (0.0, 0.0, 0.0), "image_tokens": 160.0},
)
RESULTS = {
    "preset exact": EXACT,
    "preset quality": replace(EXACT, right=0.498, answer_ms=40.0),
    "preset balanced": replace(EXACT, right=0.48, answer_ms=30.0),
}


def test_every_row_has_a_cell_for_every_column() -> None:
    head, line, *rows = table(RESULTS).splitlines()
    assert len(rows) == len(RESULTS)
    assert {text.count("|") for text in (head, line)} == {row.count("|") for row in rows}
    assert "| -2.0 |" in rows[2]


def test_gates_are_kept_or_broken() -> None:
    assert [line.rpartition(": ")[2] for line in gates(RESULTS)] == ["kept.", "**broken**."]


def test_the_picture_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw({name: asdict(measured) for name, measured in RESULTS.items()}, 1200, tmp_path / "quality.png")
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 2
