"""A profile: warm up, answer again and again, and fold what was heard."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from lladav.errors import LladavError, OptionError
from lladav.machine import system_memory
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling import folding
from lladav.runtime.profiling.distribution import TAIL, Distribution
from lladav.runtime.profiling.frames import Camera, Shown, frame_metrics
from lladav.runtime.profiling.layers import Node, fold, profile_layers
from lladav.runtime.profiling.limits import Limits, buckets_of
from lladav.runtime.profiling.load import loaded
from lladav.runtime.profiling.memory import MemoryLedger
from lladav.runtime.profiling.power import find_meter, metered
from lladav.runtime.profiling.probe import Probe
from lladav.runtime.profiling.ranges import NvtxRanges
from lladav.runtime.profiling.record import MachineRates, Memory, Profile
from lladav.runtime.profiling.recorder import Recording, record
from lladav.runtime.profiling.setup import setup_of
from lladav.runtime.profiling.sweep import sweep
from lladav.runtime.profiling.workload import Asking
from lladav.runtime.results import Answer
from lladav.runtime.tracing import traced
from lladav.runtime.window import Size, window_size

RUNS = 10
WARMUP = 2


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
    meter, without_meter = find_meter()
    notes = [without_meter] if without_meter else []
    for number in range(warmup or (1 if ledger else 0)):
        with traced(ledger) if ledger and not number else nullcontext():
            for _ in asking.ask(pipeline):
                pass
        progress("warm-up", number + 1)
    # What is recorded from here on is the profile's memory, and no answer's.
    memory = _memory(pipeline, ledger, notes)
    camera, shown, recordings = Camera(frames_per_second), list[Shown](), list[Recording]()
    with loaded(load) as ended_early, metered(meter) as readings:
        for number in range(runs):
            frame, taken = camera.take()
            one = record(asking.ask(pipeline), ranges)
            recordings.append(one)
            shown.append(Shown(frame, taken, one.began, one.ended))
            progress("runs", number + 1)
    notes += (f"--load {command!r} had ended by itself before the last answer" for command in ended_early)
    last = recordings[-1].answer
    if last.reused_pictures:
        notes.append("vision is not in the times: pictures' features were kept from an earlier answer")
    if recordings[0].steps[0].waiting_ms is None:
        notes.append("waiting for a core was not measured: the system does not tell it to this process")
    if runs < TAIL:
        notes.append(f"no p99: it takes {TAIL} values, and there were {runs} answers")
    nodes = _layers(pipeline, asking, last, notes) if layers else ()
    points = []
    for point in sweep(pipeline) if sweeping else ():
        points.append(point)
        progress("sweep", len(points))
    limits = _limits(pipeline, asking, last, probe)
    answer_ms = Distribution.of([one.ms for one in recordings])
    described = Profile(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        workload=asking.describe(last, pipeline, frames_per_second, load),
        setup=setup_of(pipeline),
        warmup=warmup,
        runs=folding.runs(recordings),
        answer_ms=answer_ms,
        first_token_ms=Distribution.of([one.first_token_ms for one in recordings]),
        tokens_per_pass=_tokens_per_pass(recordings),
        stages=folding.stages(recordings),
        steps=folding.steps(recordings),
        passes=folding.passes(recordings, limits),
        rates=MachineRates(bytes_s=probe.bandwidth, operations_s=probe.operations) if probe and limits else None,
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
    if frames_per_second is not None and not 0 < frames_per_second < float("inf"):
        raise OptionError(f"a camera of {frames_per_second} frames a second shows nothing", cure="pass --fps 10 or so")


def _tokens_per_pass(recordings: Sequence[Recording]) -> float:
    events = [step.event for one in recordings for step in one.steps]
    return sum(len(event.positions) for event in events) / len(events)


def _size(pipeline: Pipeline, asking: Asking, answer: Answer) -> Size:
    """Of the window that an answer's passes computed."""
    length = len(answer.steps[0].canvas)
    sequences = 2 if asking.config.cfg_scale > 0 else 1
    return window_size(pipeline.bundle.manifest.buckets, [answer.prompt_tokens] * sequences, length, length)


def _limits(pipeline: Pipeline, asking: Asking, answer: Answer, probe: Probe | None) -> Limits | None:
    if probe is None or not isinstance(pipeline.denoiser, Denoiser):
        return None
    length = len(answer.steps[0].canvas)
    manifest = pipeline.bundle.manifest
    return Limits(manifest, probe, _size(pipeline, asking, answer), sum(answer.tiles), length)


def _memory(pipeline: Pipeline, ledger: MemoryLedger | None, notes: list[str]) -> Memory | None:
    if ledger is None or not isinstance(pipeline.denoiser, Denoiser):
        notes.append("memory was not measured by category: that takes a bundle loaded under it, on the CPU")
        return None
    try:
        return ledger.account(pipeline.denoiser.buffers)
    except OSError as error:
        notes.append(f"memory was not measured: {error}")
        return None


def _layers(pipeline: Pipeline, asking: Asking, answer: Answer, notes: list[str]) -> Sequence[Node]:
    """Nodes of the passes that an answer had, where that can be seen."""
    denoiser, manifest = pipeline.denoiser, pipeline.bundle.manifest
    if not isinstance(denoiser, Denoiser):
        notes.append(f"layers were not looked at: {pipeline.backend.name} has no profiler here")
        return ()
    needed = sum(entry.bytes for entry in manifest.files if entry.path.endswith(".weights"))
    memory = system_memory()
    if memory is not None and memory.available < 2 * needed:
        notes.append(
            f"layers were not looked at: weights of {needed / 1e9:.1f} GB would be loaded once more, and "
            f"{memory.available / 1e9:.1f} GB are available"
        )
        return ()
    crops = max(buckets_of(sum(answer.tiles), manifest.buckets.tiles), default=0)
    try:
        return profile_layers(pipeline.bundle, denoiser.threads, _size(pipeline, asking, answer), crops)
    except LladavError as error:
        notes.append(f"layers were not looked at: {error.what}")
        return ()
