"""What this machine's memory and cores reach, measured once and kept.

Every rate is the best of many short runs, since a machine is never slower by itself than it was at its
best. Those for limits are of copies between arrays that no cache holds, and of matrix products of the
library that computes the passes, on layers that suit them. Predictions take curves of products as passes
have them (`product_rates`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime as ort
import platformdirs
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, ValidationInfo, field_validator

from lladav.errors import BackendError
from lladav.linear_layers import ProductForm
from lladav.machine import examine
from lladav.runtime.profiling.product_graph import plain_product
from lladav.runtime.profiling.product_rates import (
    ATTENTION,
    FORMS,
    INTEGERS,
    LAYER,
    ROWS,
    SMALL,
    Curve,
    measure_integers,
    measure_products,
    shortest,
)
from lladav.runtime.sessions import session_options

SECONDS = 8.0
"""Of one probe; making its graphs takes as much as two more."""

_FOR_LIMITS = 0.3
_COPIED = 1 << 27
_SIDE = 512
_TURN = 0.5
_SHOWN = 80


class Probe(BaseModel):
    """Rates of this machine's CPU.

    Attributes:
        processor: its name.
        threads: that took part.
        bandwidth: bytes a second that copies read and write, at best.
        operations: of float32 matrix products, a second, at best.
        integers: operations of each form of integers, a second, at best.
        products: what products of each form reach on weights that no cache holds, by their rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    threads: PositiveInt
    bandwidth: PositiveFloat
    operations: PositiveFloat
    integers: dict[ProductForm, PositiveFloat]
    products: dict[ProductForm, Curve]

    @field_validator("integers", "products")
    @classmethod
    def _of_every_form(cls, found: dict[ProductForm, object], info: ValidationInfo) -> dict[ProductForm, object]:
        if found.keys() != set(INTEGERS if info.field_name == "integers" else FORMS):
            raise ValueError(f"rates of {', '.join(found) or 'nothing'}")
        return found

    @field_validator("products")
    @classmethod
    def _by_rising_rows(cls, found: dict[ProductForm, Curve]) -> dict[ProductForm, Curve]:
        for form, curve in found.items():
            if not curve or any(low.rows >= high.rows for low, high in pairwise(curve)):
                raise ValueError(f"the curve of {form} does not rise")
        return found

    def highest(self, form: ProductForm) -> float:
        """Operations a second that products of a form reach at best; what floats reach, attention may."""
        return max(*(point.operations for point in self.products[form]), self.integers.get(form, self.operations))


def probe(threads: int | None = None, *, renew: bool = False) -> Probe:
    """The rates of this machine, from the user's cache folder or measured.

    Args:
        threads: of one operator; None is all cores that this process may use.
        renew: measure even if there are rates already.

    Raises:
        BackendError: they could not be measured.
    """
    count = threads or len(os.sched_getaffinity(0))
    file = _file(count)
    if not renew and (kept := _read(file)) is not None:
        return kept
    found = measure_apart(count)
    _keep(found, file)
    return found


def measure_apart(threads: int) -> Probe:
    """As `measure`, in a process of its own: what it allocates would stay in this one's heap, and in its peak.

    Raises:
        BackendError: that process failed.
    """
    program = f"from {__name__} import measure; print(measure({threads}).model_dump_json())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise BackendError(
            f"the rates of this machine could not be measured: {said}",
            cure="see whether there is memory for it: it takes 900 MB for a moment",
        )
    # Libraries print as well; the rates are last.
    *_, line = done.stdout.splitlines() or [""]
    try:
        return Probe.model_validate_json(line)
    except ValidationError as error:
        raise BackendError(
            f"the rates of this machine could not be read: {line[:_SHOWN]!r}",
            cure="see what prints that when `onnxruntime` is imported, and run again",
        ) from error


def measure(threads: int, seconds: float = SECONDS, clock: Callable[[], float] = perf_counter) -> Probe:
    """Copies and multiplies in turns, and then multiplies by form and rows.

    Args:
        threads: that take part.
        seconds: for all of it.
        clock: seconds; of the processor's time where one thread takes part and other programs keep the cores busy.
    """
    copying, multiplying = _Copies(threads), _Products(threads)
    bandwidth = operations = 0.0
    limits = _FOR_LIMITS * seconds
    end = clock() + limits
    while not operations or clock() < end:
        bandwidth = max(bandwidth, copying.best(min(_TURN, limits / 2), clock))
        operations = max(operations, multiplying.best(min(_TURN, limits / 2), clock))
    points = len(FORMS) * len(ROWS) + len(INTEGERS) * len(SMALL)
    each = (seconds - limits) / points
    return Probe(
        processor=examine().cpu,
        threads=threads,
        bandwidth=bandwidth,
        operations=operations,
        integers=measure_integers(threads, each, clock),
        products=measure_products(threads, each, clock),
    )


class _Copies:
    """Of one array to another, each thread a part; numpy copies without holding the interpreter."""

    def __init__(self, threads: int) -> None:
        source = np.ones(_COPIED, np.uint8)
        self._parts = list(zip(*(np.array_split(a, threads) for a in (np.zeros_like(source), source)), strict=True))
        self._pool = ThreadPoolExecutor(threads)

    def best(self, seconds: float, clock: Callable[[], float]) -> float:
        """Bytes a second."""

        def copy() -> None:
            list(self._pool.map(lambda part: np.copyto(*part), self._parts))

        return 2 * _COPIED / shortest(copy, seconds, clock)


class _Products:
    """Of float32 matrices."""

    def __init__(self, threads: int) -> None:
        rows = _SIDE * threads
        self._session = ort.InferenceSession(
            plain_product(), session_options(threads), providers=["CPUExecutionProvider"]
        )
        self._feeds = {"a": np.ones((rows, _SIDE), np.float32), "b": np.ones((_SIDE, _SIDE), np.float32)}
        self._operations = 2 * rows * _SIDE**2

    def best(self, seconds: float, clock: Callable[[], float]) -> float:
        """Operations a second."""
        return self._operations / shortest(lambda: self._session.run(None, self._feeds), seconds, clock)


def _file(threads: int) -> Path:
    """Where the rates of this machine are kept; another processor or library has others, as have other products."""
    machine = f"{platform.node()}-{examine().cpu}-{os.cpu_count()}-{threads}-{ort.__version__}"
    asked = f"{FORMS}-{ROWS}-{LAYER}-{ATTENTION}-{SMALL}"
    name = f"{hashlib.sha256(f'{machine}-{asked}'.encode()).hexdigest()[:16]}.json"
    return Path(platformdirs.user_cache_dir("lladav")) / "rates" / name


def _read(file: Path) -> Probe | None:
    try:
        return Probe.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(found: Probe, file: Path) -> None:
    """Writes the rates whole; a folder that cannot be written costs a probe the next time, no more."""
    beside = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(found.model_dump_json(), "utf-8")
        beside.replace(file)
    except OSError:
        with suppress(OSError):
            beside.unlink()
