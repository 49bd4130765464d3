"""From pictures and videos to rows of the prompt, with those of the latest pictures kept."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt
import PIL

from lladav.bundle import Bundle
from lladav.errors import ImageError, OptionError
from lladav.manifest import Preprocessing
from lladav.runtime import merge
from lladav.runtime.backend import Backend
from lladav.runtime.clock import Clock
from lladav.runtime.config import Grid
from lladav.runtime.images import (
    Aspect,
    Pixels,
    Source,
    limit_grid,
    open_image,
    preprocess,
    resampling_is_reference,
)
from lladav.runtime.pacing import PassTimes, vision_key
from lladav.runtime.video import preprocess_frames, read_frames
from lladav.runtime.vision import VisionEncoder

Floats = npt.NDArray[np.float32]

FEATURE_CACHE_BYTES = 256 << 20
"""Default bound of what is kept of earlier pictures: 4 ordinary photographs at the real size."""


class Prepared(Protocol):
    """A picture, frame or video that is not yet encoded."""

    @property
    def tiles(self) -> int:
        """Crops."""

    @property
    def rows(self) -> int:
        """Positions of the prompt it will take."""

    @property
    def digest(self) -> bytes | None:
        """Equal for equal crops that are merged alike; None where that cannot be known."""

    def encode(self, encoder: VisionEncoder) -> tuple[Floats, dict[str, float]]:
        """Rows of the prompt `[n, D]` float32, and milliseconds per stage."""


@dataclass(frozen=True)
class CutPicture:
    """A picture or video that has been cut into crops on the host; see `Prepared`.

    Attributes:
        crops: uint8 `[T, S, S, 3]`.
        plan: how their features become rows.
    """

    crops: Pixels
    plan: merge.MergePlan

    @property
    def tiles(self) -> int:
        return len(self.crops)

    @property
    def rows(self) -> int:
        return len(self.plan)

    def encode(self, encoder: VisionEncoder) -> tuple[Floats, dict[str, float]]:
        """See `Prepared`."""
        features, spent = encoder.encode(self.crops)
        began = perf_counter()
        rows = merge.apply(self.plan, features, encoder.newline)
        return rows, {**spent, "merge": (perf_counter() - began) * 1e3}

    @cached_property
    def digest(self) -> bytes:
        """See `Prepared`."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.crops, self.plan.indices, self.plan.weights):
            digest.update(repr(part.shape).encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.digest()


class FeatureCache:
    """Rows of the latest pictures by content, oldest out first, within a bound of memory.

    Args:
        bytes_: most memory to keep; 0 keeps nothing.
    """

    def __init__(self, bytes_: int) -> None:
        if bytes_ < 0:
            raise OptionError(f"a feature cache of {bytes_} bytes means nothing", cure="pass 0 to keep none")
        self._bound = bytes_
        self._rows: OrderedDict[bytes, Floats] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes in use."""
        return sum(rows.nbytes for rows in self._rows.values())

    def get(self, digest: bytes) -> Floats | None:
        """The rows `[n, D]` of a picture, or None."""
        rows = self._rows.get(digest)
        if rows is not None:
            self._rows.move_to_end(digest)
        return rows

    def put(self, digest: bytes, rows: Floats) -> None:
        if rows.nbytes > self._bound:
            return
        rows.flags.writeable = False
        self._rows[digest] = rows
        while self.size > self._bound:
            self._rows.popitem(last=False)


class PictureReader:
    """Reads, cuts, encodes and merges pictures; the vision encoder is loaded with the first one.

    Args:
        bundle: an open bundle.
        backend: that the vision encoder is loaded with.
        max_pixels: larger pictures are refused.
        cache_bytes: bound of the feature cache.
        times: gets how long pictures took to encode.
    """

    def __init__(self, bundle: Bundle, backend: Backend, max_pixels: int, cache_bytes: int, times: PassTimes) -> None:
        self._times = times
        self._bundle = bundle
        self._backend = backend
        self._max_pixels = max_pixels
        self._encoder: VisionEncoder | None = None
        self._cache = FeatureCache(cache_bytes)

    def load(self) -> None:
        """Loads the vision encoder, so that the first picture does not have to wait for it."""
        _ = self.encoder

    @property
    def encoder(self) -> VisionEncoder:
        if self._encoder is None:
            if not resampling_is_reference():
                warnings.warn(
                    f"Pillow {PIL.__version__} scales pictures to other pixels than the authors' code, so answers may "
                    "differ; install one of `pillow>=10.3,<=13.0`",
                    stacklevel=2,
                )
            self._encoder = VisionEncoder(self._bundle, self._backend)
        return self._encoder

    def picture(
        self, source: Source, aspect: Aspect, *, max_grid: Grid | None = None, exif: bool = False
    ) -> CutPicture:
        """Cuts a picture into crops.

        Args:
            source: see `images.open_image`.
            aspect: see `images.preprocess`.
            max_grid: most columns and rows of crops.
            exif: turn it as its EXIF orientation says.
        """
        picture = open_image(source, exif=exif, max_pixels=self._max_pixels)
        rule, side = self._rule(max_grid), self.encoder.geometry.side
        crops = preprocess(picture, rule, aspect)
        if aspect == "anyres":
            plan = merge.merge_plan(crops.size, crops.grid, side, rule.max_tiles)
        else:
            plan = merge.crop_plan(side, newline=aspect == "single")
        return CutPicture(crops.pixels, plan)

    def frame(self, source: object, aspect: Aspect, *, max_grid: Grid | None = None) -> Prepared:
        """Prepares a frame in GPU memory.

        Args:
            source: see `lladav.runtime.gpu.frames.device_frame`.
            aspect: see `images.preprocess`.
            max_grid: most columns and rows of crops.

        Raises:
            ImageError: this backend does not read GPU memory, or the frame cannot be used.
        """
        rule = self._rule(max_grid)
        frames = self._backend.frames()
        if frames is None:
            raise ImageError(
                f"this picture is in GPU memory, which backend {self._backend.name} does not read",
                cure="load the bundle with a backend on the GPU, or copy the picture to the host",
            )
        return frames.prepare(source, rule, aspect, self._max_pixels)

    def _rule(self, max_grid: Grid | None) -> Preprocessing:
        rule = self.encoder.preprocessing
        return limit_grid(rule, max_grid) if max_grid is not None else rule

    def video(self, source: str | Path | Sequence[str | Path], limit: int) -> CutPicture:
        """Frames as crops; see `video.read_frames`."""
        rule = self.encoder.preprocessing
        crops = preprocess_frames(read_frames(source, limit, max_pixels=self._max_pixels), rule)
        return CutPicture(crops, merge.video_plan(len(crops), self.encoder.geometry.side, rule))

    def known(self, prepared: Prepared) -> bool:
        """Whether its rows are kept from an earlier answer."""
        return prepared.digest is not None and self._cache.get(prepared.digest) is not None

    def rows(
        self, pictures: Sequence[Prepared], clock: Clock, shared: dict[bytes, Floats] | None = None
    ) -> tuple[list[Floats], int]:
        """What the language model sees of pictures, each encoded at most once.

        Args:
            pictures: in the order of the result.
            clock: gets what was spent.
            shared: rows by digest that questions asked together keep for one another.

        Returns:
            `[n, D]` float32 of each, not to be written to; and how many were known from before.
        """
        with clock.stage("feature_cache"):
            digests = [picture.digest for picture in pictures]
            kept = {digest: self._cache.get(digest) for digest in digests if digest is not None}
        known = sum(kept.get(digest) is not None for digest in digests if digest is not None)
        shared = {} if shared is None else shared
        out = []
        for picture, digest in zip(pictures, digests, strict=True):
            rows = shared.get(digest, kept[digest]) if digest is not None else None
            if rows is None:
                rows = self.encode(picture, self._times, clock)
                if digest is not None:
                    self._cache.put(digest, rows)
            if digest is not None:
                shared[digest] = rows
            out.append(rows)
        return out, known

    def encode(self, picture: Prepared, times: PassTimes, clock: Clock | None = None) -> Floats:
        """Rows `[n, D]` float32 of a picture; how long it took goes to `times` and `clock`."""
        rows, spent = picture.encode(self.encoder)
        times.add(vision_key(picture.tiles), sum(spent.values()))
        if clock is not None:
            clock.add(spent)
        return rows
