"""Keeping a deadline: how long passes take, and which pass still fits.

Times are measured on this machine with this bundle, kept in a table between runs, and renewed by
every pass that fills its bucket, as all of an answer with a deadline do. A pass is begun only if its
99th percentile fits the time left; the last one that fits commits everything, so the answer is whole
when time runs out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import numpy as np
import platformdirs

from lladav.runtime.results import PassKind
from lladav.runtime.window import Size

KEPT = 200
"""Latest times per pass that the percentile is taken of."""

PERCENTILE = 99

_LONGEST = 3.6e6
"""Milliseconds: what a damaged table says beyond an hour is not believed."""

_SAVE_EVERY = 100

FINISH = "finish"
"""Key of what is left to do after the last pass."""


class PassTimes:
    """Milliseconds of the latest passes of each kind and size.

    Args:
        file: where the table is kept; None keeps it in memory only.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._times: dict[str, deque[float]] = {}
        self._unsaved = 0
        for key, times in _read(file).items():
            self._times[key] = deque(times, KEPT)

    @classmethod
    def of(cls, seal: str, setup: str) -> PassTimes:
        """The table of one bundle on this machine, in the user's cache folder.

        Args:
            seal: sha256 of the bundle's manifest.
            setup: what else decides how long passes take, such as backend and threads.
        """
        machine = f"{platform.node()}-{platform.machine()}-{setup}"
        name = f"{seal[:16]}-{hashlib.sha256(machine.encode()).hexdigest()[:8]}.json"
        return cls(Path(platformdirs.user_cache_dir("lladav")) / "passes" / name)

    @property
    def file(self) -> Path | None:
        """Where the table is kept."""
        return self._file

    def add(self, key: str, ms: float) -> None:
        self._times.setdefault(key, deque(maxlen=KEPT)).append(ms)
        self._unsaved += 1

    def forget(self, keys: Iterable[str]) -> None:
        """Drops what was measured, so that it is measured anew."""
        for key in keys:
            self._times.pop(key, None)

    def count(self, key: str) -> int:
        """How many times are known for `key`."""
        return len(self._times.get(key, ()))

    def p99(self, key: str) -> float:
        """The 99th percentile in milliseconds, the largest where there are few; 0 where there is none."""
        times = self._times.get(key)
        return float(np.percentile(times, PERCENTILE, method="higher")) if times else 0.0

    def save(self, *, now: bool = True) -> None:
        """Keeps the table for the next run; a folder that cannot be written costs a warm-up, no more.

        Args:
            now: else only where much has been added since the last time.
        """
        if self._file is None or not (now or self._unsaved >= _SAVE_EVERY):
            return
        self._unsaved = 0
        beside = self._file.with_suffix(f".{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({k: [round(t, 4) for t in v] for k, v in self._times.items()}), "utf-8")
            beside.replace(self._file)
        except OSError:
            with suppress(OSError):
                beside.unlink()


def _read(file: Path | None) -> dict[str, list[float]]:
    """The table in `file`; none where it is missing or no such table."""
    try:
        table = json.loads(file.read_text("utf-8")) if file is not None else {}
        return {str(key): [float(t) for t in times if 0 <= float(t) <= _LONGEST] for key, times in table.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def pass_key(kind: PassKind, size: Size) -> str:
    """Key of a pass over a window of `size`: sequences, prompt bucket, canvas bucket."""
    return f"{kind}/{'x'.join(map(str, size))}"


def vision_key(crops: int) -> str:
    """Key of encoding one picture of that many crops."""
    return f"vision/{crops}"


class Pacer:
    """Decides pass by pass what a deadline leaves room for.

    Args:
        times: measured so far, and renewed by the passes of answers with a deadline.
        size: of the window: sequences, prompt bucket, canvas bucket.
        deadline: instant in seconds, on the clock of `now`.
        now: the clock.
    """

    def __init__(self, times: PassTimes, size: Size, deadline: float, now: Callable[[], float] = perf_counter) -> None:
        self._times = times
        self._size = size
        self._deadline = deadline
        self._now = now

    def plan(self, due: PassKind, undecided: int, pace: float) -> tuple[PassKind, bool]:
        """Which pass to run, and whether it is the last one that fits.

        A refresh that would leave too little time for the steps that the answer is still expected
        to need gives way to a step: fewer refreshes before fewer steps.

        Args:
            due: what the refresh interval asks for.
            undecided: masked positions that the answer waits for.
            pace: positions committed per pass so far, 0 before the first pass, which has to be
                the refresh it is.
        """
        left = self._left()
        step, refresh = (self._times.p99(pass_key(kind, self._size)) for kind in ("step", "refresh"))
        kind = due
        if due == "refresh" and pace > 0:
            expected = math.ceil(undecided / pace) - 1
            if left < refresh + expected * step:
                kind = "step"
        cost = refresh if kind == "refresh" else step
        return kind, left < cost + step

    def fits(self) -> bool:
        """Whether one more step does."""
        return self._left() >= self._times.p99(pass_key("step", self._size))

    def _left(self) -> float:
        """Milliseconds for passes."""
        return (self._deadline - self._now()) * 1e3 - self._times.p99(FINISH)
