"""Milliseconds per pass of the real geometry beside its roofline, with captured graphs and without."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.golden import request_of
from benchmarks.gpu.finding import Finding, Table, verdict
from benchmarks.gpu.rig import Rig, each_backend
from benchmarks.gpu.roofline import measured_rates, rooflines
from lladav.backends import Limits
from lladav.bundle import Bundle
from lladav.costs import Rates
from lladav.runtime.config import GenerationConfig
from lladav.runtime.loop import Request
from lladav.runtime.pacing import PassTimes
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.results import PassKind
from lladav.runtime.window import window_size

MOST_OVER_ROOFLINE = 1.5
MOST_HOST_GAP_US = 30.0

LAUNCHES: dict[str, dict[str, bool]] = {"graph": {}, "plain": {"captured": False}, "repeated": {"bursts": True}}
"""How steps are launched: each as a captured graph, each call by call, or by the GPU itself."""


@dataclass(frozen=True)
class Measured:
    """Of one prompt and canvas; medians.

    Attributes:
        refresh_ms, step_ms: from the end of a pass to the end of the next, in the loop.
        alone_ms: the same for steps that are launched one after the other while nothing is read.
        host_gap_us: how much longer a step takes in the loop.
        fallbacks: why passes were not captured.
    """

    refresh_ms: float
    step_ms: float
    alone_ms: float
    host_gap_us: float
    fallbacks: tuple[str, ...]


def steps(rig: Rig, bundle: Bundle, prompts: Sequence[int], canvases: Sequence[int], count: int) -> Finding:
    """Every backend, prompt and canvas.

    Args:
        rig: what runs them.
        bundle: to measure.
        prompts: positions.
        canvases: positions.
        count: passes of an answer, at most one per position.
    """
    rates = measured_rates(rig.device)

    def measure(backend: str) -> dict[str, dict[str, Measured]]:
        found: dict[str, dict[str, Measured]] = {}
        limits = Limits(prompt=max(prompts), canvas=max(canvases))
        for name, options in LAUNCHES.items():
            with rig.pipeline(backend, bundle, limits, **options) as pipeline:
                found[name] = {
                    f"{prompt}+{canvas}": measure_size(rig, pipeline, prompt, canvas, min(count, canvas))
                    for prompt in prompts
                    for canvas in canvases
                }
        return found

    found, refused = each_backend(rig, measure)
    least = {
        f"{prompt}+{canvas}": rooflines(bundle, rates, prompt, canvas) for prompt in prompts for canvas in canvases
    }
    figures = {
        "bandwidth": rates.bandwidth,
        "products": rates.operations if math.isfinite(rates.operations) else None,
        "rooflines_ms": least,
        "refused": refused,
        "backends": {
            backend: {name: {size: asdict(one) for size, one in sizes.items()} for name, sizes in own.items()}
            for backend, own in found.items()
        },
    }
    return Finding(figures, (table(rates, least, found),))


def measure_size(rig: Rig, pipeline: Pipeline, prompt: int, canvas: int, count: int) -> Measured:
    """One prompt and canvas, whose answer takes `count` passes."""
    refreshes, stepping = (question(pipeline, prompt, canvas, count, interval) for interval in (1, 0))
    refresh_ms = _in_the_loop(pipeline, refreshes, "refresh")
    step_ms = _in_the_loop(pipeline, stepping, "step")
    alone_ms = _alone(rig, pipeline, stepping, count)
    return Measured(refresh_ms, step_ms, alone_ms, 1e3 * (step_ms - alone_ms), pipeline.backend.fallbacks)


def question(pipeline: Pipeline, prompt: int, canvas: int, count: int, interval: int) -> Request:
    """A prompt that says nothing, whose answer takes `count` passes and a refresh every `interval`; 0 is the first."""
    ids = np.random.default_rng(0).integers(0, pipeline.bundle.manifest.tokens.mask, prompt)
    options = {"preset": "exact", "gen_length": canvas, "block_length": canvas, "steps": count}
    return request_of(pipeline.table.gather(ids), GenerationConfig(**options, refresh_interval=interval))


def answered(pipeline: Pipeline, request: Request, kind: PassKind) -> float:
    """Milliseconds of a pass in an answer, the first left out; median."""
    loop = pipeline.denoiser.loop(pipeline.bundle.manifest.tokens, request, PassTimes())
    return median(event.ms for (event,) in loop if event is not None and event.step and event.kind == kind)


def _in_the_loop(pipeline: Pipeline, request: Request, kind: PassKind) -> float:
    answered(pipeline, request, kind)  # warms up and captures
    return answered(pipeline, request, kind)


def _alone(rig: Rig, pipeline: Pipeline, request: Request, count: int) -> float:
    manifest, (prompt,) = pipeline.bundle.manifest, request.prompts
    pipeline.denoiser.loop(manifest.tokens, request, PassTimes())  # lays out the window and starts an answer
    canvas = request.schedule.gen_length
    runner = pipeline.denoiser.runner(window_size(manifest.buckets, [len(prompt)], canvas, canvas), 1, guided=False)
    began, ended = rig.device.event(), rig.device.event()
    runner.launch("refresh")
    began.record()
    for _ in range(count - 1):
        runner.launch("step")
    ended.record()
    ended.wait()
    return ended.ms_since(began) / (count - 1)


def table(rates: Rates, least: dict[str, dict[str, float]], found: dict[str, dict[str, dict[str, Measured]]]) -> Table:
    """What was measured beside what is asked for."""
    measured = math.isfinite(rates.operations)
    products = f"{rates.operations / 1e12:.0f} TFLOPS of fp16 products" if measured else "products were not measured"
    columns = ("backend", "launched", "prompt + canvas", "refresh ms", "over roofline")
    columns += ("step ms", f"over roofline (at most {MOST_OVER_ROOFLINE:g})")
    columns += (f"host gap µs (at most {MOST_HOST_GAP_US:g})",)
    rows = [
        (
            *(backend, name, size.replace("+", " + ")),
            f"{one.refresh_ms:.2f}",
            f"{one.refresh_ms / least[size]['refresh']:.2f}",
            f"{one.step_ms:.2f}",
            verdict(one.step_ms / least[size]["step"], MOST_OVER_ROOFLINE, ".2f"),
            verdict(one.host_gap_us, MOST_HOST_GAP_US, ".0f"),
        )
        for backend, own in found.items()
        for name, sizes in own.items()
        for size, one in sizes.items()
    ]
    return Table(f"Copies read and write {rates.bandwidth / 1e9:.0f} GB/s; {products}", columns, tuple(rows))


def best_steps(found: Path) -> dict[str, float]:
    """Milliseconds of the fastest backend's steps by size, from the JSON of an earlier command; empty without it."""
    if not found.is_file():
        return {}
    figures = json.loads(found.read_text("utf-8"))["figures"]
    sizes = [own for launched in figures.get("backends", {}).values() for own in launched.values()]
    return {size: min(own[size]["step_ms"] for own in sizes) for size in figures.get("rooflines_ms", {})}
