"""One or several answers as a Chrome trace, for Perfetto and chrome://tracing.

Format: complete events (`ph` X) in microseconds, and metadata events that name the lanes ("Trace Event
Format", Google, 2016). Times are whole microseconds, beginnings and ends rounded alike, and what is around others
comes first: Perfetto drops an event that ends by a rounding later than the one around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lladav.runtime.profiling.recorder import Recording, Span

LANES = ("host", "vision", "refresh", "step", "sampling", "commit")

_LANE_OF = {"vision_encoder": "vision", "connector": "vision"} | {name: name for name in LANES}
_PROCESS = 1


def chrome_trace(recordings: Sequence[Recording]) -> dict[str, Any]:
    """The object that `trace.json` holds; time 0 is the beginning of the first answer."""
    named: list[dict[str, Any]] = [_name("process_name", 0, "lladav")]
    for lane in LANES:
        named.append(_name("thread_name", LANES.index(lane), lane))
        named.append({**_name("thread_sort_index", LANES.index(lane), ""), "args": {"sort_index": LANES.index(lane)}})
    events: list[dict[str, Any]] = []
    origin = recordings[0].began
    for number, one in enumerate(recordings):
        events.append(_event(Span("answer", one.began, one.ended, None), origin, {"answer": number}))
        events += (_event(span, origin, {"answer": number}) for span in one.spans)
        for step in one.steps:
            event = step.event
            facts = {
                "answer": number,
                "step": event.step,
                "kind": event.kind,
                "committed": len(event.positions),
                "masks_left": event.masks_left,
                "least_confidence": min(event.confidences, default=None),
            }
            whole = Span(f"{event.kind} {event.step}", step.began, step.ended, None)
            events += (_event(span, origin, facts) for span in (whole, *step.spans))
            if not step.spent(event.kind):  # the GPU's own time, known afterwards
                began = max(step.began, step.ended - event.graph_ms / 1e3)
                events.append(_event(Span(event.kind, began, step.ended, None), origin, facts))
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    return {"traceEvents": named + events, "displayTimeUnit": "ms"}


def _name(what: str, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": lane, "args": {"name": name}}


def _event(span: Span, origin: float, facts: dict[str, Any]) -> dict[str, Any]:
    began, ended = (round((instant - origin) * 1e6) for instant in (span.began, span.ended))
    return {
        "ph": "X",
        "name": span.name,
        "cat": "lladav",
        "pid": _PROCESS,
        "tid": LANES.index(_LANE_OF.get(span.name, "host")),
        "ts": began,
        "dur": ended - began,
        "args": facts,
    }
