"""Which files of a folder are pictures, by their names."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

KINDS = ", ".join(sorted(_SUFFIXES))
"""Suffixes of pictures, for people."""


def picture_files(folder: Path) -> list[Path]:
    """In the order of their names, without hidden ones: macOS leaves `._a.png` beside `a.png`."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES and not f.name.startswith("."))
