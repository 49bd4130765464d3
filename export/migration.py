"""Sizes that move from activations into weights, where the model computes the same with them.

What one tensor scales channel by channel and linear layers take may be divided by a factor per channel
there, and be multiplied by it in the layers' weights (SmoothQuant, arXiv 2211.10438). No node is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lladav.export.checkpoint import Checkpoint
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.manifest import TOWER

Floats = npt.NDArray[np.float32]

FILE = "migration.npz"
"""Where a bundle keeps the factors, by name of the norm or layer that is divided."""


class Border(NamedTuple):
    """Channels that a norm or a linear layer scales and linear layers take.

    Attributes:
        source: whose weight, and bias where it has one, holds a value or a row per channel.
        linears: whose inputs these channels are.
    """

    source: str
    linears: tuple[str, ...]


def borders(geometry: Geometry) -> Iterator[Border]:
    """All that a model has."""
    yield from _language_borders(geometry.language)
    if geometry.vision is not None:
        yield from _tower_borders(geometry.vision)


def _language_borders(g: LanguageGeometry) -> Iterator[Border]:
    """Values go through attention channel by channel, and so do those of `up_proj` through SwiGLU, which
    multiplies with them. Where heads share values, a channel of these is several of `o_proj`'s, which is left out.
    """
    for number in range(g.layers):
        layer = f"model.layers.{number}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        yield Border(f"{layer}.input_layernorm", tuple(f"{attention}.{part}_proj" for part in "qkv"))
        if g.kv_heads == g.heads:
            yield Border(f"{attention}.v_proj", (f"{attention}.o_proj",))
        yield Border(f"{layer}.post_attention_layernorm", (f"{mlp}.gate_proj", f"{mlp}.up_proj"))
        yield Border(f"{mlp}.up_proj", (f"{mlp}.down_proj",))


def _tower_borders(g: VisionGeometry) -> Iterator[Border]:
    """As in the language model; GELU lets no factor through to `fc2`."""
    for number in range(g.layers):
        layer = f"{TOWER}.encoder.layers.{number}"
        attention = f"{layer}.self_attn"
        yield Border(f"{layer}.layer_norm1", tuple(f"{attention}.{part}_proj" for part in "qkv"))
        yield Border(f"{attention}.v_proj", (f"{attention}.out_proj",))
        yield Border(f"{layer}.layer_norm2", (f"{layer}.mlp.fc1",))


@dataclass(frozen=True)
class Migration:
    """Factors of some borders.

    Attributes:
        sources: `[channels]` float32 by norm or layer: what its values or rows are divided by.
        linears: likewise by linear layer: what the columns of its weights are multiplied by.
    """

    sources: Mapping[str, Floats] = field(default_factory=dict)
    linears: Mapping[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, geometry: Geometry, sources: Mapping[str, Floats]) -> Migration:
        """With these factors by border."""
        linears = {name: sources[b.source] for b in borders(geometry) if b.source in sources for name in b.linears}
        return cls(sources, linears)

    @classmethod
    def read(cls, bundle: Path, geometry: Geometry) -> Migration:
        """Of a bundle's folder; nothing where no size was moved."""
        if not (bundle / FILE).is_file():
            return cls()
        with np.load(bundle / FILE, allow_pickle=False) as stored:
            return cls.of(geometry, dict(stored))

    def write(self, bundle: Path) -> None:
        """Keeps the factors in a bundle's folder."""
        arrays: dict[str, Any] = dict(self.sources)
        np.savez(bundle / FILE, **arrays)

    def applied(self, tensor: str, rows: npt.NDArray[Any], start: int = 0) -> npt.NDArray[Any]:
        """Rows of a tensor as the bundle has them; float32 where they change.

        Args:
            tensor: name in the checkpoint.
            rows: `[n, ...]` as there.
            start: the first of them.
        """
        layer, _, part = tensor.rpartition(".")
        divided, multiplied = self.sources.get(layer), self.linears.get(layer) if part == "weight" else None
        if divided is not None:
            factors = divided[start : start + len(rows)]
            rows = rows.astype(np.float32) / factors.reshape(-1, *(1,) * (rows.ndim - 1))
        return rows if multiplied is None else rows.astype(np.float32) * multiplied


@dataclass(frozen=True)
class MigratedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are as a bundle has them; the model is the same."""

    migration: Migration = field(default_factory=Migration)

    @classmethod
    def of(cls, checkpoint: Checkpoint, migration: Migration) -> MigratedCheckpoint:
        """The checkpoint with sizes moved."""
        return cls(checkpoint.path, checkpoint.config, checkpoint.generation_config, checkpoint.tensors, migration)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """See `Checkpoint`."""
        return self.migration.applied(name, super().read_rows(name, start, stop), start)
