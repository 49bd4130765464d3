"""Videos as folders of frames, sampled and scaled as the authors' evaluation does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lladav.errors import ImageError
from lladav.manifest import Preprocessing
from lladav.picture_files import KINDS, picture_files
from lladav.runtime.images import MAX_PIXELS, Pixels, open_image, resize


def read_frames(
    source: str | Path | Sequence[str | Path], limit: int, *, max_pixels: int = MAX_PIXELS
) -> list[Image.Image]:
    """Reads at most `limit` frames, spread evenly from the first to the last.

    Args:
        source: a folder, whose picture files are taken in natural order (frame2 before
            frame10), or the files themselves in order.
        limit: most frames to take. The reference repeats frames of a shorter video until it has
            as many; that costs as much as a longer one and shows nothing new, so all frames are
            taken once instead.
        max_pixels: as for `open_image`.

    Raises:
        ImageError: no folder, no frame in it, or a frame that cannot be read.
        ValueError: `limit` is less than 1.
    """
    if limit < 1:
        raise ValueError(f"a video needs at least one frame, not {limit}")
    files = _frames_in(Path(source)) if isinstance(source, str | Path) else list(source)
    if not files:
        raise ImageError(f"{source or 'the list of frames'} holds no frames", cure="pass at least one picture file")
    chosen = np.linspace(0, len(files) - 1, min(limit, len(files)), dtype=int)
    return [open_image(files[i], max_pixels=max_pixels) for i in chosen]


def preprocess_frames(frames: Sequence[Image.Image], pre: Preprocessing) -> Pixels:
    """Frames as crops: uint8 `[F, S, S, 3]`, each frame scaled straight to one crop.

    The image processor of `llava/model/multimodal_encoder/siglip_encoder.py`, which the
    evaluation applies to the decoded frames. Give the result to `images.pixel_values`, and the
    features to a `merge.video_plan`.
    """
    size = (pre.crop_size, pre.crop_size)
    return np.stack([np.asarray(resize(f.convert("RGB"), size)) for f in frames])


def _frames_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ImageError(
            f"{folder} is not a folder",
            cure="extract the frames first, for example `ffmpeg -i video.mp4 frames/%05d.png`",
        )
    files = picture_files(folder)
    if not files:
        raise ImageError(f"{folder} holds no frames", cure=f"put picture files there ({KINDS})")
    return sorted(files, key=_natural)


def _natural(file: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Digits compare as numbers; the name itself decides between frame1 and frame01."""
    parts = re.findall(r"\d+|\D+", file.name.lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts], file.name
