"""How far a builder is, from the nested phases that it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

PERCENT = 100


class Progress(NamedTuple):
    """Called with a stage's name and its size in percent, then with the percent done since the last call."""

    start: Callable[[str, int], None] = lambda _stage, _total: None
    advance: Callable[[int], None] = lambda _percent: None


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Makes one number of nested phases: a phase inside another fills one step of it.

    Args:
        advance: called with the percent done since the last call; never with less than nothing,
            although a builder begins phases that it did not announce.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._open: dict[str, _Phase] = {}
        self._told = 0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._open[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Step `step`, counted from 0, is done."""
        if name in self._open:
            self._open[name].done = step + 1
        self._tell()

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    def complete(self) -> None:
        """All is done, whatever was announced."""
        self._open = {"": _Phase(None, 1, 1)}
        self._tell()

    def _tell(self) -> None:
        share = max((self._share(name) for name, phase in self._open.items() if phase.parent is None), default=0.0)
        percent = int(share * PERCENT)
        if percent > self._told:
            self._advance(percent - self._told)
            self._told = percent

    def _share(self, name: str) -> float:
        phase = self._open[name]
        inside = max((self._share(other) for other, p in self._open.items() if p.parent == name), default=0.0)
        return min((phase.done + inside) / phase.steps, 1.0)
