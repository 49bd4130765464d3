"""Refresh and step of the same weights in every form of integers beside fp16, in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.gpu.finding import Finding, Table
from benchmarks.gpu.rig import Rig, each_backend
from benchmarks.gpu.steps import answered, question
from lladav.backends import Limits
from lladav.bundle import Bundle
from lladav.errors import LladavError
from lladav.records import read_records
from lladav.runtime.results import PassKind

PLAIN = "fp16"
_INTERVALS: dict[PassKind, int] = {"refresh": 1, "step": 0}


@dataclass(frozen=True)
class Pairs:
    """A pass in fp16 and in a form; milliseconds, one pair of answers after the other."""

    plain_ms: tuple[float, ...]
    ms: tuple[float, ...]

    @property
    def times_as_fast(self) -> float:
        """Median over the pairs."""
        return median(plain / own for plain, own in zip(self.plain_ms, self.ms, strict=True))


def forms(
    rig: Rig, bundles: Mapping[str, Bundle], prompts: Sequence[int], canvases: Sequence[int], count: int, rounds: int
) -> Finding:
    """Every backend, form, prompt and canvas; both bundles are loaded at the same time.

    Args:
        rig: what runs them.
        bundles: of one checkpoint by form, with `PLAIN`.
        prompts: positions.
        canvases: positions.
        count: passes of an answer, at most one per position.
        rounds: pairs of answers that count, after one that warms up.
    """
    limits = Limits(prompt=max(prompts), canvas=max(canvases))

    def measure(backend: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for form, bundle in bundles.items():
            if form == PLAIN:
                continue
            try:
                with (
                    rig.pipeline(backend, bundles[PLAIN], limits) as plain,
                    rig.pipeline(backend, bundle, limits) as integers,
                ):
                    found[form] = {
                        f"{kind}, {prompt}+{canvas}": _pairs(
                            (plain, integers), kind, prompt, canvas, min(count, canvas), rounds
                        )
                        for kind in _INTERVALS
                        for prompt in prompts
                        for canvas in canvases
                    }
            except LladavError as error:
                found[form] = str(error)
        return found

    found, refused = each_backend(rig, measure)
    figures = {
        "backends": {
            backend: {
                form: {size: asdict(pairs) for size, pairs in sizes.items()} if isinstance(sizes, dict) else sizes
                for form, sizes in own.items()
            }
            for backend, own in found.items()
        },
        "integers": {
            f"{form}, {record.target}, {record.graph}": record.integers.model_dump(mode="json")
            for form, bundle in bundles.items()
            for record in read_records(bundle.path)
            if record.integers is not None
        },
        "refused": refused,
    }
    return Finding(figures, (table(found),))


def _pairs(pipelines: Any, kind: PassKind, prompt: int, canvas: int, count: int, rounds: int) -> Pairs:
    asked = [question(pipeline, prompt, canvas, count, _INTERVALS[kind]) for pipeline in pipelines]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        # Each begins every other pair, so that what the other left in the caches weighs on both.
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].append(answered(pipelines[which], asked[which], kind))
    plain, own = times
    return Pairs(tuple(plain[1:]), tuple(own[1:]))


def table(found: Mapping[str, Mapping[str, Mapping[str, Pairs] | str]]) -> Table:
    """Slower than fp16 stands out; what did not load has its reason."""
    rows = []
    for backend, own in found.items():
        for form, sizes in own.items():
            if isinstance(sizes, str):
                rows.append((backend, form, "does not load", "", "", sizes.replace("\n", " ")))
                continue
            for size, pairs in sizes.items():
                faster = pairs.times_as_fast
                said = f"{faster:.2f}" if faster >= 1 else f"**{faster:.2f}, slower**"
                times = (f"{median(pairs.plain_ms):.2f}", f"{median(pairs.ms):.2f}")
                rows.append((backend, form, size.replace("+", " + "), *times, said))
    columns = ("backend", "form", "pass, prompt + canvas", "fp16 ms", "ms", "times as fast, or why not")
    return Table("Forms of integers beside fp16, medians of pairs", columns, tuple(rows))
