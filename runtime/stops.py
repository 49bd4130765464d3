"""Where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class StopScanner:
    """Looks for stop sequences after every step, as the authors' loop does.

    The list is walked in order and the walk ends as soon as any stop has ever been found; so
    once one is known, only the first listed is still looked for, and the position only moves
    towards the beginning (`modeling_llada.py`, `generate_with_embeds`).

    Attributes:
        position: answer position of the earliest stop so far, or None.
    """

    def __init__(self, stops: Sequence[Sequence[int]]) -> None:
        self._stops = [np.array(stop, np.int64) for stop in stops]
        self.position: int | None = None

    def scan(self, ids: np.ndarray) -> None:
        """Looks at `ids` `[gen_length]` int64, masks included."""
        for stop in self._stops:
            found = _first_occurrence(ids, stop)
            if found is not None and (self.position is None or found < self.position):
                self.position = found
            if self.position is not None:
                return


def _first_occurrence(ids: np.ndarray, sequence: np.ndarray) -> int | None:
    for start in np.flatnonzero(ids[: len(ids) - len(sequence) + 1] == sequence[0]):
        if np.array_equal(ids[start : start + len(sequence)], sequence):
            return int(start)
    return None
