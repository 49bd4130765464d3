"""Crops in, rows for the language model out: vision encoder and connector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import BundleError
from lladav.runtime.backend import Backend
from lladav.runtime.images import Pixels, pixel_values

Floats = npt.NDArray[np.float32]


class VisionEncoder:
    """The tower and the connector, a bucket of crops at a time.

    Attributes:
        newline: `[D]` float32, what ends a row of a picture.

    Raises:
        BundleError: the bundle is a text-only model's.
        BackendError: the graphs cannot be loaded.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        manifest = bundle.manifest
        vision = manifest.geometry.vision
        if vision is None or manifest.preprocessing is None or "image_newline" not in manifest.tables:
            raise BundleError(
                f"{bundle.path} is a text-only model and has no vision encoder",
                cure="leave the pictures out, or use a bundle of a LLaDA-V checkpoint",
            )
        self.preprocessing = manifest.preprocessing
        self.geometry = vision
        self.newline: Floats = np.fromfile(bundle.file(manifest.tables["image_newline"].file), "<f4")
        self._width = manifest.geometry.language.hidden_size
        self._tiles = manifest.buckets.tiles
        self._encoder = backend.tile_encoder()

    def encode(self, crops: Pixels) -> tuple[Floats, dict[str, float]]:
        """Features `[T, N, D]` float32 of crops uint8 `[T, S, S, 3]`, and milliseconds per stage."""
        side = self.geometry.image_size
        features = np.empty((len(crops), self.geometry.tokens, self._width), np.float32)
        spent: dict[str, float] = {}
        for part in self.buckets(len(crops)):
            pixels = np.empty((part.stop - part.start, 3, side, side), np.float32)
            pixel_values(crops[part], pixels, mean=self.preprocessing.mean, std=self.preprocessing.std)
            for name, ms in self._encoder.encode(pixels, features[part]).items():
                spent[name] = spent.get(name, 0.0) + ms
        return features, spent

    def buckets(self, crops: int) -> Iterator[slice]:
        """Crops by the buckets that they are computed in."""
        start = 0
        while start < crops:
            # Buckets start at 1, so taking the largest that fits leaves nothing to pad.
            stop = start + max(size for size in self._tiles if size <= crops - start)
            yield slice(start, stop)
            start = stop
