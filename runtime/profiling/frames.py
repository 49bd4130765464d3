"""Answers as a camera sees them: which frames were looked at, how even the answers came, how old the picture was.

Names and arithmetic are those of NVIDIA's `ros2_benchmark` (`basic_performance_calculator.py`), so that a
robot's other nodes can be read beside them; ages and deadlines are added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from lladav.runtime.profiling.distribution import Distribution


class FrameMetrics(BaseModel):
    """Of all measured answers; keys in JSON are the names of `ros2_benchmark`.

    Attributes:
        played: rate of the camera; None where every answer found a new frame waiting.
        jitter_*: of answers, the differences between one period and the next; None below three answers.
        image_age: milliseconds from a frame to the end of its answer.
        deadline_ms, missed: answers that came later than that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    played: float | None = Field(alias="Mean Playback Frame Rate (fps)")
    rate: float | None = Field(alias="Mean Frame Rate (fps)")
    sent: NonNegativeInt = Field(alias="# of Frames Sent")
    dropped: NonNegativeInt = Field(alias="# of Missed Frames")
    first_latency: NonNegativeFloat = Field(alias="First Frame End-to-end Latency (ms)")
    last_latency: NonNegativeFloat = Field(alias="Last Frame End-to-end Latency (ms)")
    max_latency: NonNegativeFloat = Field(alias="Max. End-to-End Latency (ms)")
    min_latency: NonNegativeFloat = Field(alias="Min. End-to-End Latency (ms)")
    mean_latency: NonNegativeFloat = Field(alias="Mean End-to-End Latency (ms)")
    jitter_max: NonNegativeFloat | None = Field(alias="Max. Frame-to-Frame Jitter (ms)")
    jitter_min: NonNegativeFloat | None = Field(alias="Min. Frame-to-Frame Jitter (ms)")
    jitter_mean: NonNegativeFloat | None = Field(alias="Mean Frame-to-Frame Jitter (ms)")
    jitter_std: NonNegativeFloat | None = Field(alias="Frame-to-Frame Jitter Std. Deviation (ms)")
    image_age: Distribution = Field(alias="Image Age (ms)")
    deadline_ms: NonNegativeFloat | None = Field(alias="Deadline (ms)")
    missed: NonNegativeInt | None = Field(alias="# of Missed Deadlines")


@dataclass(frozen=True)
class Shown:
    """One frame and its answer, in seconds on one clock; `number` counts the camera's frames from 0."""

    number: int
    taken: float
    began: float
    ended: float


class Camera:
    """Gives frames at a fixed rate and keeps only the latest, as a robot's mailbox does.

    Args:
        rate: frames a second; None has a new frame ready whenever one is asked for.
        now: the clock, in seconds.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        rate: float | None,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rate = rate
        self._now = now
        self._sleep = sleep
        self._began = now()
        self._seen = -1

    def take(self) -> tuple[int, float]:
        """Number and instant of the latest frame, waiting for it if it has been taken before."""
        if self.rate is None:
            self._seen += 1
            return self._seen, self._now()
        latest = int((self._now() - self._began) * self.rate)
        if latest <= self._seen:
            latest = self._seen + 1
            self._sleep(max(0.0, self._began + latest / self.rate - self._now()))
        self._seen = latest
        return latest, self._began + latest / self.rate


def frame_metrics(shown: Sequence[Shown], rate: float | None, deadline_ms: float | None) -> FrameMetrics:
    """Metrics of at least one answer.

    Args:
        shown: in order.
        rate: of the camera.
        deadline_ms: that answers were asked to keep, counted from their own beginning and not from the frame.
    """
    ended = np.array([one.ended for one in shown]) * 1e3
    latencies = [(one.ended - one.taken) * 1e3 for one in shown]
    jitter = np.abs(np.diff(np.diff(ended)))
    known = len(jitter) > 0
    duration = float(ended[-1] - ended[0])
    sent = shown[-1].number - shown[0].number + 1
    return FrameMetrics(
        played=rate,
        rate=len(shown) / (duration / 1e3) if duration > 0 else None,
        sent=sent,
        dropped=sent - len(shown),
        first_latency=latencies[0],
        last_latency=latencies[-1],
        max_latency=max(latencies),
        min_latency=min(latencies),
        mean_latency=float(np.mean(latencies)),
        jitter_max=float(jitter.max()) if known else None,
        jitter_min=float(jitter.min()) if known else None,
        jitter_mean=float(jitter.mean()) if known else None,
        jitter_std=float(jitter.std()) if known else None,
        image_age=Distribution.of(latencies),
        deadline_ms=deadline_ms,
        missed=None if deadline_ms is None else sum((one.ended - one.began) * 1e3 > deadline_ms for one in shown),
    )
