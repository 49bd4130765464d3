"""What a camera sees of answers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.runtime.profiling.frames import Camera, Shown, frame_metrics


class Clock:
    """A clock that sleeping and working move."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def pass_(self, seconds: float) -> None:
        self.time += seconds


def watch(rate: float | None, works: list[float]) -> list[Shown]:
    clock = Clock()
    camera, shown = Camera(rate, clock, clock.pass_), []
    for seconds in works:
        number, taken = camera.take()
        began = clock()
        clock.pass_(seconds)
        shown.append(Shown(number, taken, began, clock()))
    return shown


def test_slow_answers_miss_frames_and_see_old_pictures() -> None:
    shown = watch(10.0, [0.25, 0.25, 0.05])
    assert [one.number for one in shown] == [0, 2, 5]
    found = frame_metrics(shown, 10.0, deadline_ms=200.0)
    assert (found.sent, found.dropped) == (6, 3)
    assert found.image_age.max == pytest.approx(300)  # a frame 50 ms old, and 250 ms for its answer
    assert found.missed == 2
    ended = [250.0, 500.0, 550.0]
    assert found.jitter_mean == pytest.approx(abs((ended[2] - ended[1]) - (ended[1] - ended[0])))
    assert found.model_dump(by_alias=True)["# of Missed Frames"] == 3


def test_fast_answers_wait_for_the_next_frame() -> None:
    shown = watch(10.0, [0.02, 0.02, 0.02, 0.02])
    found = frame_metrics(shown, 10.0, deadline_ms=None)
    assert (found.dropped, found.missed) == (0, None)
    assert found.rate == pytest.approx(4 / 0.3)
    assert found.jitter_max == pytest.approx(0, abs=1e-6)


def test_two_answers_have_no_jitter() -> None:
    assert frame_metrics(watch(None, [0.1, 0.2]), None, None).jitter_max is None


@given(st.floats(0.5, 100), st.lists(st.floats(0.001, 3), min_size=1, max_size=30))
def test_frames_are_shown_once_in_order_and_never_from_the_future(rate: float, works: list[float]) -> None:
    shown = watch(rate, works)
    assert all(b.number > a.number for a, b in pairwise(shown))
    assert all(one.taken <= one.began + 1e-6 for one in shown)
    found = frame_metrics(shown, rate, None)
    assert found.sent == found.dropped + len(shown)
