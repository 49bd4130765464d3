"""Listens to one answer: when each span began and ended, and how long the thread waited for a core."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, time

from lladav.runtime.results import Answer, StepEvent
from lladav.runtime.tracing import Tracer, traced

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_OF_STEPS = ("refresh", "step", "sampling", "commit", "launch", "wait")


@dataclass(frozen=True)
class Span:
    """Seconds on the clock of `time.perf_counter`.

    Attributes:
        queued_ms: of the time, that the thread was ready and had no core; None where the system does not tell.
    """

    name: str
    began: float
    ended: float
    queued_ms: float | None

    @property
    def ms(self) -> float:
        return (self.ended - self.began) * 1e3


class Recorder:
    """A `Tracer` that keeps what it hears, in the order in which spans end; close it in the thread that made it.

    Args:
        other: hears the same.
    """

    def __init__(self, other: Tracer | None = None) -> None:
        self.spans: list[Span] = []
        self._other = other
        self._queue = _RunQueue()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See `Tracer`."""
        queued, began = self._queue.ms(), perf_counter()
        try:
            with self._other.span(name) if self._other else nullcontext():
                yield
        finally:
            ended, later = perf_counter(), self._queue.ms()
            waited = later - queued if later is not None and queued is not None else None
            self.spans.append(Span(name, began, ended, waited))

    def take(self) -> tuple[Span, ...]:
        """What has ended since the last time."""
        spans = tuple(self.spans)
        self.spans.clear()
        return spans

    def close(self) -> None:
        self._queue.close()


def queued(spans: Iterable[Span], name: str) -> float:
    """Milliseconds without a core in the spans of that name, as far as the system tells."""
    return sum(span.queued_ms or 0.0 for span in spans if span.name == name)


@dataclass(frozen=True)
class RecordedStep:
    """A step with the spans inside it.

    Attributes:
        began: in seconds on the clock of `time.perf_counter`, as `ended`; by the time that the step says it
            took, but never before what was done before it, nor after its own first span.
    """

    event: StepEvent
    began: float
    ended: float
    spans: tuple[Span, ...]

    def spent(self, name: str) -> float:
        """Milliseconds in the spans of that name."""
        return sum(span.ms for span in self.spans if span.name == name)

    @property
    def waiting_ms(self) -> float | None:
        """Of the host: for the GPU, or for a core; None where the system does not tell."""
        if any(span.name == "wait" for span in self.spans):
            return self.spent("wait")
        queued = [span.queued_ms for span in self.spans]
        return sum(ms for ms in queued if ms is not None) if None not in queued else None


@dataclass(frozen=True)
class Recording:
    """One answer.

    Attributes:
        wall: when it began, in seconds since 1970.
        spans: outside the steps, such as the stages before and after them.
    """

    answer: Answer
    wall: float
    began: float
    ended: float
    spans: tuple[Span, ...]
    steps: tuple[RecordedStep, ...] = field(repr=False)

    @property
    def ms(self) -> float:
        return (self.ended - self.began) * 1e3

    @property
    def first_token_ms(self) -> float:
        """To the end of the first step that committed something; all of it where none did."""
        ended = next((step.ended for step in self.steps if step.event.positions), self.ended)
        return (ended - self.began) * 1e3


def record(events: Iterator[StepEvent | Answer], other: Tracer | None = None) -> Recording:
    """Runs a stream to its end, listening.

    Args:
        events: a stream that has not begun, see `Pipeline.stream`.
        other: listens too.
    """
    steps: list[RecordedStep] = []
    outside: list[Span] = []
    wall, began = time(), perf_counter()
    free = began
    with closing(Recorder(other)) as recorder, traced(recorder):
        for event in events:
            left, spans = perf_counter(), recorder.take()
            own = tuple(span for span in spans if span.name in _OF_STEPS)
            others = tuple(span for span in spans if span.name not in _OF_STEPS)
            outside += others
            if isinstance(event, Answer):
                return Recording(event, wall, began, left, tuple(outside), tuple(steps))
            free = max((free, *(span.ended for span in others)))
            ended = own[-1].ended if own else left
            starts = min((ended - event.ms / 1e3, *(span.began for span in own)))
            steps.append(RecordedStep(event, max(free, starts), ended, own))
            free = ended
    raise AssertionError("a stream ends with its answer")


class _RunQueue:
    """How long this thread has been ready without a core, from Linux's schedstat."""

    def __init__(self) -> None:
        try:
            self._file = os.open(_SCHEDSTAT, os.O_RDONLY)
        except OSError:
            self._file = -1

    def ms(self) -> float | None:
        """Since the thread began; None where the system does not tell."""
        if self._file < 0:
            return None
        return int(os.pread(self._file, 64, 0).split()[1]) / 1e6

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
