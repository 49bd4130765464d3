"""Where an answer stops, beside the reference."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lladav.runtime.stops import StopScanner

TOKENS = st.integers(0, 4)


def reference_scan(ids: list[int], stops: list[list[int]], known: int | None) -> int | None:
    """The authors' scan, written as plainly as possible."""
    for stop in stops:
        for start in range(len(ids) - len(stop) + 1):
            if ids[start : start + len(stop)] == stop:
                if known is None or start < known:
                    known = start
                break
        if known is not None:
            break
    return known


@given(
    st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=1, max_size=6),
    st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=3),
)
def test_scans_as_the_reference(canvases: list[list[int]], stops: list[list[int]]) -> None:
    scanner, expected = StopScanner(stops), None
    for canvas in canvases:
        scanner.scan(np.array(canvas, np.int64))
        expected = reference_scan(canvas, stops, expected)
        assert scanner.position == expected


def test_only_the_first_listed_is_rescanned() -> None:
    scanner = StopScanner([[9], [5]])
    scanner.scan(np.array([1, 1, 1, 5]))
    scanner.scan(np.array([1, 5, 1, 5]))
    assert scanner.position == 3
    scanner.scan(np.array([1, 5, 9, 5]))
    assert scanner.position == 2


def test_stop_longer_than_the_answer_is_never_found() -> None:
    scanner = StopScanner([[1, 2, 3]])
    scanner.scan(np.array([1, 2]))
    assert scanner.position is None
