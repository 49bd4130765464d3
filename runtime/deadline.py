"""What an answer in time needs at least: measured before it is begun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from lladav.errors import OptionError
from lladav.runtime.clock import Clock
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.pacing import FINISH, Pacer, PassTimes, pass_key, vision_key
from lladav.runtime.pictures import PictureReader, Prepared
from lladav.runtime.results import PassKind

# Runs that a pass of unknown length is measured with, before the first deadline is promised.
_WARM_UP: dict[PassKind, int] = {"refresh": 3, "step": 8}
_WARM_UP_VISION = 2


def pacer_for(
    times: PassTimes,
    denoiser: Denoiser,
    reader: PictureReader,
    pictures: Sequence[Prepared],
    *,
    prompt: int,
    canvas: int,
    copies: int,
    began: float,
    deadline_ms: float,
    clock: Clock,
) -> Pacer:
    """A pacer for one answer, after a warm-up where the passes it needs have not been measured yet.

    The warm-up is not counted against the deadline; it happens once per bundle, machine and size.

    Args:
        times: measured so far; the warm-up adds to it.
        denoiser: whose passes are timed.
        reader: whose vision encoder is timed.
        pictures: that have to be encoded.
        prompt: positions of the prompt.
        canvas: positions of canvas and suffix.
        copies: sequences computed side by side, 2 with guidance.
        began: instant in seconds when the answer was asked for.
        deadline_ms: milliseconds from then.
        clock: gets the stage `warm_up`.

    Raises:
        OptionError: not even the first pass and one step fit.
    """
    fresh = [picture for picture in pictures if not reader.known(picture)]
    window = denoiser.window([prompt] * copies, canvas, canvas, cached=True)
    warm = perf_counter()
    with clock.stage("warm_up"):
        rows = window.canvas_start + np.arange(canvas)
        for kind, least in _WARM_UP.items():
            while times.count(pass_key(kind, window.size)) < least:
                start = perf_counter()
                (window.refresh if kind == "refresh" else window.step)(rows)
                times.add(pass_key(kind, window.size), (perf_counter() - start) * 1e3)
        for picture in fresh:
            while times.count(vision_key(len(picture.crops))) < _WARM_UP_VISION:
                reader.measure(picture)
    warmed = perf_counter() - warm
    spent = (perf_counter() - began - warmed) * 1e3
    vision = sum(times.p99(vision_key(len(picture.crops))) for picture in fresh)
    passes = sum(times.p99(pass_key(kind, window.size)) for kind in _WARM_UP)
    least_ms = spent + vision + passes + times.p99(FINISH)
    if least_ms > deadline_ms:
        raise OptionError(
            f"--deadline-ms {deadline_ms:g} cannot be kept here: reading the question took {spent:,.1f} ms, the "
            f"pictures take {vision:,.1f} ms and one refresh and one step {passes:,.1f} ms (99th percentiles)",
            cure=f"pass --deadline-ms {math.ceil(least_ms)} or more, or ask for less: --view single, a shorter "
            "prompt, a shorter --gen-length",
        )
    return Pacer(times, window.size, began + warmed + deadline_ms / 1e3)
