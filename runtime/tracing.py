"""Named spans of what an answer does, for whoever listens; nobody does unless asked.

Where nobody listens a span costs the look at one context variable, so it may stand in the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol


class Tracer(Protocol):
    """Listens to the spans of one thread."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """Is entered when something begins and left when it ends; spans nest."""


_LISTENING: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
_NOBODY: AbstractContextManager[None] = nullcontext()


def span(name: str) -> AbstractContextManager[object]:
    """What is done in this block, under a name."""
    tracer = _LISTENING.get()
    return _NOBODY if tracer is None else tracer.span(name)


@contextmanager
def traced(tracer: Tracer) -> Iterator[None]:
    """Lets a tracer listen to this thread while the block runs."""
    token = _LISTENING.set(tracer)
    try:
        yield
    finally:
        _LISTENING.reset(token)
