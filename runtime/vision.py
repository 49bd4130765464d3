"""Crops in, rows for the language model out: vision encoder and connector."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import BundleError
from lladav.runtime.images import Pixels, pixel_values
from lladav.runtime.sessions import BoundPass, open_session

Floats = npt.NDArray[np.float32]


class VisionEncoder:
    """The tower and the connector, a bucket of crops at a time.

    Attributes:
        newline: `[D]` float32, what ends a row of a picture.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
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
        self._encoder = open_session(bundle, "vision_encoder", threads)
        self._connector = open_session(bundle, "connector", threads)

    def encode(self, crops: Pixels) -> tuple[Floats, dict[str, float]]:
        """Features `[T, N, D]` float32 of crops uint8 `[T, S, S, 3]`, and milliseconds per stage."""
        side, tokens = self.geometry.image_size, self.geometry.tokens
        features = np.empty((len(crops), tokens, self._width), np.float32)
        spent = {"vision_encoder": 0.0, "connector": 0.0}
        start = 0
        while start < len(crops):
            # Buckets start at 1, so taking the largest that fits leaves nothing to pad.
            count = max(size for size in self._tiles if size <= len(crops) - start)
            pixels = np.empty((count, 3, side, side), np.float32)
            hidden = np.empty((count, tokens, self.geometry.hidden_size), np.float32)
            pixel_values(crops[start : start + count], pixels, mean=self.preprocessing.mean, std=self.preprocessing.std)
            out = features[start : start + count]
            tower = BoundPass(self._encoder, {"pixel_values": pixels}, {"vision_features": hidden})
            connector = BoundPass(self._connector, {"vision_features": hidden}, {"image_features": out})
            for name, graph in (("vision_encoder", tower), ("connector", connector)):
                began = perf_counter()
                graph.run()
                spent[name] += (perf_counter() - began) * 1e3
            start += count
        return features, spent
