"""Frames of a video: which are taken, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lladav.errors import ImageError
from lladav.manifest import Preprocessing
from lladav.runtime.video import preprocess_frames, read_frames

PRE = Preprocessing(crop_size=16, grid_pinpoints=((16, 16),), max_tiles=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve frames, frame i all of gray i, and a file that is none."""
    for i in range(12):
        Image.new("RGB", (20, 10), (i, i, i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._frame3.png").write_text("left by macOS")
    return tmp_path


def grays(frames: Iterable[Image.Image]) -> list[int]:
    return [frame.getpixel((0, 0))[0] for frame in frames]


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 11, 12])
def test_frames_are_spread_evenly_as_the_authors_do(folder: Path, limit: int) -> None:
    assert grays(read_frames(folder, limit)) == np.linspace(0, 11, limit, dtype=int).tolist()


def test_a_short_video_is_taken_whole_and_once(folder: Path) -> None:
    assert grays(read_frames(str(folder), 100)) == list(range(12))


def test_files_are_taken_in_the_order_given(folder: Path) -> None:
    files = [folder / "frame7.png", str(folder / "frame2.png"), folder / "frame10.png"]
    assert grays(read_frames(files, 3)) == [7, 2, 10]


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    names = ["1.png", "2.PNG", "10.png", "a1b2.png", "a1b10.png", "a02.png", "b.png"]
    for i, name in enumerate(names):
        Image.new("RGB", (2, 2), (i, i, i)).save(tmp_path / name)
    assert grays(read_frames(tmp_path, 99)) == list(range(len(names)))


def test_every_frame_becomes_one_crop_scaled_straight(folder: Path) -> None:
    frames = [*read_frames(folder, 2), Image.new("RGBA", (7, 30), (9, 8, 7, 0))]
    crops = preprocess_frames(frames, PRE)
    assert (crops.shape, crops.dtype) == ((3, 16, 16, 3), np.uint8)
    assert [tuple(c[0, 0]) for c in crops] == [(0, 0, 0), (11, 11, 11), (9, 8, 7)]
    assert (crops == crops[:, :1, :1]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing", "is not a folder"),
        (lambda p: p / "notes.txt", "is not a folder"),
        (lambda _: [], "the list of frames holds no frames"),
        (lambda p: [p / "gone.png"], "does not exist"),
    ],
)
def test_what_is_no_video_says_so(folder: Path, make: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_frames(make(folder), 4)
    assert caught.value.cure


def test_a_folder_without_pictures_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no frames") as caught:
        read_frames(tmp_path, 4)
    assert ".png" in caught.value.cure


def test_a_limit_of_nothing_is_a_programming_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="not 0"):
        read_frames(folder, 0)
