"""A profile: warm up, answer again and again, and fold what was heard."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from lladav.errors import OptionError
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling import folding
from lladav.runtime.profiling.distribution import TAIL, Distribution
from lladav.runtime.profiling.frames import Camera, Shown, frame_metrics
from lladav.runtime.profiling.host_backend import layers_of, limits_of, memory_of
from lladav.runtime.profiling.layers import Node, fold
from lladav.runtime.profiling.load import loaded
from lladav.runtime.profiling.memory import MemoryLedger
from lladav.runtime.profiling.power import find_meter, metered
from lladav.runtime.profiling.probe import Probe
from lladav.runtime.profiling.ranges import NvtxRanges
from lladav.runtime.profiling.record import Profile
from lladav.runtime.profiling.recorder import Recording, record
from lladav.runtime.profiling.setup import setup_of
from lladav.runtime.profiling.sweep import sweep
from lladav.runtime.profiling.workload import Asking
from lladav.runtime.tracing import traced

RUNS = 10
WARMUP = 2
# Frames a second; slower ones keep every answer waiting for hours, of faster ones all are missed.
_SLOWEST, _FASTEST = 1e-3, 1e4


@dataclass(frozen=True)
class Measured:
    """A profile and what its other files are made of.

    Attributes:
        recordings: the measured answers.
        nodes: of the graphs; empty where layers were not looked at.
    """

    profile: Profile
    recordings: tuple[Recording, ...]
    nodes: tuple[Node, ...]


def profile(
    pipeline: Pipeline,
    asking: Asking,
    *,
    runs: int = RUNS,
    warmup: int = WARMUP,
    frames_per_second: float | None = None,
    load: Sequence[str] = (),
    ledger: MemoryLedger | None = None,
    probe: Probe | None = None,
    layers: bool = True,
    sweeping: bool = False,
    nvtx: bool = False,
    progress: Callable[[str, int], None] = lambda _stage, _done: None,
) -> Measured:
    """Measures a loaded pipeline.

    Args:
        pipeline: loaded with `feature_cache_bytes=0`, or vision is left out of every answer but the first.
        asking: the question; see `synthetic` for one made from nothing.
        runs: answers that are measured.
        warmup: answers before them.
        frames_per_second: of a camera that is played; None asks again at once.
        load: commands to run beside the measured answers.
        ledger: that listened while the pipeline was loaded; None leaves memory out.
        probe: rates of this machine, on the CPU; None leaves the limits of passes out.
        layers: whether to look into the graphs afterwards, in sessions of their own.
        sweeping: whether to measure passes at every pair of buckets afterwards.
        nvtx: marks ranges for a profiler from outside.
        progress: told the stage and how many answers of it are done.

    Raises:
        OptionError: no runs, a rate that is none, a load that cannot be started, or as `Pipeline.generate`.
        BackendError: NVTX was asked for and is not installed.
    """
    check(runs, warmup, frames_per_second)
    ranges = NvtxRanges() if nvtx else None
    notes: list[str] = []
    for number in range(warmup or (1 if ledger else 0)):
        with traced(ledger) if ledger and not number else nullcontext():
            for _ in asking.ask(pipeline):
                pass
        progress("warm-up", number + 1)
    # What is recorded from here on is the profile's memory, and no answer's.
    memory = memory_of(pipeline, ledger, notes)
    camera, shown, recordings = Camera(frames_per_second), list[Shown](), list[Recording]()
    meter, without_meter = find_meter()
    with loaded(load) as ended_early, metered(meter) as readings:
        for number in range(runs):
            frame, taken = camera.take()
            one = record(asking.ask(pipeline), ranges)
            recordings.append(one)
            shown.append(Shown(frame, taken, one.began, one.ended))
            progress("runs", number + 1)
    last = recordings[-1].answer
    nodes = layers_of(pipeline, asking, last, notes) if layers else ()
    points = []
    for point in sweep(pipeline) if sweeping else ():
        points.append(point)
        progress("sweep", len(points))
    limits = limits_of(pipeline, asking, last, probe)
    answer_ms = Distribution.of([one.ms for one in recordings])
    notes += [without_meter] if without_meter else []
    notes += (f"--load {command!r} had ended by itself before the last answer" for command in ended_early)
    notes += _missing(recordings)
    described = Profile(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        workload=asking.describe(last, pipeline, frames_per_second, load),
        setup=setup_of(pipeline),
        warmup=warmup,
        runs=folding.runs(recordings),
        answer_ms=answer_ms,
        first_token_ms=Distribution.of([one.first_token_ms for one in recordings]),
        tokens_per_pass=folding.tokens_per_pass(recordings),
        stages=folding.stages(recordings),
        steps=folding.steps(recordings),
        passes=folding.passes(recordings, limits),
        rates=limits.rates if limits else None,
        frames=frame_metrics(shown, frames_per_second, asking.config.deadline_ms),
        energy=readings.energy(meter.source, answer_ms.mean) if meter else None,
        memory=memory,
        layers=fold(nodes) if nodes else None,
        sweep=tuple(points),
        shown=folding.shown(
            folding.median_answer(recordings), lambda token: pipeline.tokenizer.decode([token], skip_special=False)
        ),
        notes=tuple(notes),
    )
    return Measured(described, tuple(recordings), tuple(nodes))


def check(runs: int, warmup: int, frames_per_second: float | None) -> None:
    """Refuses numbers that measure nothing, before anything is loaded.

    Raises:
        OptionError: saying which.
    """
    if runs < 1:
        raise OptionError(f"{runs} runs measure nothing", cure="pass --runs 1 or more; 100 for a p99")
    if warmup < 0:
        raise OptionError(f"{warmup} answers cannot warm anything up", cure="pass --warmup 0 or more")
    if frames_per_second is not None and not _SLOWEST <= frames_per_second <= _FASTEST:
        raise OptionError(f"there is no camera of {frames_per_second:g} frames a second", cure="pass --fps 10 or so")


def _missing(recordings: Sequence[Recording]) -> Iterator[str]:
    """What the answers themselves did not tell."""
    if recordings[-1].answer.reused_pictures:
        yield "vision is not in the times: pictures' features were kept from an earlier answer"
    if recordings[0].steps[0].waiting_ms is None:
        yield "waiting for a core was not measured: the system does not tell it to this process"
    if len(recordings) < TAIL:
        yield f"no p99: it takes {TAIL} values, and there were {len(recordings)} answers"
