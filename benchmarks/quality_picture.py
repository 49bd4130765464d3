"""Right answers of every preset against the time that an answer takes, as a picture for these pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lladav.runtime.profiling.figures import PARTS, drawing

PRESET = "preset "


def draw(figures: Mapping[str, Mapping[str, Any]], asked: int, file: Path) -> None:
    """A point per preset, with the standard error of its share.

    Args:
        figures: what `benchmarks/quality.py` measured, by setting.
        asked: questions of each.
        file: PNG.
    """
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.subplots()
        presets = {name.removeprefix(PRESET): own for name, own in figures.items() if name.startswith(PRESET)}
        errors = {name: math.sqrt(own["right"] * (1 - own["right"]) / asked) for name, own in presets.items()}
        for name, own in presets.items():
            place, error = (own["answer_ms"], 100 * own["right"]), 100 * errors[name]
            axes.errorbar(*place, yerr=error, fmt="o", color=PARTS["graph"], markersize=6, elinewidth=1.6)
        ordered = sorted(presets, key=lambda name: float(presets[name]["answer_ms"]))
        for number, name in enumerate(ordered):
            # Neighbours may lie close together, so their names take turns below and above.
            above = number % 2
            own, error = presets[name], errors[name]
            place = own["answer_ms"], 100 * (own["right"] + error if above else own["right"] - error)
            way: dict[str, Any] = {"xytext": (0, 5), "va": "bottom"} if above else {"xytext": (0, -5), "va": "top"}
            axes.annotate(name, place, textcoords="offset points", ha="center", fontsize=11, **way)
        axes.set_xlim(0, 1.15 * max(own["answer_ms"] for own in presets.values()))
        axes.set_ylim(0, 115 * max(own["right"] for own in presets.values()))
        axes.set_xlabel("ms per answer, picture included")
        axes.set_ylabel("right answers, %")
        axes.grid(axis="y")
        figure.savefig(file, dpi=150, transparent=False, facecolor="white")
