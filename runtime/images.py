"""Pictures in, crops out: the anyres preprocessing of the authors, byte for byte.

The behaviour is that of `llava/mm_utils.py` and of the image processor in
`llava/model/multimodal_encoder/siglip_encoder.py`, recorded in tests. Its oddities are kept,
since the model was trained with them: the base crop does not keep the aspect ratio, alpha is
dropped rather than blended, and orientation tags are ignored.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from lladav.errors import ImageError, OptionError
from lladav.manifest import Preprocessing

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Source = str | Path | bytes | Image.Image | Pixels
Aspect = Literal["anyres", "pad", "single"]

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded unless the caller says otherwise; where Pillow itself refuses."""

PAD_LEVEL = 127
"""Of every channel of the border that makes a picture square."""

# Modes that Pillow both resizes and converts to RGB, and whose values are 8 bit.
_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
_RESAMPLED_SHA256 = "025c0ee9b8a127385955db36dbe68dd9b7247149e3f2412b360b0dbac1022cdd"
_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class Crops:
    """One picture, ready for the vision tower.

    Attributes:
        pixels: uint8 `[1 + gw * gh, S, S, 3]`: the whole picture, then the grid row by row.
        size: width and height of the picture in pixels.
        grid: columns and rows `(gw, gh)`; `(0, 0)` where there is only the base crop.
    """

    pixels: Pixels
    size: tuple[int, int]
    grid: tuple[int, int]


def open_image(source: Source, *, exif: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a picture completely, so that whatever is wrong with it shows here.

    Args:
        source: a file, its bytes, a Pillow image, or uint8 RGB `[H, W, 3]`. Of a file with
            several frames the first is taken, as the reference does.
        exif: turn the picture upright as its orientation tag says; the reference does not.
        max_pixels: width times height above which nothing is decoded.

    Raises:
        ImageError: missing, empty, truncated or not a picture; too large; of a mode with more
            than 8 bits per channel.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        return _load(_from_array(source), name, exif, max_pixels)
    if isinstance(source, Image.Image):
        return _load(source, name, exif, max_pixels)
    with _stream(source, name) as stream:
        return _load(_identify(stream, name), name, exif, max_pixels)


def _stream(source: str | Path | bytes, name: str) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return Path(source).open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist", cure="check the path; addresses are not downloaded") from error
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{name} cannot be read: {error}", cure="pass a picture file that this user may read"
        ) from error


def _name(source: Source) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return {bytes: "the picture in memory", np.ndarray: "the array"}.get(type(source), "the Pillow image")


