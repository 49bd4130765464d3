"""Pictures from any source, and their crops, beside the reference."""

from __future__ import annotations

import hashlib
import io
import math
import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.golden import GoldenSet
from lladav.errors import ImageError
from lladav.manifest import Preprocessing
from lladav.runtime.images import (
    choose_grid,
    open_image,
    pixel_values,
    preprocess,
    resampling_is_reference,
)

REAL = Preprocessing(
    crop_size=384, grid_pinpoints=tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)), max_tiles=4
)
SMALL = Preprocessing(
    crop_size=16, grid_pinpoints=tuple((16 * i, 16 * j) for i in range(1, 4) for j in range(1, 4)), max_tiles=2
)
NAMES = [
    "square",
    "photo43",
    "down",
    "big",
    "tall",
    "wide",
    "ribbon",
    "tiny",
    "pixel",
    "odd",
    "sliver_a",
    "sliver_b",
    "gray",
    "alpha",
    "palette",
    "cmyk",
    "exif",
    "bilevel",
    "grayalpha",
]
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


# ------------------------------------------------------------------ against the recorded reference


@pytest.mark.parametrize("name", NAMES)
def test_crops_are_those_of_the_reference_bit_for_bit(name: str, golden_set: GoldenSet, shared: Path) -> None:
    expected = golden_set.facts["pre"]["images"][name]
    image = open_image(shared / "parity" / "images" / expected["file"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == expected["decoded_sha256"], "decoders differ"
    crops = preprocess(image, REAL)
    assert (crops.size, crops.grid) == (tuple(expected["size"]), tuple(expected["grid_w_h"]))
    assert crops.pixels.shape == (expected["n_crops"], 384, 384, 3)
    assert sha256(crops.pixels) == expected["u8_sha256"]
    assert sha256(pixel_values(crops.pixels)) == expected["f32_sha256"]


def test_every_golden_image_is_tested_or_refused(golden_set: GoldenSet, shared: Path) -> None:
    images = golden_set.facts["pre"]["images"]
    assert set(images) - set(NAMES) == {"gray16"}
    with pytest.raises(ImageError, match="mode I;16") as caught:
        open_image(shared / "parity" / "images" / images["gray16"]["file"])
    assert "8 bits" in caught.value.cure


@pytest.mark.parametrize("name", ["photo43", "sliver_a"])
def test_padded_crop_is_that_of_the_reference(name: str, golden_set: GoldenSet, shared: Path) -> None:
    expected = golden_set.facts["pre"]["pad_aspect"][name]
    crops = preprocess(open_image(shared / "parity" / "images" / f"{name}.png"), REAL, "pad")
    values = pixel_values(crops.pixels)
    assert list(values.shape) == expected["pixel_values_shape"]
    assert (sha256(crops.pixels), sha256(values)) == (expected["u8_sha256"], expected["f32_sha256"])
    assert crops.grid == (0, 0)


def test_grid_of_a_hundred_sizes(golden_set: GoldenSet) -> None:
    for size, expected in golden_set.facts["merge"]["layout"].items():
        width, height = map(int, size.split("x"))
        assert choose_grid((width, height), REAL) == tuple(expected["grid_w_h"]), size


# ------------------------------------------------------------------------------------------- laws


@given(SIZES, st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]))
@settings(max_examples=60, deadline=None)
def test_any_size_and_mode_gives_one_base_crop_and_the_grid(size: tuple[int, int], mode: str) -> None:
    image = noise(*size).convert("L").convert("LA") if mode == "LA" else noise(*size, mode)
    crops = preprocess(open_image(image), SMALL)
    columns, rows = crops.grid
    assert crops.pixels.shape == (1 + columns * rows, 16, 16, 3)
    assert crops.pixels.dtype == np.uint8
    assert (columns * 16, rows * 16) in SMALL.grid_pinpoints
    assert preprocess(image, SMALL, "pad").pixels.shape == (1, 16, 16, 3)


@given(SIZES, st.randoms())
def test_the_grid_does_not_depend_on_the_order_of_candidates(size: tuple[int, int], random: random.Random) -> None:
    shuffled = list(SMALL.grid_pinpoints)
    random.shuffle(shuffled)
    assert choose_grid(size, SMALL) == choose_grid(size, SMALL.model_copy(update={"grid_pinpoints": tuple(shuffled)}))


@given(SIZES)
def test_the_grid_turns_with_the_picture(size: tuple[int, int]) -> None:
    assert choose_grid(size[::-1], SMALL) == choose_grid(size, SMALL)[::-1]


