"""The linear layers of a model, in the numbers that passes multiply them in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lladav.geometry import LanguageGeometry, VisionGeometry
from lladav.manifest import (
    CONNECTOR,
    HEAD,
    LANGUAGE_LAYERS,
    TOWER,
    Integers,
    Manifest,
    Precision,
    PromptKV,
    Quantization,
)
from lladav.memory_plan import BYTES

ProductForm = Literal["float", "int8", "int4", "w8a8", "attention"]
"""What products multiply: weights as they are held, in `w8a8` by inputs that are integers too; or activations."""

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Numbers:
    """In which numbers passes compute.

    Attributes:
        precision: of matrix products, and of weights that are no integers.
        quantization: which linear layers are integers; None for none.
        cpu: whether ONNX Runtime computes on the CPU, which widens float16 to float32, and 4 bits to 8 where
            `quantization` says so, when it loads a graph, and whose keys and values are float32.
        prompt_kv: integers in which a refresh hands keys and values to steps; None for none.
    """

    precision: Precision
    quantization: Quantization | None = None
    cpu: bool = False
    prompt_kv: PromptKV | None = None

    @classmethod
    def of(cls, manifest: Manifest, *, cpu: bool = False) -> Numbers:
        """Those of a bundle."""
        return cls(manifest.precision, manifest.quantization, cpu, manifest.prompt_kv)

    @property
    def width(self) -> int:
        """Bytes of a weight, key or value that is no integer."""
        return FLOAT if self.cpu else BYTES[self.precision]

    def integers(self, layer: str, inputs: int) -> Integers | None:
        """What a linear layer's weights are; None for floats."""
        if self.quantization is None:
            return None
        integers = self.quantization.integers(layer, inputs)
        widens = self.cpu and self.quantization.widened
        return Integers(8) if widens and integers is not None and integers.bits == 4 else integers

    def form(self, layer: str, inputs: int) -> ProductForm:
        """What a linear layer's product multiplies."""
        integers = self.integers(layer, inputs)
        if integers is None:
            return "float"
        if integers.bits == 4:
            return "int4"
        return "w8a8" if self._rounds_inputs(layer) else "int8"

    def _rounds_inputs(self, layer: str) -> bool:
        """Whether a layer of 8-bit weights multiplies integers: on the CPU all of the denoiser do."""
        if self.cpu:
            return layer == HEAD or layer.startswith(LANGUAGE_LAYERS)
        assert self.quantization is not None
        return self.quantization.form == "w8a8" and layer.startswith(LANGUAGE_LAYERS)


class Linear(NamedTuple):
    """A linear layer, by its name in the checkpoint."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def products(self) -> int:
        """Multiplications for one row."""
        return self.inputs * self.outputs


def bytes_of(layers: Iterable[Linear], numbers: Numbers) -> int:
    """Of weights, scales and biases."""
    total = 0
    for layer in layers:
        integers = numbers.integers(layer.name, layer.inputs)
        if integers is None:
            total += layer.products * numbers.width
        else:
            scales = layer.outputs * (layer.inputs // integers.block if integers.block else 1)
            total += layer.products * integers.bits // 8 + scales * numbers.width
        total += layer.outputs * numbers.width if layer.bias else 0
    return total


def head_layer(g: LanguageGeometry) -> Linear:
    """Of the language model: what its logits are made with."""
    return Linear(HEAD, g.hidden_size, g.vocab_rows)


def block_layers(g: LanguageGeometry, number: int) -> tuple[Linear, ...]:
    """Of one block of the language model, keys and values first."""
    name, wide, inner = f"{LANGUAGE_LAYERS}{number}", g.hidden_size, g.intermediate_size
    queries, shared = g.heads * g.head_size, g.kv_heads * g.head_size
    return (
        Linear(f"{name}.self_attn.k_proj", wide, shared),
        Linear(f"{name}.self_attn.v_proj", wide, shared),
        Linear(f"{name}.self_attn.q_proj", wide, queries),
        Linear(f"{name}.self_attn.o_proj", queries, wide),
        Linear(f"{name}.mlp.gate_proj", wide, inner),
        Linear(f"{name}.mlp.up_proj", wide, inner),
        Linear(f"{name}.mlp.down_proj", inner, wide),
    )


def tower_layers(g: VisionGeometry) -> Iterable[Linear]:
    """Of the vision tower, in the order of its blocks."""
    d, inner = g.hidden_size, g.intermediate_size
    for number in range(g.layers):
        name = f"{TOWER}.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield Linear(f"{name}.self_attn.{part}", d, d, bias=True)
        yield Linear(f"{name}.mlp.fc1", d, inner, bias=True)
        yield Linear(f"{name}.mlp.fc2", inner, d, bias=True)


def connector_layers(vision: VisionGeometry, language: LanguageGeometry) -> Iterable[Linear]:
    """Between vision tower and language model."""
    yield Linear(f"{CONNECTOR}.0", vision.hidden_size, language.hidden_size, bias=True)
    yield Linear(f"{CONNECTOR}.2", language.hidden_size, language.hidden_size, bias=True)
