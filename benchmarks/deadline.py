"""Are deadlines kept? Many answers at deadlines from tight to loose, with and without a busy second process.

A miss is an answer that came after its deadline; the promise is at most one step beyond it. Every
question asks for a description of a held-out drawing, the longest answers of the demo
checkpoint. The features of pictures are not kept, so every answer pays for its picture.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.demo_checkpoint import questions
from benchmarks.demo_checkpoint.drawings import Style, Thing, load_style, load_things, paste
from benchmarks.quality import CELL, Case
from lladav.errors import OptionError
from lladav.runtime import GenerationConfig, Pipeline


@dataclass(frozen=True)
class Point:
    """Answers at one deadline.

    Attributes:
        deadline_ms: what was asked for.
        answers: how many were given.
        refused: how many the pipeline refused beforehand, naming the least possible deadline.
        misses: answers after the deadline.
        beyond_a_step: of these, later than the promise of one step.
        worst_ms: largest overrun.
        median_ms: time of an answer.
        right: share of exact matches among the answers.
        forced: tokens committed because time ran out, per answer.
    """

    deadline_ms: float
    answers: int
    refused: int
    misses: int
    beyond_a_step: int
    worst_ms: float
    median_ms: float | None
    right: float | None
    forced: float | None


def make_cases(style: Style, things: dict[str, Thing], count: int) -> list[Case]:
    """Descriptions of `count` drawings."""
    picked = [i for i, code in enumerate(style.codes) if things[code].concrete]
    cases = []
    for i in random.Random(0).sample(picked, count):
        asked = questions.description(things[style.codes[i]], questions.main_colour(style.pixels[i]))
        cases.append(Case(style.name, asked.type, asked.text, asked.answer, paste([style.pixels[i]], 1, CELL)))
    return cases


def _spin() -> None:
    """Matrix products until killed."""
    a = np.random.default_rng(0).normal(size=(512, 512))
    while True:
        a = np.tanh(a @ a)


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """A second process that loads one core."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    if wanted:
        process.start()
        time.sleep(2)
    try:
        yield
    finally:
        if wanted:
            process.kill()
            process.join()


def at(pipe: Pipeline, cases: Sequence[Case], deadline_ms: float, preset: str) -> Point:
    """Asks every case with that deadline."""
    config = GenerationConfig(preset=preset, deadline_ms=deadline_ms)  # type: ignore[arg-type]
    over, spent, right, forced, refused, beyond = [], [], [], [], 0, 0
    for case in cases:
        began = time.perf_counter()
        try:
            answer = pipe.generate(case.text, images=[case.image], config=config)
        except OptionError:
            refused += 1
            continue
        ms = (time.perf_counter() - began) * 1e3 - answer.timings_ms.get("warm_up", 0.0)
        over.append(ms - deadline_ms)
        beyond += over[-1] > max(step.ms for step in answer.steps)
        spent.append(ms)
        right.append(answer.text.strip() == case.answer)
        forced.append(answer.forced_tokens)
    given = len(spent)
    return Point(
        deadline_ms=round(deadline_ms, 2),
        answers=given,
        refused=refused,
        misses=sum(o > 0 for o in over),
        beyond_a_step=beyond,
        worst_ms=max(0.0, *over) if over else 0.0,
        median_ms=float(np.median(spent)) if given else None,
        right=float(np.mean(right)) if given else None,
        forced=float(np.mean(forced)) if given else None,
    )


_SHOWN = 20
"""Answers that a share is drawn from at least; deadlines that are nearly always refused have fewer."""


def draw(curves: dict[str, list[Point]], file: Path) -> None:
    """Quality against deadline."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, points in curves.items():
        given = [
            # What a share of so few is expected to be off by.
            (p.deadline_ms, 100 * p.right, 100 * math.sqrt(p.right * (1 - p.right) / p.answers))
            for p in points
            if p.right is not None and p.answers >= _SHOWN
        ]
        deadlines, right, errors = np.reshape(given, (-1, 3)).T
        axes.errorbar(deadlines, right, errors, marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_xlabel("deadline, ms (whole answer, picture included)")
    axes.set_ylabel("right answers, % with standard error")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="the demo checkpoint's")
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--picture", type=Path, help="PNG of quality against time; needs matplotlib")
    parser.add_argument("--answers", type=int, default=1000, help="in all, over the deadlines, for each load")
    parser.add_argument("--points", type=int, default=10, help="deadlines")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    things, style = load_things(args.data), load_style(args.data, "twemoji", args.cache)
    cases = make_cases(style, things, args.answers // args.points)
    pipe = Pipeline.load(args.bundle, args.threads, feature_cache_bytes=0)
    curves: dict[str, list[Point]] = {}
    for load, label in ((False, "idle"), (True, "beside a busy process")):
        with busy_process(load):
            free = [
                pipe.generate(case.text, images=[case.image], config=GenerationConfig(preset=args.preset))
                for case in cases[:20]
            ]
            usual = float(np.median([answer.timings_ms["total"] for answer in free]))
            deadlines = usual * np.geomspace(0.3, 3, args.points)
            curves[label] = [at(pipe, cases, float(ms), args.preset) for ms in deadlines]
        for point in curves[label]:
            print(label, json.dumps(asdict(point)), flush=True)
    args.out.write_text(json.dumps({k: [asdict(p) for p in v] for k, v in curves.items()}, indent=2) + "\n", "utf-8")
    if args.picture:
        draw(curves, args.picture)


if __name__ == "__main__":
    main()
