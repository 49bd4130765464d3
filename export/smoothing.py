"""How much of an activation's size moves into weights before both are rounded, and what cannot be rounded.

For every border the strength of SmoothQuant (arXiv 2211.10438) is searched by the error of the layers' outputs,
as AWQ (2306.00978) does for weights alone. The error is estimated from the statistics of a calibration, without
activations: channels count as uncorrelated, and rounding an input as noise of a twelfth of a squared step. A few
huge values, as positions with massive activations have them, make steps so large that all other positions are
lost, and the mean output so large that this would not show. So it is the others' error, beside their output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lladav.export.checkpoint import Checkpoint
from lladav.export.graph_form import LinearForm
from lladav.export.migration import Migration, borders
from lladav.export.progress import Progress
from lladav.export.quantize import LEVELS, dequantized, round_to_nearest
from lladav.geometry import LanguageGeometry
from lladav.statistics import Activations, Statistics, bin_edges

Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]

WORST_ERRORS = {"int8": 0.1, "int4": 0.3}
"""Relative output error beyond which a layer is better no integers, by the type of its weights (docs/decisions.md)."""

_STRENGTHS = np.linspace(0, 1, 11, dtype=np.float32)
# What a channel counts at least, beside the largest: it may never have been seen.
_LEAST = np.float32(1e-4)
# The share of an input's values that are not huge.
_ORDINARY = 0.999
# Errors are means over rows of a weight, so some from all over it show them: 25 MB at the real size.
_ROWS, _RUNS = 512, 16


class Smoothing(NamedTuple):
    """What a search found.

    Attributes:
        migration: factors of the borders where they help.
        errors: by linear layer in integers, its relative output error with them.
        too_wrong: those of them that are better no integers.
    """

    migration: Migration
    errors: Mapping[str, float]
    too_wrong: frozenset[str]


@dataclass(frozen=True)
class LinearSample:
    """What the output error of a linear layer is estimated from.

    Attributes:
        weights: `[rows, in]` float32, some of its rows.
        seen: of its input.
        form: in which it is rounded.
    """

    weights: Floats
    seen: Activations
    form: LinearForm

    @cached_property
    def power(self) -> Sums:
        """See `ordinary_power`."""
        return ordinary_power(self.seen)

    def error(self, factors: Floats) -> float:
        """Mean square error of the output, summed over the rows.

        Args:
            factors: `[in]`, which inputs are divided by and columns multiplied by before both are rounded.
        """
        scaled = self.weights * factors
        power = self.power / np.square(factors, dtype=np.float64)
        lost = dequantized(round_to_nearest(scaled, self.form, np.float32)) - scaled
        error = power @ np.square(lost).sum(axis=0)
        if self.form.input_range is not None:
            step = float((self.seen.absmax / factors).max()) / LEVELS["int8"][1]
            # What is smaller than half a step is lost, and no more than that.
            error += np.minimum(step**2 / 12, power) @ np.square(scaled).sum(axis=0)
        return float(error)

    def relative_error(self, factors: Floats) -> float:
        """Root of `error` over the root mean square of the output."""
        output = float(self.power @ np.square(self.weights).sum(axis=0))
        return float(np.sqrt(self.error(factors) / output)) if output else 0.0

    @property
    def magnitudes(self) -> Floats:
        """`[in]`: by what its input's channels are told large from small."""
        if self.form.input_range is not None:
            return self.seen.absmax
        return np.sqrt(self.power).astype(np.float32)


def smooth(
    checkpoint: Checkpoint,
    g: LanguageGeometry,
    forms: Mapping[str, LinearForm],
    statistics: Statistics,
    progress: Progress,
) -> Smoothing:
    """Searches the factors of all borders of the language model.

    Args:
        checkpoint: with the weights, of which some rows are read.
        g: sizes.
        forms: of the linear layers that become integers.
        statistics: of the checkpoint's activations.
        progress: called with the bytes of weights that are done.

    Raises:
        CalibrationError: the statistics lack a layer.
    """
    found = [border for border in borders(g) if any(name in forms for name in border.linears)]
    progress.start("scales", sum(_bytes(checkpoint, border.linears) for border in found))
    sources: dict[str, Floats] = {}
    errors: dict[str, float] = {}
    too_wrong: set[str] = set()
    for border in found:
        layers = {
            name: LinearSample(_rows(checkpoint, f"{name}.weight"), statistics.of(name), forms[name])
            for name in border.linears
            if name in forms
        }
        factors = best_factors(list(layers.values()))
        errors |= {name: layer.relative_error(factors) for name, layer in layers.items()}
        wrong = {name for name, layer in layers.items() if errors[name] > WORST_ERRORS[layer.form.weights]}
        too_wrong |= wrong
        if len(wrong) < len(layers) and (factors != 1).any():
            sources[border.source] = factors
        progress.advance(_bytes(checkpoint, border.linears))
    return Smoothing(Migration.of(g, sources), errors, frozenset(too_wrong))


def best_factors(layers: Sequence[LinearSample]) -> Floats:
    """Factors `[in]` with the least error of layers that share an input; ones where none are better.

    Their geometric mean is 1, so that nothing comes nearer to the ends of float16.
    """
    inputs = _floored(np.max([layer.magnitudes for layer in layers], axis=0))
    columns = _floored(np.max([np.abs(layer.weights).max(axis=0) for layer in layers], axis=0))
    best = np.ones_like(inputs)
    least = sum(layer.error(best) for layer in layers)
    for strength in _STRENGTHS:
        logs = strength * np.log(inputs) - (1 - strength) * np.log(columns)
        factors = np.exp(logs - logs.mean())
        error = sum(layer.error(factors) for layer in layers)
        if error < least:
            best, least = factors, error
    return best


def ordinary_power(seen: Activations) -> Sums:
    """Mean squares `[in]` without an input's largest values.

    A histogram says how much less they are in all; this is taken from the largest channels.
    """
    counts, squares = seen.histogram, np.square(bin_edges(), dtype=np.float64)
    ordinary = np.diff(np.minimum(np.cumsum(counts), _ORDINARY * counts.sum()), prepend=0)
    share = float(ordinary @ squares / (counts @ squares))
    ordered = np.sort(seen.mean_square)
    # What all channels have together if none has more than this one.
    together = np.cumsum(ordered) + ordered * np.arange(len(ordered))[::-1]
    most = np.interp(share * ordered.sum(), np.append(0, together), np.append(0, ordered))
    power: Sums = np.minimum(seen.mean_square, most)
    return power


def _floored(magnitudes: Floats) -> Floats:
    """Positive ones, for a logarithm."""
    largest = magnitudes.max()
    floored: Floats = np.maximum(magnitudes, _LEAST * largest if largest else np.float32(1))
    return floored


def _rows(checkpoint: Checkpoint, tensor: str) -> Floats:
    """Some rows of a weight, in runs from all over it; all where it is small."""
    count = checkpoint.tensors[tensor].shape[0]
    if count <= _ROWS:
        return checkpoint.read_rows(tensor, 0, count).astype(np.float32)
    length = _ROWS // _RUNS
    starts = np.linspace(0, count - length, _RUNS).astype(int).tolist()
    return np.concatenate([checkpoint.read_rows(tensor, s, s + length) for s in starts]).astype(np.float32)


def _bytes(checkpoint: Checkpoint, linears: Sequence[str]) -> int:
    return sum(checkpoint.tensors[f"{name}.weight"].bytes for name in linears)
