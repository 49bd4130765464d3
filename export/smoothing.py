"""How much of an activation's size moves into weights before both are rounded, and what cannot be rounded.

For every border the strength of SmoothQuant (arXiv 2211.10438) is searched by the error of the layers' outputs,
as AWQ (2306.00978) does for weights alone. The error is estimated (`linear_sample.py`), and behind a GELU it counts as
it shows there: most of what such a layer gives may be cut off, and its error with it, or the other way round.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lladav.export.checkpoint import Checkpoint
from lladav.export.coverage import linear_layers
from lladav.export.expected_inputs import ExpectedInputs, behind_gelu
from lladav.export.gelu import Passed, mean_before_gelu, through_gelu
from lladav.export.graph_form import LinearForm
from lladav.export.linear_sample import InputSizes, LinearSample, sampled, sampled_rows
from lladav.export.migration import Border, Migration, borders
from lladav.export.progress import Progress
from lladav.geometry import Geometry
from lladav.manifest import LANGUAGE_LAYERS
from lladav.statistics import Statistics

Floats = npt.NDArray[np.float32]

WORST_ERRORS = {"int8": 0.1, "int4": 0.3}
"""Relative output error beyond which a layer is better no integers, by the type of its weights (docs/decisions.md)."""

_STRENGTHS = np.linspace(0, 1, 11, dtype=np.float32)
# What a channel counts at least, beside the largest: it may never have been seen.
_LEAST = np.float32(1e-4)
# A quarter of what float16 holds.
_LARGEST_INPUT = np.float32(1 << 14)


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


def smooth(
    checkpoint: Checkpoint,
    geometry: Geometry,
    forms: Mapping[str, LinearForm],
    statistics: Statistics | None,
    progress: Progress,
    *,
    move_language: bool = True,
) -> Smoothing:
    """Searches the factors of all borders, and the layers that no integers fit.

    Layers of the vision tower and the connector that the statistics do not know are judged by what norms give
    (`expected_inputs.py`); the language model's are left as they are without any.

    Args:
        checkpoint: with the weights, of which some rows are read.
        geometry: of the model.
        forms: of the linear layers that become integers.
        statistics: of the checkpoint's activations.
        progress: called with the bytes of weights that are done.
        move_language: whether sizes may be moved in the language model too.

    Raises:
        CalibrationError: the statistics lack a layer of the language model.
    """
    known = [name for name in linear_layers(geometry) if statistics or not name.startswith(LANGUAGE_LAYERS)]
    judged = {name: forms[name] for name in known if name in forms}
    found = [border for border in borders(geometry) if any(name in judged for name in border.linears)]
    alone = [Border("", (name,)) for name in judged if not any(name in border.linears for border in found)]
    progress.start("scales", sum(checkpoint.tensors[f"{name}.weight"].bytes for name in judged))
    samples = _Samples(checkpoint, judged, statistics)
    sources: dict[str, Floats] = {}
    errors: dict[str, float] = {}
    too_wrong: set[str] = set()
    for source, linears in (*found, *alone):
        layers = {name: samples.of(name) for name in linears if name in judged}
        fixed = not source or (source.startswith(LANGUAGE_LAYERS) and not move_language)
        factors = no_factors(layers.values()) if fixed else best_factors(layers.values())
        errors |= {name: layer.relative_error(factors) for name, layer in layers.items()}
        wrong = {name for name, layer in layers.items() if errors[name] > WORST_ERRORS[layer.form.weights]}
        too_wrong |= wrong
        if len(wrong) < len(layers) and (factors != 1).any():
            sources[source] = factors
        progress.advance(sum(checkpoint.tensors[f"{name}.weight"].bytes for name in layers))
    return Smoothing(Migration.of(geometry, sources), errors, frozenset(too_wrong))


def no_factors(layers: Collection[LinearSample]) -> Floats:
    """Ones `[in]`, which change nothing."""
    return np.ones_like(next(iter(layers)).inputs.largest)


def best_factors(layers: Collection[LinearSample]) -> Floats:
    """Factors `[in]` with the least error of layers that share an input; ones where none are better.

    Their geometric mean is 1, so that nothing comes nearer to the ends of float16, but where this would take an
    input beyond it.
    """
    largest = np.max([layer.inputs.largest for layer in layers], axis=0)
    inputs = _floored(np.max([layer.magnitudes for layer in layers], axis=0))
    columns = _floored(np.max([np.abs(layer.weights).max(axis=0) for layer in layers], axis=0))
    best = no_factors(layers)
    least = sum(layer.error(best) for layer in layers)
    for strength in _STRENGTHS:
        logs = strength * np.log(inputs) - (1 - strength) * np.log(columns)
        factors = np.maximum(np.exp(logs - logs.mean()), largest / _LARGEST_INPUT)
        error = sum(layer.error(factors) for layer in layers)
        if error < least:
            best, least = factors, error
    return best


class _Samples:
    """Of the layers of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, forms: Mapping[str, LinearForm], statistics: Statistics | None) -> None:
        self._checkpoint, self._forms = checkpoint, forms
        self._statistics = statistics
        self._observed = frozenset(statistics.linears) if statistics else frozenset()
        self._expected = ExpectedInputs(checkpoint)

    def of(self, linear: str) -> LinearSample:
        weights, inputs = sampled_rows(self._checkpoint, f"{linear}.weight"), self._inputs(linear)
        return LinearSample(weights, inputs, self._forms[linear], self._passed(linear, weights, inputs))

    def _inputs(self, linear: str) -> InputSizes:
        if self._statistics and (linear in self._observed or linear.startswith(LANGUAGE_LAYERS)):
            return InputSizes.of(self._statistics.of(linear))
        return self._expected.sizes(linear)

    def _passed(self, linear: str, weights: Floats, inputs: InputSizes) -> Passed | None:
        behind = behind_gelu(linear)
        if behind is None:
            return None
        if self._statistics is None or behind not in self._observed:
            mean, deviation = self._expected.outputs(linear)
            return through_gelu(sampled(mean), sampled(deviation))
        # Where a layer's outputs lie is not observed, but what GELU leaves of them is.
        deviation = np.sqrt(np.square(weights, dtype=np.float64) @ np.square(inputs.deviation))
        power = sampled(InputSizes.of(self._statistics.of(behind)).power)
        return Passed(power, through_gelu(mean_before_gelu(deviation, power), deviation).slope)


def _floored(magnitudes: Floats) -> Floats:
    """Positive ones, for a logarithm."""
    largest = magnitudes.max()
    floored: Floats = np.maximum(magnitudes, _LEAST * largest if largest else np.float32(1))
    return floored
