"""Milliseconds per stage of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

from lladav.runtime.tracing import span


class Clock:
    """Milliseconds per stage, in the order in which stages first happen."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.add({name: (perf_counter() - began) * 1e3})

    def add(self, spent: Mapping[str, float]) -> None:
        for name, ms in spent.items():
            self.spent[name] = self.spent.get(name, 0.0) + ms
