"""Thousands of steps in one process: memory stays as it is, and the same question keeps its very logits."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.export_full_size import anonymous_bytes
from benchmarks.golden import request_of
from benchmarks.gpu.finding import Finding, Table
from benchmarks.gpu.rig import Rig, each_backend
from lladav.backends import Limits
from lladav.bundle import Bundle
from lladav.runtime.config import GenerationConfig
from lladav.runtime.gpu.device import Device
from lladav.runtime.pacing import PassTimes
from lladav.runtime.pipeline import Pipeline

SAMPLES = 10


@dataclass(frozen=True)
class Sample:
    """Between two answers.

    Attributes:
        steps: so far.
        device_bytes: of the GPU's memory in use, by all programs.
        host_bytes: of the process, without what the kernel could drop.
        ms: median of a step since the last sample.
        drift: largest difference of the same pass's logits from those at the beginning.
    """

    steps: int
    device_bytes: int
    host_bytes: int
    ms: float
    drift: float


def soak(rig: Rig, bundle: Bundle, count: int, prompt: int, canvas: int) -> Finding:
    """Answers until `count` passes have run."""

    def run(backend: str) -> list[Sample]:
        with rig.pipeline(backend, bundle, Limits(prompt=prompt, canvas=canvas)) as pipeline:
            return _soaked(rig.device, pipeline, count, prompt, canvas)

    found, refused = each_backend(rig, run)
    rows = [(backend, *summary(samples)) for backend, samples in found.items()]
    columns = ("backend", "passes", "GPU memory", "host memory", "drift of logits", "ms per pass, first and last")
    figures: dict[str, Any] = {
        "backends": {backend: [asdict(sample) for sample in samples] for backend, samples in found.items()},
        "refused": refused,
    }
    return Finding(figures, (Table("From the first sample to the last", columns, tuple(rows)),))


def summary(samples: list[Sample]) -> tuple[str, ...]:
    """A row; what has grown is said in bytes."""
    first, last = samples[0], samples[-1]
    return (
        f"{last.steps:,}",
        f"{last.device_bytes - first.device_bytes:+,} bytes",
        f"{last.host_bytes - first.host_bytes:+,} bytes",
        f"{max(sample.drift for sample in samples):.1e}",
        f"{first.ms:.2f}, {last.ms:.2f}",
    )


def _soaked(device: Device, pipeline: Pipeline, count: int, prompt: int, canvas: int) -> list[Sample]:
    tokens = pipeline.bundle.manifest.tokens
    rows = pipeline.table.gather(np.random.default_rng(0).integers(0, tokens.mask, prompt))
    config = GenerationConfig(preset="exact", gen_length=canvas, block_length=canvas, refresh_interval=8)
    first = _logits(device, pipeline, rows, canvas)
    samples: list[Sample] = []
    done, times = 0, list[float]()
    while done < count:
        loop = pipeline.denoiser.loop(tokens, request_of(rows, config), PassTimes())
        times += [event.ms for (event,) in loop if event is not None and event.kind == "step"]
        done += canvas
        if done >= count * (len(samples) + 1) / SAMPLES:
            drift = float(np.abs(_logits(device, pipeline, rows, canvas) - first).max())
            free, total = device.memory()
            samples.append(Sample(done, total - free, anonymous_bytes(os.getpid()), median(times), drift))
            times.clear()
    return samples


def _logits(device: Device, pipeline: Pipeline, rows: np.ndarray, canvas: int) -> np.ndarray:
    """Of a refresh over a canvas of masks, `[canvas, V]`."""
    window = pipeline.denoiser.window([len(rows)], canvas, canvas, cached=True)
    places = window.canvas_start + np.arange(canvas)
    window.place_prompt(0, rows)
    window.place(0, places, np.full(canvas, pipeline.bundle.manifest.tokens.mask))
    found = window.refresh(places)
    logits = np.empty((canvas, pipeline.bundle.manifest.geometry.language.vocab_rows), np.float32)
    device.download(logits, found.address)
    device.synchronize()
    return logits
