"""The PyTorch model with one layer's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lladav.export.checkpoint import Checkpoint
from lladav.export.quantize import dequantized
from lladav.export.reference import LanguageLayer, LladaV, rotary_tables, rotate
from lladav.export.stored_integers import StoredIntegers
from lladav.geometry import Geometry
from lladav.manifest import CONNECTOR, TOWER

Floats = npt.NDArray[np.float32]

# Rows of the head that are multiplied at once: 0.5 GB at the real size.
_HEAD_ROWS = 1 << 15


class LayerOutput(NamedTuple):
    """What one layer of the language model computes.

    Attributes:
        scope: name of the layer in the graph.
        hidden: `[B, L, D]`.
        key, value: `[B, H_kv, L, Dh]`, keys after rotary embedding.
    """

    scope: str
    hidden: Floats
    key: Floats
    value: Floats


class StreamedReference:
    """`LladaV` on the values of a checkpoint, in float32 arithmetic whatever their type.

    Args:
        checkpoint: the source.
        geometry: of the model.
        integers: linear layers that compute with what a bundle's integers stand for instead.
    """

    def __init__(self, checkpoint: Checkpoint, geometry: Geometry, integers: StoredIntegers | None = None) -> None:
        self._checkpoint = checkpoint
        self._integers = integers
        self._language = geometry.language
        with torch.device("meta"):
            self._model = LladaV(geometry).requires_grad_(False)
        self._names = {module: name for name, module in self._model.named_modules()}
        steps = {name: integers.input_step(name) for name in integers} if integers is not None else {}
        for name, step in steps.items():
            if step is not None:
                self._model.get_submodule(name).register_forward_pre_hook(partial(_round_input, step))

    def embedding(self, start: int, stop: int) -> Floats:
        """Rows of the embedding table `[stop - start, D]`."""
        return self._rows("model.embed_tokens.weight", start, stop)

    def newline(self) -> Floats:
        """`[D]`."""
        return self._rows("model.image_newline", 0, self._language.hidden_size)

    def vision(self, pixels: Floats) -> Iterator[tuple[str, Floats]]:
        """Scope and output `[T, tokens, D_vision]` of the tower's embedding and of every layer.

        Args:
            pixels: `[T, 3, S, S]`.
        """
        tower = self._model.get_submodule(TOWER)
        x = torch.from_numpy(pixels)
        layers = tower.get_submodule("encoder.layers").named_children()
        for scope, module in (("embeddings", tower.get_submodule("embeddings")), *_scoped(layers)):
            with self._weights(module):
                x = module(x)
            yield scope, x.numpy()

    def connect(self, features: Floats) -> Floats:
        """Tower features `[T, tokens, D_vision]` -> `[T, tokens, D]`."""
        projector = self._model.get_submodule(CONNECTOR)
        with self._weights(projector):
            return _numpy(projector(torch.from_numpy(features)))

    def language(self, embeds: Floats) -> Iterator[LayerOutput]:
        """Every layer's output for a sequence `[B, L, D]` without padding."""
        g = self._language
        x = torch.from_numpy(embeds)
        cos, sin = rotary_tables(torch.arange(x.shape[1])[None], g.head_size, g.rope_theta)
        for scope, layer in _scoped(self._model.get_submodule("model.layers").named_children()):
            assert isinstance(layer, LanguageLayer)
            with self._weights(layer):
                normed = layer.input_layernorm(x)
                key, value = (
                    p(normed).unflatten(-1, (-1, g.head_size)).transpose(1, 2)
                    for p in (layer.self_attn.k_proj, layer.self_attn.v_proj)
                )
                x = layer(x, cos, sin, None)
            yield LayerOutput(scope, x.numpy(), _numpy(rotate(key, cos, sin)), _numpy(value))

    def logits(self, hidden: Floats) -> Floats:
        """`[B, R, D]` -> `[B, R, V]`."""
        norm = self._model.get_submodule("model.norm")
        with self._weights(norm):
            normed = norm(torch.from_numpy(hidden))
        rows = self._language.vocab_rows
        blocks = (self._tensor("lm_head.weight", i, min(i + _HEAD_ROWS, rows)) for i in range(0, rows, _HEAD_ROWS))
        return _numpy(torch.cat([nn.functional.linear(normed, block) for block in blocks], dim=-1))

    def whole(self) -> LladaV:
        """The model with all weights of the language model and its head, without embedding and vision."""
        for name in ("model.layers", "model.norm", "lm_head"):
            self._load(self._model.get_submodule(name))
        return self._model

    def _rows(self, name: str, start: int, stop: int) -> Floats:
        return _numpy(self._tensor(name, start, stop))

    def _tensor(self, name: str, start: int, stop: int) -> Tensor:
        if self._integers is not None and (linear := name.removesuffix(".weight")) in self._integers:
            return torch.from_numpy(dequantized(self._integers.rows(linear, start, stop)))
        stored = self._checkpoint.read_rows(name, start, stop)
        if stored.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(stored).float()

    @contextmanager
    def _weights(self, module: nn.Module) -> Iterator[None]:
        self._load(module)
        yield
        module.to("meta")

    def _load(self, module: nn.Module) -> None:
        prefix = self._names[module]
        state = {name: self._tensor(f"{prefix}.{name}", 0, len(value)) for name, value in module.state_dict().items()}
        module.load_state_dict(state, assign=True)


def _round_input(step: float, _: nn.Module, given: tuple[Tensor]) -> Tensor:
    """What a layer's input becomes in int8."""
    return (given[0] / step).round().clamp(-128, 127) * step


def _scoped(layers: Iterator[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    return ((f"layers.{number}", layer) for number, layer in layers)


def _numpy(x: Tensor) -> Floats:
    return x.contiguous().numpy()
