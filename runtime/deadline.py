"""What an answer in time needs at least: measured before it is begun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from lladav.errors import OptionError
from lladav.runtime.clock import Clock
from lladav.runtime.pacing import FINISH, Pacer, PassTimes, pass_key, vision_key
from lladav.runtime.pictures import PictureReader, Prepared
from lladav.runtime.results import PassKind
from lladav.runtime.window import Window, WindowMaker

# Runs that a pass of unknown length is measured with, before the first deadline is promised.
_WARM_UP: dict[PassKind, int] = {"refresh": 3, "step": 8}
_WARM_UP_VISION = 2


class DeadlineKeeper:
    """Measures what answers need, so that deadlines can be promised or refused.

    Args:
        times: measured so far on this machine, and renewed by every pass that fills its bucket.
        denoiser: whose passes are timed.
        reader: whose vision encoder is timed.
    """

    def __init__(self, times: PassTimes, denoiser: WindowMaker, reader: PictureReader) -> None:
        self._times = times
        self._denoiser = denoiser
        self._reader = reader
        self._warm: set[object] = set()

    def pacer(
        self,
        pictures: Sequence[Prepared],
        *,
        prompts: Sequence[int],
        canvas: int,
        rows: int,
        began: float,
        deadline_ms: float,
        clock: Clock,
    ) -> Pacer:
        """A pacer for one answer, after a warm-up where it is the first of its size in this process.

        The warm-up is not counted against the deadline. A deadline is refused only on times that
        were measured just now: what the table says may be of another load.

        Args:
            pictures: that the answer is about.
            prompts: positions of the prompt, twice with guidance.
            canvas: positions of canvas and suffix.
            rows: rows of logits.
            began: instant in seconds when the answer was asked for.
            deadline_ms: milliseconds from then.
            clock: gets the stage `warm_up`.

        Raises:
            OptionError: not even the first pass and one step fit.
        """
        started = perf_counter()
        fresh = list({p.digest or id(p): p for p in pictures if not self._reader.known(p)}.values())
        window = self._denoiser.window(prompts, canvas, rows, cached=True, padded=True)
        spent = (started - began) * 1e3
        with clock.stage("warm_up"):
            measured = self._warm_up(window, fresh)
            need = self._need(window, fresh)
            if spent + sum(need.values()) > deadline_ms and not measured:
                self._times.forget(
                    [
                        FINISH,
                        *(pass_key(kind, window.size) for kind in _WARM_UP),
                        *(vision_key(picture.tiles) for picture in fresh),
                    ]
                )
                self._warm_up(window, fresh)
                need = self._need(window, fresh)
                measured = True
        if measured:
            self._times.save()
        least = spent + sum(need.values())
        if least > deadline_ms:
            raise OptionError(
                f"--deadline-ms {deadline_ms:g} cannot be kept here: reading the question took {spent:,.1f} ms, and "
                + ", ".join(f"{name} {ms:,.1f} ms" for name, ms in need.items())
                + " (99th percentiles)",
                cure=f"pass --deadline-ms {math.ceil(least)} or more, or ask for less: --view single, a shorter "
                "prompt, a shorter --gen-length",
            )
        return Pacer(self._times, window.size, perf_counter() + (deadline_ms - spent) / 1e3)

    def _warm_up(self, window: Window, pictures: Sequence[Prepared]) -> bool:
        """Runs what this process has not run yet, and measures what is unknown; whether there was any."""
        known = True
        rows = window.canvas_start + np.arange(window.size[2])
        for kind, least in _WARM_UP.items():
            run, key = window.refresh if kind == "refresh" else window.step, pass_key(kind, window.size)
            if key not in self._warm:  # the first run allocates and reads weights in
                run(rows)
                self._warm.add(key)
            while self._times.count(key) < least:
                start = perf_counter()
                run(rows)
                self._times.add(key, (perf_counter() - start) * 1e3)
                known = False
        for picture in pictures:
            key = vision_key(picture.tiles)
            if key not in self._warm:
                self._reader.encode(picture, PassTimes())
                self._warm.add(key)
            while self._times.count(key) < _WARM_UP_VISION:
                self._reader.encode(picture, self._times)
                known = False
        return not known

    def _need(self, window: Window, pictures: Sequence[Prepared]) -> dict[str, float]:
        """Milliseconds by part of the least that an answer needs."""
        out = {f"one {kind}": self._times.p99(pass_key(kind, window.size)) for kind in _WARM_UP}
        if pictures:
            out["the pictures"] = sum(self._times.p99(vision_key(picture.tiles)) for picture in pictures)
        return {**out, "the text": self._times.p99(FINISH)}
