"""From recorded answers to what a profile says of them: by step, by stage, by pass."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from lladav.runtime.profiling.distribution import Distribution
from lladav.runtime.profiling.limits import Limits
from lladav.runtime.profiling.record import PassProfile, Run, ShownStep, StepProfile
from lladav.runtime.profiling.recorder import RecordedStep, Recording, queued

VISION = ("vision_encoder", "connector")


def runs(recordings: Sequence[Recording]) -> tuple[Run, ...]:
    """One line per answer."""
    return tuple(
        Run(
            began=one.wall,
            ms=one.ms,
            first_token_ms=one.first_token_ms,
            passes=len(one.steps),
            tokens=sum(len(step.event.positions) for step in one.steps),
        )
        for one in recordings
    )


def stages(recordings: Sequence[Recording]) -> dict[str, Distribution]:
    """Milliseconds of an answer by stage, in the order in which they happen."""
    times: dict[str, list[float]] = defaultdict(list)
    for one in recordings:
        for stage, ms in one.answer.timings_ms.items():
            times[stage].append(ms)
    return {stage: Distribution.of(values) for stage, values in times.items()}


def passes(recordings: Sequence[Recording], limits: Limits | None) -> dict[str, PassProfile]:
    """Milliseconds inside graphs: each refresh and step, and vision with all crops of an answer."""
    times: dict[str, list[float]] = defaultdict(list)
    running: dict[str, list[float]] = defaultdict(list)
    host: dict[str, list[float]] = defaultdict(list)
    for one in recordings:
        for name in VISION:
            if name in one.answer.timings_ms:
                times[name].append(one.answer.timings_ms[name])
                running[name].append(max(0.0, one.answer.timings_ms[name] - queued(one.spans, name)))
        for step in one.steps:
            times[step.event.kind].append(step.event.graph_ms)
            running[step.event.kind].append(max(0.0, step.event.graph_ms - queued(step.spans, step.event.kind)))
            host[step.event.kind].append(step.event.ms - step.event.graph_ms)
    found = {name: Distribution.of(values) for name, values in times.items()}
    if limits is None:
        return {name: PassProfile(ms=ms) for name, ms in found.items()}
    beside = {name: statistics.median(host[name]) if name in host else 0.0 for name in found}
    return {
        name: PassProfile(ms=ms, limit=limits.of(name, statistics.median(running[name]), beside[name]))
        for name, ms in found.items()
    }


def tokens_per_pass(recordings: Sequence[Recording]) -> float:
    """Committed by a pass of the denoiser, over all answers."""
    return statistics.fmean(len(step.event.positions) for one in recordings for step in one.steps)


def steps(recordings: Sequence[Recording]) -> tuple[StepProfile, ...]:
    """By index, over all answers that came as far."""
    longest = max(len(one.steps) for one in recordings)
    by_index = ([one.steps[i] for one in recordings if len(one.steps) > i] for i in range(longest))
    return tuple(_step(same) for same in by_index)


def _step(same: Sequence[RecordedStep]) -> StepProfile:
    events = [step.event for step in same]
    waiting = [step.waiting_ms for step in same]
    known = [ms for ms in waiting if ms is not None]
    sure = [confidence for event in events for confidence in event.confidences]
    return StepProfile(
        step=events[0].step,
        kind=Counter(event.kind for event in events).most_common(1)[0][0],
        ms=Distribution.of([event.ms for event in events]),
        graph_ms=Distribution.of([event.graph_ms for event in events]),
        sampling_ms=Distribution.of([step.spent("sampling") for step in same]),
        commit_ms=Distribution.of([step.spent("commit") for step in same]),
        host_ms=Distribution.of([_host(step) for step in same]),
        waiting_ms=Distribution.of(known) if len(known) == len(same) else None,
        committed=statistics.fmean(len(event.positions) for event in events),
        masks_left=statistics.fmean(event.masks_left for event in events),
        mean_confidence=statistics.fmean(sure) if sure else None,
        least_confidence=min(sure) if sure else None,
    )


def _host(step: RecordedStep) -> float:
    # On a GPU a step counts from the end of the one before, and its graph may have begun earlier.
    return max(0.0, step.event.ms - step.event.graph_ms - step.spent("sampling") - step.spent("commit"))


def median_answer(recordings: Sequence[Recording]) -> Recording:
    """The answer whose time is the median, the lower of two."""
    return sorted(recordings, key=lambda one: one.ms)[(len(recordings) - 1) // 2]


def shown(recording: Recording, text: Callable[[int], str]) -> tuple[ShownStep, ...]:
    """The steps of one answer, to be drawn.

    Args:
        recording: the answer.
        text: of a token.
    """
    began = recording.steps[0].began if recording.steps else 0.0
    return tuple(
        ShownStep(
            kind=step.event.kind,
            begin_ms=max(0.0, (step.began - began) * 1e3),
            ms=step.event.ms,
            positions=step.event.positions,
            confidences=step.event.confidences,
            tokens=tuple(map(text, step.event.tokens)),
        )
        for step in recording.steps
    )
