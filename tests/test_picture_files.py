"""Which files count as pictures."""

from __future__ import annotations

from pathlib import Path

from lladav.picture_files import KINDS, picture_files


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c.ppm", "._a.png", ".hidden.jpg", "notes.txt", "png"):
        (tmp_path / name).touch()
    assert [file.name for file in picture_files(tmp_path)] == ["a.jpeg", "b.PNG", "c.ppm"]
    assert all(kind in KINDS for kind in (".jpeg", ".png", ".ppm"))
