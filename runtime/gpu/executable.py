"""A compiled graph on a GPU, whatever compiled it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lladav.runtime.gpu.device import Address


@dataclass(frozen=True)
class Tensor:
    """Where an input or output of a graph lies.

    Attributes:
        address: of device memory; aligned to 256 bytes.
        shape: of this pass; a dimension may be 0, and then the address may be 0.
    """

    address: Address
    shape: tuple[int, ...]


class LayerTime(Protocol):
    """How long a layer of a pass took in one run."""

    @property
    def name(self) -> str:
        """That the library gave it."""

    @property
    def nodes(self) -> frozenset[str]:
        """Of the graph, that it computes; empty where the library does not tell."""

    @property
    def ms(self) -> float: ...


class BoundPass(Protocol):
    """One graph with shapes and addresses fixed."""

    capturable: bool
    """Whether `enqueue` may be captured by the device; else the library captures by itself or cannot."""

    def enqueue(self) -> None:
        """Puts the pass on the device's stream.

        Raises:
            BackendError: the library refuses.
        """

    def time_layers(self, runs: int) -> Sequence[Sequence[LayerTime]]:
        """Runs the pass by itself, beside captured graphs, and times its layers.

        Args:
            runs: after one that warms up.

        Returns:
            Of each run all layers, in order; nothing where the library has no profiler.

        Raises:
            BackendError: the library refuses.
        """


class Executable(Protocol):
    """One graph of the bundle, loaded.

    Attributes:
        weights: bytes on the device.
        scratch: bytes of activations that the largest pass needs, where they are ours to give;
            0 where the library allocates them by itself.
    """

    weights: int
    scratch: int

    def bind(self, tensors: Mapping[str, Tensor], *, profile: str, scratch: Address = 0) -> BoundPass:
        """Fixes where a pass reads and writes; runs nothing.

        Args:
            tensors: every input and output of the graph by its name in the manifest.
            profile: name of the pass, as in the engine's record: `refresh`, `step` or what
                `graph_profiles` calls it.
            scratch: at least `scratch` bytes, shared by passes that never run at the same time.

        Raises:
            BackendError: a shape that the graph was not built for.
        """

    def keep_compiled(self) -> None:
        """Keeps for the next process what the library compiled for passes that ran, if it did."""
