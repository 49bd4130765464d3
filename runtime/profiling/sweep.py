"""How long passes take by length of prompt and canvas: the bundle's buckets."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from lladav.runtime.config import GenerationConfig
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling.record import SweepPoint
from lladav.runtime.results import Answer

CANVASES = 4
"""Buckets at most, spread over those of the bundle."""

ANSWERS = 3
"""Of each pair, after one that is not measured."""

_STEPS = 4
_TOKEN = 1
"""What prompts are made of: time does not depend on what they say."""


def sweep(pipeline: Pipeline) -> Iterator[SweepPoint]:
    """Medians of refresh and step at every prompt bucket with some of the canvas buckets, the small ones first."""
    buckets = pipeline.bundle.manifest.buckets
    spread = np.linspace(0, len(buckets.canvas) - 1, min(CANVASES, len(buckets.canvas)))
    for canvas in (buckets.canvas[int(place)] for place in spread.round()):
        config = GenerationConfig(
            gen_length=canvas,
            steps=min(_STEPS, canvas),
            refresh_interval=0,
            selector="fixed",
            preset="realtime",
            stop=(),
        )
        for prompt in buckets.prompt:
            times: dict[str, list[float]] = defaultdict(list)
            for number in range(ANSWERS + 1):
                answer = pipeline.generate(prompt_ids=[_TOKEN] * prompt, config=config)
                if number:
                    _collect(answer, times)
            yield SweepPoint(
                prompt=prompt,
                canvas=canvas,
                refresh_ms=statistics.median(times["refresh"]),
                step_ms=statistics.median(times["step"]),
                n=ANSWERS,
            )


def _collect(answer: Answer, times: dict[str, list[float]]) -> None:
    for step in answer.steps:
        times[step.kind].append(step.graph_ms)
