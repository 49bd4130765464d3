"""How long work reports what it has done."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """Called with a stage's name and its size in bytes, then with the bytes done since the last call."""

    start: Callable[[str, int], None] = lambda _stage, _total: None
    advance: Callable[[int], None] = lambda _bytes: None
