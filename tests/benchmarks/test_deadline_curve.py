"""What the benchmark of deadlines counts and draws."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from benchmarks.deadline import Case, Point, at, draw
from lladav.errors import OptionError
from lladav.runtime import Pipeline

DEADLINE = 200.0


class Played:
    """Answers after so many milliseconds, the second number of which is a step's; None refuses."""

    def __init__(self, spent: list[tuple[float, float] | None]) -> None:
        self._spent = iter(spent)

    def generate(self, text: str, **_: Any) -> SimpleNamespace:
        answer = next(self._spent)
        if answer is None:
            raise OptionError("too short", cure="wait")
        spent, step = answer
        time.sleep(spent / 1e3)
        return SimpleNamespace(text=f" {text}", timings_ms={}, steps=[SimpleNamespace(ms=step)], forced_tokens=3)


def test_late_answers_are_counted_and_those_beyond_a_step() -> None:
    picture = Image.new("RGB", (4, 4))
    cases = [
        Case("style", "kind", word, word if word != "wrong" else "right", picture) for word in ("a", "wrong", "b", "c")
    ]
    found = at(cast("Pipeline", Played([(0, 1), (250, 1e6), None, (250, 1)])), cases, DEADLINE, "fast")
    assert (found.answers, found.refused, found.misses, found.beyond_a_step) == (3, 1, 2, 1)
    assert found.worst_ms >= 50
    assert found.right == pytest.approx(2 / 3)
    assert found.forced == 3


def test_curve_is_drawn_from_shares_of_enough_answers(tmp_path: Path) -> None:
    few = Point(10.0, 3, 97, 0, 0, 0.0, 9.0, 1.0, 0.0)
    none = Point(5.0, 0, 100, 0, 0, 0.0, None, None, None)
    many = [Point(ms, 100, 0, 0, 0, 0.0, 9.0, 0.4, 0.0) for ms in (20.0, 40.0)]
    draw({"idle": [none, few, *many], "beside a busy process": [none]}, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.width > 500
