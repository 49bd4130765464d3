"""What is said of many times of one thing: percentiles by nearest rank, with how many there were."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt

TAIL = 100
"""Fewest values of which a 99th percentile is more than the largest of them."""


class Distribution(BaseModel):
    """Values of one thing, in its own unit.

    Attributes:
        n: how many values.
        p50, p90, p95, p99: percentiles by nearest rank, each one of the values; no p99 of fewer than `TAIL`.
        std: standard deviation of the values themselves (dividing by n).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: PositiveInt
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float | None
    max: float
    std: NonNegativeFloat

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Of at least one value."""
        ordered, n = sorted(values), len(values)
        mean = math.fsum(ordered) / n

        def rank(percent: int) -> float:
            return ordered[max(0, math.ceil(percent * n / 100) - 1)]

        return cls(
            n=n,
            mean=mean,
            p50=rank(50),
            p90=rank(90),
            p95=rank(95),
            p99=rank(99) if n >= TAIL else None,
            max=ordered[-1],
            std=math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / n),
        )
