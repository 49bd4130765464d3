"""Sizes of inputs in the vision tower and the connector that nobody observed.

What a LayerNorm gives is spread by its weight around its bias, whatever the picture, and a linear layer behind it gives
sums of that, which count as normally distributed. Channels count as independent, attention as handing values on as they
are, and the tower's output, which no norm ends, as equally large in all channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lladav.export.checkpoint import Checkpoint
from lladav.export.gelu import through_gelu
from lladav.export.linear_sample import InputSizes
from lladav.manifest import CONNECTOR

Floats = npt.NDArray[np.float32]


class Spread(NamedTuple):
    """A distribution per channel: `[channels]` float32 means and standard deviations."""

    mean: Floats
    deviation: Floats


def behind_gelu(linear: str) -> str | None:
    """The layer that takes a layer's output through GELU; None where nothing or something else is between."""
    first = {"fc1": "fc2", f"{CONNECTOR}.0": f"{CONNECTOR}.2"}
    return next((linear.removesuffix(one) + other for one, other in first.items() if linear.endswith(one)), None)


class ExpectedInputs:
    """Of every linear layer of the tower and the connector, from weights alone.

    Args:
        checkpoint: with the weights, of which whole layers are read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._outputs: dict[str, Spread] = {}

    def sizes(self, linear: str) -> InputSizes:
        """Of a layer's input. What a LayerNorm gives never exceeds `largest`; others hardly ever do."""
        mean, deviation = self._inputs(linear)
        power = np.square(mean, dtype=np.float64) + np.square(deviation, dtype=np.float64)
        return InputSizes(power, np.abs(mean) + np.sqrt(np.float32(len(mean))) * deviation)

    def outputs(self, linear: str) -> Spread:
        """Of a layer, bias included."""
        if linear not in self._outputs:
            mean, deviation = self._inputs(linear)
            weights, bias = self._read(f"{linear}.weight"), self._read(f"{linear}.bias")
            spread = np.sqrt(np.square(weights) @ np.square(deviation))
            self._outputs[linear] = Spread(weights @ mean + bias, spread)
        return self._outputs[linear]

    def _inputs(self, linear: str) -> Spread:
        block, _, part = linear.rpartition(".")
        layer = block.rpartition(".")[0]
        if part in ("q_proj", "k_proj", "v_proj"):
            return self._normed(f"{layer}.layer_norm1")
        if part == "fc1":
            return self._normed(f"{layer}.layer_norm2")
        if part == "out_proj":
            return self.outputs(f"{block}.v_proj")
        if linear == f"{CONNECTOR}.0":
            channels = self._checkpoint.tensors[f"{linear}.weight"].shape[1]
            return Spread(np.zeros(channels, np.float32), np.ones(channels, np.float32))
        first = f"{CONNECTOR}.0" if block == CONNECTOR else f"{block}.fc1"
        size = np.sqrt(through_gelu(*self.outputs(first)).power).astype(np.float32)
        return Spread(np.zeros_like(size), size)

    def _normed(self, norm: str) -> Spread:
        return Spread(self._read(f"{norm}.bias"), np.abs(self._read(f"{norm}.weight")))

    def _read(self, tensor: str) -> Floats:
        rows = self._checkpoint.tensors[tensor].shape[0]
        values: Floats = self._checkpoint.read_rows(tensor, 0, rows).astype(np.float32)
        return values
