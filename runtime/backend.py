"""What computes the graphs: the seam between the pipeline and ONNX Runtime, TensorRT or whatever is there."""

from __future__ import annotations

import os
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.sessions import BoundPass, open_session
from lladav.runtime.tracing import span
from lladav.runtime.window import WindowMaker

if TYPE_CHECKING:
    from lladav.runtime.gpu.frame_reader import FrameReader

Floats = npt.NDArray[np.float32]


class TileEncoder(Protocol):
    """The vision encoder and the connector."""

    def encode(self, pixels: Floats, out: Floats) -> dict[str, float]:
        """Computes features of one bucket of crops.

        Args:
            pixels: `[T, 3, S, S]` float32.
            out: `[T, N, D]` float32, written to.

        Returns:
            Milliseconds per stage.
        """


class Backend(Protocol):
    """Loads the graphs of one bundle.

    Attributes:
        name: as it is chosen: `cpu`, `ort-cuda`, `tensorrt` or `tensorrt-rtx`.
        setup: what else decides how long passes take, such as the number of threads.
        sequences: most that are computed side by side; None is any number.
        fallbacks: why something is slower than it should be; empty where nothing is.
    """

    name: str
    setup: str
    sequences: int | None

    @property
    def fallbacks(self) -> tuple[str, ...]: ...

    def denoiser(self, table: EmbeddingTable) -> WindowMaker:
        """Loads the denoiser.

        Raises:
            BackendError: it cannot be loaded.
        """

    def tile_encoder(self) -> TileEncoder:
        """Loads vision encoder and connector.

        Raises:
            BackendError: they cannot be loaded.
        """

    def keep(self) -> None:
        """Keeps for the next process what had to be found out for the answers so far."""

    def frames(self) -> FrameReader | None:
        """What reads frames that are in GPU memory; None where nothing does."""


class CpuBackend:
    """ONNX Runtime on the CPU; see `Backend`.

    Args:
        bundle: an open bundle.
        threads: of one operator; None is one per physical core.
    """

    name = "cpu"
    sequences: int | None = None
    fallbacks: tuple[str, ...] = ()

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle = bundle
        self._threads = threads
        self.setup = f"{os.cpu_count()}-{threads}"

    def denoiser(self, table: EmbeddingTable) -> Denoiser:
        """See `Backend`."""
        return Denoiser(self._bundle, self._threads, table)

    def tile_encoder(self) -> TileEncoder:
        """See `Backend`."""
        return _SessionTileEncoder(self._bundle, self._threads)

    def keep(self) -> None:
        """See `Backend`."""

    def frames(self) -> None:
        """See `Backend`."""


class _SessionTileEncoder:
    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self._encoder = open_session(bundle, "vision_encoder", threads)
        self._connector = open_session(bundle, "connector", threads)
        vision = bundle.manifest.geometry.vision
        assert vision is not None
        self._hidden_size = vision.hidden_size

    def encode(self, pixels: Floats, out: Floats) -> dict[str, float]:
        hidden = np.empty((*out.shape[:2], self._hidden_size), np.float32)
        graphs = {
            "vision_encoder": BoundPass(self._encoder, {"pixel_values": pixels}, {"vision_features": hidden}),
            "connector": BoundPass(self._connector, {"vision_features": hidden}, {"image_features": out}),
        }
        spent = {}
        for name, graph in graphs.items():
            began = perf_counter()
            with span(name):
                graph.run()
            spent[name] = (perf_counter() - began) * 1e3
        return spent
