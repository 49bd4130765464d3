"""Predictions for this machine's CPU, which can be checked at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from lladav.bundle import Bundle
from lladav.costs import Roofline
from lladav.memory_plan import Sizes, check_sizes
from lladav.products import PassName
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.profiling.probe import Probe
from lladav.runtime.profiling.roofline import predicted_ms, roofline

_ROUNDS = 3
_KINDS: tuple[PassName, ...] = ("refresh", "step")


@dataclass(frozen=True)
class PredictedPass:
    """One pass.

    Attributes:
        ms: predicted.
        limit: below which no pass gets on this machine.
        measured_ms: the median of a few passes; None where none was run.
    """

    ms: float
    limit: Roofline
    measured_ms: float | None

    @property
    def error(self) -> float | None:
        """By how much the prediction is too long (above 0) or too short, as a share of what was measured."""
        return None if self.measured_ms is None else self.ms / self.measured_ms - 1

    def to_json(self) -> dict[str, Any]:
        limit = {"limit_ms": self.limit.ms, "bound": self.limit.bound}
        return {"ms": self.ms, **limit, "measured_ms": self.measured_ms, "error": self.error}


@dataclass(frozen=True)
class CpuRow:
    """One prompt bucket."""

    prompt: int
    refresh: PredictedPass
    step: PredictedPass


def predict_here(
    bundle: Bundle,
    probe: Probe,
    canvas: int,
    batch: int = 1,
    *,
    measured: bool = False,
    clock: Callable[[], float] = perf_counter,
) -> Iterator[CpuRow]:
    """Refresh and step for every prompt bucket, logits of the whole canvas wanted.

    Args:
        bundle: an open bundle.
        probe: of this machine, with as many threads as shall be used.
        canvas: one of the bundle's canvas buckets.
        batch: sequences side by side.
        measured: run the passes too.
        clock: seconds.

    Raises:
        OptionError: there is no such canvas bucket.
        BackendError: the passes are to be run, and cannot be.
    """
    manifest = bundle.manifest
    check_sizes(manifest, Sizes(batch, manifest.buckets.prompt[0], canvas, 0))
    passes = _Passes(bundle, probe.threads, clock) if measured else None
    for prompt in manifest.buckets.prompt:
        sizes = Sizes(batch, prompt, canvas, 0)
        times = passes.milliseconds(sizes) if passes else (None, None)
        refresh, step = (
            PredictedPass(
                predicted_ms(manifest, kind, sizes, probe), roofline(manifest, kind, sizes, probe), times[number]
            )
            for number, kind in enumerate(_KINDS)
        )
        yield CpuRow(prompt, refresh, step)


class _Passes:
    """Runs passes over masks, which cost what others do."""

    def __init__(self, bundle: Bundle, threads: int, clock: Callable[[], float]) -> None:
        self._table = EmbeddingTable.of(bundle)
        self._denoiser = Denoiser(bundle, threads, self._table)
        self._mask = bundle.manifest.tokens.mask
        self._clock = clock

    def milliseconds(self, sizes: Sizes) -> tuple[float, float]:
        """Of a refresh and of a step."""
        prompts = [sizes.prompt] * sizes.batch
        window = self._denoiser.window(prompts, sizes.canvas, sizes.canvas, cached=True)
        window.prompt[:] = self._table.gather([self._mask])
        window.canvas[:] = self._table.gather([self._mask])
        rows = window.canvas_start + np.arange(sizes.canvas)
        return self._median(lambda: window.refresh(rows)), self._median(lambda: window.step(rows))

    def _median(self, run: Callable[[], object]) -> float:
        run()
        times = []
        for _ in range(_ROUNDS):
            began = self._clock()
            run()
            times.append(self._clock() - began)
        return median(times) * 1e3
