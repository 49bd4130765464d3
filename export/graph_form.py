"""In which numbers a bundle's graphs hold their weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lladav.errors import OptionError
from lladav.export.coverage import layers_with_head, linear_layers
from lladav.export.input_ranges import input_range
from lladav.export.migration import Migration
from lladav.geometry import Geometry, LanguageGeometry
from lladav.manifest import LANGUAGE_LAYERS, PromptKV, Quantization, TensorType
from lladav.statistics import Statistics

# TensorRT on a Jetson Orin Nano failed at a head of 622 MB in one product (docs/decisions.md).
_HEAD_PART_BYTES = 1 << 27
# Of a head in 8 bits, whose logits the CPU multiplies by the size of their row: those of 64 rows stay in its caches
# then, and the mid-size model's step takes 0.92 of the time that it takes with 31,616 tokens.
_HEAD_PART_TOKENS = 1 << 13


InputCodes = Literal["int8", "uint8"]

INPUT_ZEROS: dict[InputCodes, int] = {"int8": 0, "uint8": 128}
"""Which integer stands for 0 in a layer's input; both types round the same values to the same ones."""


@dataclass(frozen=True)
class LinearForm:
    """A linear layer in integers.

    Attributes:
        weights: type of its weights.
        block: input features that share a scale; None for one scale per output feature.
        input_range: largest magnitude of its input, which becomes int8; None leaves the input in
            the compute type.
        widened: whether its 4-bit weights become 8-bit ones in graphs that round rows.
    """

    weights: Literal["int8", "int4"]
    block: int | None = None
    input_range: float | None = None
    widened: bool = False


@dataclass(frozen=True)
class GraphForm:
    """What a geometry leaves open about its graphs.

    Attributes:
        compute: type of matrix products, and of the weights that are not integers.
        head_parts: into how many products along the vocabulary the head is split.
        linears: by name of the layer in the checkpoint, those in integers.
        input_codes: type of the integers that inputs become: engines multiply int8, and ONNX Runtime is
            fast on x86 where the one side is unsigned (docs/decisions.md).
        rounds_rows: whether layers of 8-bit weights round inputs of no known range too, each row by its own
            largest magnitude: ONNX Runtime multiplies fast what are 8 bits on both sides.
        prompt_kv: integers in which the denoiser takes and returns the prompt's keys and values.
    """

    compute: TensorType
    head_parts: int = 1
    linears: Mapping[str, LinearForm] = field(default_factory=dict)
    input_codes: InputCodes = "int8"
    rounds_rows: bool = False
    prompt_kv: PromptKV | None = None


def head_parts(g: LanguageGeometry, width: int, *, quantized: bool = False) -> int:
    """Parts of the head such that each is easily built on every target.

    Args:
        g: sizes.
        width: bytes of a weight, to which a builder may widen one in 8 bits.
        quantized: whether it is in 8 bits; each part is then also small enough for the CPU's caches.
    """
    parts = -(-g.vocab_rows * g.hidden_size * width // _HEAD_PART_BYTES)
    return max(parts, -(-g.vocab_rows // _HEAD_PART_TOKENS)) if quantized else parts


def matching_layers(geometry: Geometry, patterns: Sequence[str]) -> tuple[str, ...]:
    """The linear layers that a name or a pattern with `*` means, in the model's order.

    Raises:
        OptionError: a pattern means none.
    """
    layers = tuple(linear_layers(geometry))
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            raise OptionError(
                f"no linear layer is called {pattern!r}", cure=f"choose of {layers[0]}, ..., {layers[-1]}, or use *"
            )
    return tuple(name for name in layers if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def linear_forms(
    geometry: Geometry,
    quantization: Quantization,
    statistics: Statistics | None = None,
    migration: Migration | None = None,
) -> dict[str, LinearForm]:
    """The form of every linear layer that becomes integers.

    Those of the vision tower and of the connector get 8-bit weights, whatever the language model's get.

    Args:
        geometry: of the model.
        quantization: what was asked for.
        statistics: of the language model's layers, whose inputs become integers by them, for `w8a8`.
        migration: of sizes from these inputs into weights.

    Raises:
        CalibrationError: the statistics lack a layer, or say nothing about its input.
    """
    forms = {}
    for name, (_, inputs) in layers_with_head(geometry).items():
        integers = quantization.integers(name, inputs)
        if integers is None:
            continue
        if integers.bits == 4:
            forms[name] = LinearForm("int4", integers.block, widened=quantization.widened)
        else:
            seen = statistics if quantization.form == "w8a8" and name.startswith(LANGUAGE_LAYERS) else None
            factors = migration.linears.get(name) if migration else None
            forms[name] = LinearForm("int8", input_range=input_range(seen, name, factors) if seen else None)
    return forms
