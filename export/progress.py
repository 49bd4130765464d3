"""How long work reports what it has done, and what it did otherwise than asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """Called with a stage's name and its size in bytes, then with the bytes done since the last call.

    Attributes:
        warn: called with what the caller should know.
    """

    start: Callable[[str, int], None] = lambda _stage, _total: None
    advance: Callable[[int], None] = lambda _bytes: None
    warn: Callable[[str], None] = warnings.warn
