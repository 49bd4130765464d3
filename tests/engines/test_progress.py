"""Nested phases become one number that only grows."""

from __future__ import annotations

from lladav.engines.progress import Phases


def test_a_phase_fills_a_step_of_its_parent() -> None:
    told: list[int] = []
    phases = Phases(told.append)
    phases.start("build", None, 4)
    phases.step("build", 0)
    assert sum(told) == 25
    phases.start("optimise", "build", 2)
    phases.start("measure", "optimise", 5)
    phases.step("measure", 0)
    assert sum(told) == 25 + 2  # 25 / 2 / 5, rounded down
    phases.finish("measure")
    phases.step("optimise", 0)
    assert sum(told) == 25 + 12
    phases.finish("optimise")
    phases.step("build", 1)
    assert sum(told) == 50
    phases.complete()
    assert sum(told) == 100
    assert min(told) > 0


def test_phases_that_were_never_announced_or_have_no_steps() -> None:
    told: list[int] = []
    phases = Phases(told.append)
    phases.step("unknown", 3)
    phases.finish("unknown")
    phases.start("empty", None, 0)
    phases.step("empty", 0)
    phases.step("empty", 1)
    assert sum(told) == 100
