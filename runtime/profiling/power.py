"""Power that the board tells: INA3221 of a Jetson through hwmon, or nvidia-smi; said and skipped where it does not.

A Jetson's modules have either one rail for everything (`VDD_IN`) or one for each part, which are added. The
carrier board is in none of them.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from lladav.runtime.profiling.distribution import Distribution
from lladav.runtime.profiling.record import Energy

HWMON = Path("/sys/class/hwmon")
PERIOD = 0.05
"""Seconds between readings; nvidia-smi takes longer by itself."""

_WHOLE = "VDD_IN"
_TIMEOUT = 10


@dataclass(frozen=True)
class Meter:
    """Something that tells watts.

    Attributes:
        source: `ina3221` or `nvidia-smi`.
        watts: reads them now.
    """

    source: str
    watts: Callable[[], float]


def find_meter(hwmon: Path = HWMON) -> tuple[Meter | None, str]:
    """The board's meter, or None and why there is none."""
    folders = [name.parent for name in sorted(hwmon.glob("hwmon*/name")) if _text(name) == "ina3221"]
    rails = {label: rail for folder in folders for label, rail in _rails(folder)}
    if rails:
        wanted = (rails[_WHOLE],) if _WHOLE in rails else tuple(rails.values())
        meter = Meter("ina3221", lambda: sum(rail() for rail in wanted))
    else:
        meter = Meter("nvidia-smi", _nvidia_smi)
    try:
        meter.watts()
    except PermissionError as error:
        return None, f"power was not measured: {error.filename} may not be read; run as root or let its group read it"
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, "power was not measured: the board has no INA3221, and nvidia-smi tells none"
    return meter, ""


@dataclass
class Readings:
    """Watts, as read while a block ran."""

    watts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def energy(self, source: str, answer_ms: float) -> Energy | None:
        """By answer; None where nothing was read.

        Args:
            source: of the meter.
            answer_ms: mean time of an answer.
        """
        if not self.watts:
            return None
        watts = Distribution.of(self.watts)
        return Energy(
            source=source,
            period_ms=self.seconds * 1e3 / len(self.watts),
            watts=watts,
            joules_per_answer=watts.mean * answer_ms / 1e3,
        )


@contextmanager
def metered(meter: Meter | None) -> Iterator[Readings]:
    """Reads the meter in a thread of its own while the block runs."""
    readings = Readings()
    if meter is None:
        yield readings
        return
    stop = threading.Event()

    def read() -> None:
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            while not stop.wait(PERIOD):
                readings.watts.append(meter.watts())

    thread = threading.Thread(target=read, name="lladav-power", daemon=True)
    began = perf_counter()
    thread.start()
    try:
        yield readings
    finally:
        stop.set()
        thread.join()
        readings.seconds = perf_counter() - began


def _rails(folder: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Watts of every labelled channel: millivolts times milliamperes."""
    for label in sorted(folder.glob("in*_label")):
        number = label.name[2:-6]
        volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
        if amperes.exists() and volts.exists():
            yield _text(label), lambda v=volts, a=amperes: int(v.read_text()) * int(a.read_text()) / 1e6  # type: ignore[misc]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _nvidia_smi() -> float:
    command = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    return float(done.stdout)