def test_tiles_lie_row_by_row_on_black() -> None:
    width, height = 32, 40  # fits 2 x 3 crops at 38 x 48: a border of 5 pixels left and right
    crops = preprocess(Image.new("RGB", (width, height), (200, 100, 50)), SMALL)
    assert crops.grid == (2, 3)
    whole = crops.pixels[1:].reshape(3, 2, 16, 16, 3).swapaxes(1, 2).reshape(48, 32, 3)
    covered = (whole == (200, 100, 50)).all(-1)
    scaled_height = math.ceil(height * 32 / width)
    top = (48 - scaled_height) // 2
    assert covered[top : top + scaled_height].all()
    assert not whole[:top].any()
    assert not whole[top + scaled_height :].any()


def test_pixel_values_cover_minus_one_to_one_and_reuse_the_buffer() -> None:
    crops = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    out = np.empty((1, 3, 16, 16), np.float32)
    assert pixel_values(crops, out) is out
    reference = ((crops.astype(np.float64) * (1 / 255.0)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_array_equal(out, reference.transpose(0, 3, 1, 2))
    assert (out.min(), out.max()) == (-1, 1)
    imagenet = pixel_values(crops, mean=0.25, std=0.125)
    assert imagenet.max() == (1 - 0.25) / 0.125


def test_border_of_a_padded_cmyk_picture_is_black() -> None:
    """Gray in the picture's own mode, as the reference pads: full black ink there."""
    crops = preprocess(Image.new("CMYK", (60, 20), (0, 0, 0, 0)), REAL, "pad")
    assert crops.pixels[0, 0].max() == 0
    assert crops.pixels[0, crops.pixels.shape[1] // 2].min() == 255


def test_this_pillow_resizes_as_the_reference_and_another_order_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resampling_is_reference()

    def columns_first(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize((image.width, size[1])).resize(size)

    monkeypatch.setattr("lladav.runtime.images.resize", columns_first)
    assert not resampling_is_reference()


# ---------------------------------------------------------------------------------------- sources


def test_all_sources_give_the_same_picture(tmp_path: Path) -> None:
    image = noise(30, 20)
    file = tmp_path / "a.png"
    image.save(file)
    for source in (file, str(file), file.read_bytes(), image, np.asarray(image)):
        assert open_image(source).tobytes() == image.tobytes()


def test_orientation_is_ignored_unless_asked_for() -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    data = encoded(noise(30, 20), "JPEG", exif=tag)
    assert open_image(data).size == (30, 20)
    assert open_image(data, exif=True).size == (20, 30)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_of_several_frames_is_taken(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"frames.{form.lower()}"
    frames = [Image.new("RGB", (20, 30), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(
        file, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    crops = preprocess(open_image(file), SMALL)
    assert (crops.pixels[0] == (255, 0, 0)).all()


# ----------------------------------------------------------------------------------------- errors


def png_header(width: int, height: int) -> bytes:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0" * 10)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (ihdr, idat))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/picture.png", "does not exist"),
        (b"", r"empty \(0 bytes\)"),
        (b"not a picture at all", "is not a picture"),
        (encoded(noise(60, 60), "PNG")[:4000], "cannot be decoded"),
        (encoded(noise(60, 60), "JPEG")[:900], "cannot be decoded"),
        (png_header(30000, 30000), "900,000,000 pixels; the limit is 178,956,970"),
        (Image.new("RGB", (0, 5)), "0 x 5"),
        (Image.new("I;16", (4, 4)), "mode I;16"),
        (Image.new("I", (4, 4)), "mode I,"),
        (Image.new("F", (4, 4)), "mode F"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
    ],
)
def test_what_is_no_usable_picture_says_so_and_what_to_do(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        open_image(source)
    assert caught.value.cure


def test_a_folder_and_an_unreadable_name_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        open_image("a\0b")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=re.escape(str(tmp_path / "empty.png"))):
        open_image(tmp_path / "empty.png")


def test_the_pixel_limit_can_be_moved_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit has no say ...
    data = encoded(noise(30, 20), "PNG")
    assert open_image(data).size == (30, 20)
    with pytest.raises(ImageError, match="limit is 599") as caught:
        open_image(data, max_pixels=599)
    assert "max_pixels" in caught.value.cure
    assert open_image(data, max_pixels=600).size == (30, 20)
    assert Image.MAX_IMAGE_PIXELS == 10  # ... and is left as it was


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_never_raise_anything_else(form: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(noise(24, 17), form))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        whole[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        image = open_image(bytes(whole[:cut]), max_pixels=1_000_000)
        preprocess(image, SMALL)
    except ImageError:
        pass


def test_the_open_file_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "a.gif"
    frames = [noise(20, 20), noise(20, 21).resize((20, 20))]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    open_image(file)
    held = [p for p in Path("/proc/self/fd").iterdir() if p.exists() and p.resolve() == file.resolve()]
    assert not held
