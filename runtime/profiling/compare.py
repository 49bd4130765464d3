"""Two profiles of one workload: by how much each line differs, and where the difference lies."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass

from lladav.errors import ProfileError
from lladav.runtime.profiling.distribution import Distribution
from lladav.runtime.profiling.record import Profile, Run, Workload

SURE = 2.0
"""Standard errors that a difference has to have before it is called one."""


@dataclass(frozen=True)
class Line:
    """One quantity in both profiles, in milliseconds per answer.

    Attributes:
        noise: standard error of `ratio`; infinite where there is one answer.
        paired: the answers ran side by side, so `ratio` is that of pairs.
    """

    name: str
    first: float
    second: float
    noise: float
    paired: bool = False

    @property
    def ratio(self) -> float:
        """Of the second to the first."""
        return self.second / self.first if self.first else math.inf if self.second else 1.0

    @property
    def differs(self) -> bool:
        """Whether it is more than noise."""
        return abs(self.ratio - 1) > SURE * self.noise


@dataclass(frozen=True)
class Comparison:
    """All lines: the answer first, then what it consists of."""

    whole: Line
    lines: tuple[Line, ...]

    def largest(self) -> tuple[Line, float] | None:
        """Where most of the difference lies and its share of it; None where the answers' times do not differ."""
        gained = self.whole.second - self.whole.first
        same_way = [line for line in self.lines if (line.second - line.first) * gained > 0 and line.differs]
        if not self.whole.differs or not same_way:
            return None
        line = max(same_way, key=lambda line: abs(line.second - line.first))
        return line, (line.second - line.first) / gained


def compare(first: Profile, second: Profile) -> Comparison:
    """Lines that are in either profile.

    Raises:
        ProfileError: they are of different workloads.
    """
    _check(first.workload, second.workload)
    own, other = _parts(first), _parts(second)
    nothing = (0.0, 0.0)
    lines = (_line(name, own.get(name, nothing), other.get(name, nothing)) for name in {**own, **other})
    return Comparison(_answers(first, second), tuple(lines))


def _check(first: Workload, second: Workload) -> None:
    one, two = first.model_dump(), second.model_dump()
    unequal = [f"{name} {_brief(one[name])} against {_brief(two[name])}" for name in one if one[name] != two[name]]
    if unequal:
        raise ProfileError(
            f"the profiles are of different workloads: {'; '.join(unequal)}",
            cure="measure both with the same checkpoint, question and options; bundle, backend and machine may differ",
        )


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _answers(first: Profile, second: Profile) -> Line:
    own, other = [run.ms for run in first.runs], [run.ms for run in second.runs]
    if _side_by_side(first.runs, second.runs):
        logs = [math.log(b / a) for a, b in zip(own, other, strict=True)]
        noise = statistics.stdev(logs) / math.sqrt(len(logs))
        middle = statistics.fmean(own)
        return Line("answer", middle, middle * math.exp(statistics.fmean(logs)), noise, paired=True)
    return _line("answer", _mean(first.answer_ms), _mean(second.answer_ms))


def _side_by_side(first: tuple[Run, ...], second: tuple[Run, ...]) -> bool:
    """Whether every answer had its counterpart at the same time."""
    if len(first) != len(second) or len(first) < 2:
        return False
    apart = max(abs(a.began - b.began) for a, b in zip(first, second, strict=True))
    return apart * 1e3 < max(run.ms for run in (*first, *second))


def _line(name: str, own: tuple[float, float], other: tuple[float, float]) -> Line:
    """From means and their standard errors."""
    (a, error_a), (b, error_b) = own, other
    noise = math.hypot(error_a / a, error_b / b) * b / a if a and b else 0.0
    return Line(name, a, b, noise)


def _mean(values: Distribution) -> tuple[float, float]:
    """The mean and its standard error."""
    return values.mean, values.std / math.sqrt(values.n - 1) if values.n > 1 else math.inf


def _parts(profile: Profile) -> dict[str, tuple[float, float]]:
    """Milliseconds per answer of every stage, and of the denoising loop by what its steps consist of."""
    found = {name: _mean(ms) for name, ms in profile.stages.items() if name not in ("denoise", "total")}
    sums, squares = dict[str, float](), defaultdict[str, float](float)
    for step in profile.steps:
        share = step.ms.n / len(profile.runs)
        for part, values in (
            (step.kind, step.graph_ms),
            ("sampling", step.sampling_ms),
            ("commit", step.commit_ms),
            ("host", step.host_ms),
        ):
            mean, error = _mean(values)
            sums[part] = sums.get(part, 0.0) + mean * share
            squares[part] += (error * share) ** 2
    return found | {part: (ms, math.sqrt(squares[part])) for part, ms in sums.items()}