def _from_array(array: Pixels) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ImageError(
            f"the array is {array.dtype} {list(array.shape)}, which is no picture",
            cure="pass uint8 [height, width, 3] in RGB order",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _identify(stream: IO[bytes], name: str) -> Image.Image:
    try:
        with _without_pillow_limit():
            return Image.open(stream)
    except UnidentifiedImageError as error:
        size = stream.seek(0, io.SEEK_END)
        if not size:
            raise ImageError(f"{name} is empty (0 bytes)", cure="copy the file again") from error
        raise ImageError(
            f"{name} ({size:,} bytes) is not a picture that Pillow recognises",
            cure="pass a PNG, JPEG, WebP, BMP, GIF or TIFF file",
        ) from error
    # Decoders raise almost anything on damaged bytes: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(
            f"{name} has a damaged header: {error}", cure="copy the file again, or save it as PNG"
        ) from error


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Leaves the decision to `max_pixels`: Pillow's own limit is one number for the whole process.

    It is lifted only while a header is read, which decodes no pixel.
    """
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_size(size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses pictures of no or too many pixels.

    Raises:
        ImageError: `size` (width, height) is one of these; `name` says what has it.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels", cure="pass a picture with at least one pixel")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels; the limit is {max_pixels:,}",
            cure="scale it down, or, if you trust the file, raise the limit with --max-pixels N "
            "or Pipeline.load(..., max_pixels=N)",
        )


def _load(image: Image.Image, name: str, exif: bool, max_pixels: int) -> Image.Image:
    check_size(image.size, name, max_pixels)
    if image.mode not in _MODES:
        raise ImageError(
            f"{name} has mode {image.mode}, which has no plain 8-bit meaning",
            cure="convert it to 8 bits per channel: scale its values to 0..255 and save it as RGB",
        )
    try:
        image.load()
        return ImageOps.exif_transpose(image) if exif else image
    except Exception as error:
        raise ImageError(
            f"{name} cannot be decoded: {error}", cure="copy the file again; it is truncated or damaged"
        ) from error


def limit_grid(pre: Preprocessing, most: tuple[int, int]) -> Preprocessing:
    """The rule with no more than `most` columns and rows of crops.

    Raises:
        OptionError: the checkpoint has no grid as small as that.
    """
    columns, rows = most
    fitting = tuple((w, h) for w, h in pre.grid_pinpoints if w <= columns * pre.crop_size and h <= rows * pre.crop_size)
    if not fitting:
        known = ", ".join(f"{w // pre.crop_size}x{h // pre.crop_size}" for w, h in pre.grid_pinpoints)
        raise OptionError(
            f"--max-grid {columns}x{rows} leaves no grid of this checkpoint, which has {known}",
            cure="allow one of these, or pass --view single",
        )
    return pre.model_copy(update={"grid_pinpoints": fitting})


def choose_grid(size: tuple[int, int], pre: Preprocessing) -> tuple[int, int]:
    """Columns and rows of crops for a picture of `size` (width, height).

    Takes the canvas that keeps the most of the picture's pixels, then the one that wastes the
    least (`select_best_resolution` in `llava/mm_utils.py`).
    """
    width, height = size

    def merit(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    best = max(pre.grid_pinpoints, key=merit)
    return best[0] // pre.crop_size, best[1] // pre.crop_size


def preprocess(image: Image.Image, pre: Preprocessing, aspect: Aspect = "anyres") -> Crops:
    """Cuts a picture into crops.

    Args:
        image: as `open_image` returns it.
        pre: the checkpoint's rule.
        aspect: "anyres" for one picture, as in the authors' demo; "pad" for a single crop of the
            picture on a gray square, as their evaluation does when there are several pictures;
            "single" for the first of the anyres crops alone, which shows the whole picture.
    """
    side = pre.crop_size
    if aspect == "pad":
        # The border is gray in the picture's own mode, which makes it black in CMYK. On modes of one
        # channel the reference fails, so these become RGB first.
        colour = image if len(image.getbands()) >= 3 else image.convert("RGB")
        square = _pad_to_square(colour).convert("RGB")
        return Crops(_rgb(resize(square, (side, side)))[None], image.size, (0, 0))
    whole = _rgb(resize(image, (side, side)))
    if aspect == "single":
        return Crops(whole[None], image.size, (0, 0))
    columns, rows = grid = choose_grid(image.size, pre)
    pixels = np.empty((1 + columns * rows, side, side, 3), np.uint8)
    pixels[0] = whole
    tiles = _rgb(_fit(image, (columns * side, rows * side))).reshape(rows, side, columns, side, 3)
    pixels[1:] = tiles.swapaxes(1, 2).reshape(-1, side, side, 3)
    return Crops(pixels, image.size, grid)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image.resize(size)` as in Pillow 10.3: the rows of a picture first, then its columns.

    Later versions take the columns of some shapes first (12.3 of very tall ones, 13 of more), and
    round to other pixels; one axis at a time leaves them no choice.
    """
    if image.mode in ("1", "P") or image.size == size:
        return image.resize(size)  # nearest neighbour, or a copy
    premultiplied = {"LA": "La", "RGBA": "RGBa"}.get(image.mode, image.mode)
    rows = image.convert(premultiplied).resize((size[0], image.height), Image.Resampling.BICUBIC)
    return rows.resize(size, Image.Resampling.BICUBIC).convert(image.mode)


def _rgb(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


def largest_fit(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture scaled until it fills a canvas one way (`resize_and_pad_image`)."""
    by_width, by_height = canvas[0] / size[0], canvas[1] / size[1]
    if by_width < by_height:
        return canvas[0], min(math.ceil(size[1] * by_width), canvas[1])
    return min(math.ceil(size[0] * by_height), canvas[0]), canvas[1]


def centred(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Left and top edge of a picture in the middle of a canvas."""
    return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2


def _fit(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """The picture, as large as fits, centred on black; resized in its own mode."""
    size = largest_fit(image.size, canvas)
    whole = Image.new("RGB", canvas)
    whole.paste(resize(image, size), centred(size, canvas))
    return whole


def _pad_to_square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new(image.mode, (side, side), (PAD_LEVEL,) * 3)
    square.paste(image, centred(image.size, square.size))
    return square


def pixel_values(crops: Pixels, out: Floats | None = None, *, mean: float = 0.5, std: float = 0.5) -> Floats:
    """Crops as the vision graph takes them: uint8 `[T, S, S, 3]` -> float32 `[T, 3, S, S]`.

    There are only 256 values, so each is rounded once as the reference rounds it: scaled by
    1/255 in double, then centred in single precision.
    """
    values = ((np.arange(256) * (1 / 255.0)).astype(np.float32) - np.float32(mean)) / np.float32(std)
    channels_first = crops.transpose(0, 3, 1, 2)
    if out is None:
        out = np.empty(channels_first.shape, np.float32)
    # No value of a byte is out of range; "clip" only spares numpy a buffer as large as `out`.
    return np.take(values, channels_first, out=out, mode="clip")


def resampling_is_reference() -> bool:
    """Whether pictures come out as with the Pillow that the reference was recorded with.

    `resize` sees to it for 10.3 to 13.0; this looks at the result, for shapes whose passes those
    versions take in another order, so that a change in any other Pillow shows.
    """
    digest = hashlib.sha256()
    for width, height in ((23, 64), (3, 700)):
        y, x = np.mgrid[0:height, 0:width]
        pattern = np.stack([((x * x + 3 * y * y * x + c * y) % 7 < 3) * np.uint8(255) for c in (1, 2, 5)], axis=-1)
        digest.update(resize(Image.fromarray(pattern), (32, 32)).tobytes())
    return digest.hexdigest() == _RESAMPLED_SHA256
