"""What a verification reports, and how much a precision may deviate from PyTorch in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lladav.errors import VerificationError
from lladav.manifest import Manifest, Precision

Floats = npt.NDArray[np.float32]


class Tolerance(NamedTuple):
    """Largest difference allowed, relative to the largest magnitude of the reference.

    Attributes:
        stored: of values that were only converted: half a unit in the last place.
        layer: of one layer on PyTorch's input, relative to what it adds to the residual stream.
        whole: of what all layers compute one after the other.
    """

    stored: float
    layer: float
    whole: float


# Measured on checkpoints with random weights and sharp attention, which magnify errors more than
# trained ones: 1e-6 per layer and 1e-5 in all in fp32, where only the order of sums differs; 8
# roundings (of 2**-11 or 2**-8) per layer and 40 in all in the narrow types. A wrong weight matrix,
# scale or mask changes a layer by tenths of what it adds, or by all of it.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(stored=0.0, layer=2e-5, whole=1e-4),
    "fp16": Tolerance(stored=2.0**-11, layer=20 * 2.0**-11, whole=100 * 2.0**-11),
    "bf16": Tolerance(stored=2.0**-8, layer=20 * 2.0**-8, whole=100 * 2.0**-8),
}
# An input that lies between two integers becomes the one or the other, depending on what was rounded
# before, and then differs by a step of 1/127 of the range. Measured in fp16: 0.04 per layer and 0.06 in all on the
# demo checkpoint, 0.19 in all with random weights and sharp attention; in fp32, where nearly none is rounded the
# other way, as without integers.
_INT8_INPUTS = Tolerance(stored=0.0, layer=0.08, whole=TOLERANCES["bf16"].whole)
# ONNX Runtime on the CPU rounds what it multiplies with integers to 8 bits by itself; 0.18 was measured.
_INTEGERS_ON_CPU = TOLERANCES["bf16"]
# Of keys and values of the prompt in int8, held against those that are not rounded: 0.01 was measured on the demo
# checkpoint, and 0.05 on one of random weights and sharp attention. That they are the nearest integers is compared too.
_INT8_PROMPT_KV = 0.1
# Rounding of the residual stream itself, which is float32 in every precision.
_RESIDUAL = 4 * 2.0**-23


def tolerance_of(manifest: Manifest) -> Tolerance:
    """What the graphs of a bundle may deviate from PyTorch on the same weights."""
    own = TOLERANCES[manifest.precision]
    if manifest.quantization is None or manifest.quantization.form != "w8a8":
        return own
    return own._replace(layer=max(own.layer, _INT8_INPUTS.layer), whole=max(own.whole, _INT8_INPUTS.whole))


def tolerance_on_cpu(manifest: Manifest) -> float:
    """What logits may deviate when ONNX Runtime computes them, as `Tolerance.whole`."""
    whole = tolerance_of(manifest).whole
    return whole if manifest.quantization is None else max(whole, _INTEGERS_ON_CPU.whole)


def tolerance_of_cached_steps(manifest: Manifest) -> float:
    """What logits of a step may deviate that reads the prompt's keys and values, as `Tolerance.whole`."""
    whole = tolerance_of(manifest).whole
    return whole if manifest.prompt_kv is None else max(whole, _INT8_PROMPT_KV)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        component: vision_encoder, connector, prompt, denoiser or denoising.
        what: which output, and on which input.
        max_abs_error: largest difference; None where nothing was compared.
        tolerance: what it may be.
        note: where the largest difference is, or why nothing was compared.
    """

    component: str
    what: str
    max_abs_error: float | None
    tolerance: float | None
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        measured = "" if self.max_abs_error is None else f": {self.max_abs_error:.3g} (tolerance {self.tolerance:.3g})"
        return f"{self.component}, {self.what}{measured}" + (f", {self.note}" if self.note else "")


@dataclass(frozen=True)
class VerificationReport:
    """All comparisons in the order of the computation, and how long they took."""

    rows: tuple[Row, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)


class DeviationError(VerificationError):
    """A verification that failed, with its report."""

    def __init__(self, bundle: Path, report: VerificationReport) -> None:
        failed = "".join(f"\n  {row}" for row in report.rows if not row.passed)
        super().__init__(
            f"{bundle} does not compute what the checkpoint computes in PyTorch:{failed}",
            cure="mend the first of these, the others may follow from it: see that the checkpoint is the one that was "
            "exported, and the bundle whole (`lladav inspect BUNDLE --checksums`), or export in a wider --dtype",
        )
        self.report = report


class Comparison:
    """The worst of several differences under one heading.

    Args:
        component: see `Row`.
        what: see `Row`.
        relative: see `Tolerance`.

    Attributes:
        row: the difference that is the largest beside its tolerance.
    """

    def __init__(self, component: str, what: str, relative: float) -> None:
        self._heading = (component, what)
        self._relative = relative
        self._share = -1.0
        self.row = Row(component, what, None, None, True)

    def add(self, got: Floats, expected: Floats, where: str = "", *, before: Floats | None = None) -> None:
        """Compares two arrays of one shape.

        Args:
            got: from the bundle.
            expected: from PyTorch.
            where: becomes the note if this is the worst.
            before: what the reference was added to; the tolerance is relative to what was added.
        """
        error = float(np.abs(got - expected).max())
        magnitude = float(np.abs(expected).max())
        if before is None:
            tolerance = self._relative * magnitude
        else:
            tolerance = self._relative * float(np.abs(expected - before).max()) + _RESIDUAL * magnitude
        share = error / tolerance if tolerance else (math.inf if error else 0.0)
        if math.isnan(share):
            share = math.inf
        if share > self._share:
            self._share = share
            self.row = Row(*self._heading, error, tolerance, share <= 1, where)
