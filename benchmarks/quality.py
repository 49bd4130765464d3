"""What presets, refresh intervals and selectors keep of the answers, and what they save.

    python -m benchmarks.quality --bundle BUNDLE --data NODE_MODULES --cache CACHE \\
        --page docs/quality.md --json docs/quality.json --picture docs/quality.png

Asks the demo checkpoint the same questions about held-out drawings under every setting and
compares the answers with the right ones. Accuracy is an exact match of the whole answer.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.demo_checkpoint import questions
from benchmarks.demo_checkpoint.drawings import Style, Thing, load_style, load_things, paste
from benchmarks.pages import replace_parts
from benchmarks.quality_picture import draw
from benchmarks.repetition import repetition
from lladav.runtime import Answer, GenerationConfig, Pipeline
from lladav.runtime.presets import PRESETS

CELL = 96
GATES = {"quality": 0.3, "balanced": 1.0}
"""Points of accuracy that a preset may lose against `exact`."""

INTERVALS = (1, 2, 4, 8, 32, 0)
SELECTORS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "threshold 0.9": {"selector": "threshold"},
    "factor 1": {"selector": "factor"},
    "frechet 0.2": {"selector": "frechet"},
    "entropy 0.1": {"selector": "entropy"},
}


@dataclass(frozen=True)
class Case:
    """A question about a held-out drawing, with the one right answer."""

    style: str
    type: str
    text: str
    answer: str
    image: Image.Image


@dataclass(frozen=True)
class Measured:
    """One setting over all cases.

    Attributes:
        right: share of exact matches.
        by_type: the same by type of question.
        nfe: passes of the denoiser per answer.
        refreshes: of which over prompt and canvas.
        tokens_per_pass: tokens up to the end of the answer, its end included, over passes.
        ms: mean milliseconds of denoising per answer.
        answer_ms: of the whole answer, its picture included.
        arr: see `repetition`, as the next two.
        srr: share of answers.
        seq_rep: for n = 2, 3, 4.
        image_tokens: mean per picture.
    """

    right: float
    by_type: dict[str, float]
    nfe: float
    refreshes: float
    tokens_per_pass: float
    ms: float
    answer_ms: float
    arr: float
    srr: float
    seq_rep: tuple[float, float, float]
    image_tokens: float


def make_cases(styles: Sequence[Style], things: dict[str, Thing], count: int) -> list[Case]:
    """`count` questions per style: half of them for names, the rest of all types that one drawing or several allow."""
    cases = []
    for style in styles:
        rng = random.Random(0)
        picked = [i for i, code in enumerate(style.codes) if things[code].concrete]
        others = [things[style.codes[i]] for i in picked]
        for number in range(count):
            kind = ("name", "single", "name", "composed")[number % 4]
            if kind == "composed":
                columns, rows = rng.choice([(2, 1), (1, 2), (2, 2)])
                chosen = rng.sample(picked, columns * rows)
                asked = questions.ask_composed([things[style.codes[i]] for i in chosen], columns, rows, rng, others)
                image = paste([style.pixels[i] for i in chosen], columns, CELL)
            else:
                one = rng.choice(picked)
                thing, colour = things[style.codes[one]], questions.main_colour(style.pixels[one])
                asked = questions.name_question(thing)
                while kind == "single" and asked.type == "name":
                    asked = questions.ask_single(thing, colour, others, rng)
                image = paste([style.pixels[one]], 1, CELL)
            cases.append(Case(style.name, asked.type, asked.text, asked.answer, image))
    return cases


def measure(pipe: Pipeline, cases: Sequence[Case], config: GenerationConfig) -> Measured:
    """Asks every question once."""
    answers = [pipe.generate(case.text, images=[case.image], config=config) for case in cases]
    right = np.array([a.text.strip() == c.answer for a, c in zip(answers, cases, strict=True)])
    types = np.array([case.type for case in cases])
    arr, srr, seq_rep = repetition(answer.token_ids for answer in answers)
    passes = np.array([len(answer.steps) for answer in answers])
    return Measured(
        right=float(right.mean()),
        by_type={str(t): float(right[types == t].mean()) for t in np.unique(types)},
        nfe=float(passes.mean()),
        refreshes=float(np.mean([answer.passes["refresh"] for answer in answers])),
        tokens_per_pass=sum(map(_length, answers)) / int(passes.sum()),
        ms=float(np.mean([answer.timings_ms["denoise"] for answer in answers])),
        answer_ms=float(np.mean([answer.timings_ms["total"] for answer in answers])),
        arr=arr,
        srr=srr,
        seq_rep=seq_rep,
        image_tokens=float(np.mean([sum(answer.image_tokens) for answer in answers])),
    )


def _length(answer: Answer) -> int:
    """Tokens up to the stop, the stop included where there is one."""
    return len(answer.token_ids) + (answer.finish_reason == "stop")


def presets() -> dict[str, GenerationConfig]:
    """The presets, and what pictures may be cut down to."""
    out = {f"preset {name}": GenerationConfig(preset=name) for name in PRESETS}
    for grid in ((2, 1), (1, 1)):
        out[f"balanced, {grid[0]}x{grid[1]}"] = GenerationConfig(preset="balanced", max_grid=grid)
    out["balanced, single view"] = GenerationConfig(preset="balanced", view="single")
    return out


def grid() -> dict[str, GenerationConfig]:
    """Every selector at every refresh interval, the authors' loop first."""
    out = {}
    for label, options in SELECTORS.items():
        preset: Any = "exact" if label == "fixed" else "balanced"
        for interval in INTERVALS:
            name = f"R={interval or 'inf'}, {label}"
            out[name] = GenerationConfig(preset=preset, refresh_interval=interval, **options)
    return out


def table(results: dict[str, Measured]) -> str:
    """Results as a Markdown table; the first is what the others are held against."""
    exact = next(iter(results.values())).right
    lines = [
        "| setting | right | against the first, points | passes (of which refreshes) | tokens per pass "
        "| denoising ms | answer ms | image tokens | ARR | SRR | seq-rep-2 / 3 / 4 |",
        "|---" * 11 + "|",
    ]
    for name, m in results.items():
        reps = " / ".join(f"{share:.3f}" for share in m.seq_rep)
        lines.append(
            f"| {name} | {m.right:.3f} | {100 * (m.right - exact):+.1f} | {m.nfe:.1f} ({m.refreshes:.1f}) "
            f"| {m.tokens_per_pass:.2f} | {m.ms:.1f} | {m.answer_ms:.1f} | {m.image_tokens:.0f} "
            f"| {m.arr:.3f} | {m.srr:.3f} | {reps} |"
        )
    return "\n".join(lines)


def types_table(results: dict[str, Measured], cases: Sequence[Case]) -> str:
    """Accuracy of the presets by type of question."""
    types = sorted({case.type for case in cases})
    presets = [name for name in results if name.startswith("preset ")]
    lines = [
        "| type | asked | " + " | ".join(name.split()[1] for name in presets) + " |",
        "|---" * (len(presets) + 2) + "|",
    ]
    for type_ in types:
        count = sum(case.type == type_ for case in cases)
        shares = " | ".join(f"{results[name].by_type[type_]:.3f}" for name in presets)
        lines.append(f"| {type_} | {count} | {shares} |")
    return "\n".join(lines)


def gates(results: dict[str, Measured]) -> list[str]:
    """One line for every gate, with its verdict."""
    exact = results["preset exact"].right
    out = []
    for name, points in GATES.items():
        lost = 100 * (exact - results[f"preset {name}"].right)
        verdict = "kept" if lost <= points else "**broken**"
        out.append(f"- `{name}` loses {lost:.2f} points against `exact`; at most {points} are allowed: {verdict}.")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="the demo checkpoint's, in fp32")
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--page", type=Path, help="Markdown page whose section is replaced")
    parser.add_argument("--json", type=Path, help="the figures")
    parser.add_argument("--picture", type=Path, help="PNG of quality against time; needs matplotlib")
    parser.add_argument("--count", type=int, default=600, help="questions per style for the presets")
    parser.add_argument("--grid-count", type=int, default=200, help="questions per style for the grid")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    things = load_things(args.data)
    styles = [load_style(args.data, name, args.cache) for name in ("twemoji", "openmoji")]
    # Every answer shall take as long as a robot's, whose next picture is another one.
    pipe = Pipeline.load(args.bundle, args.threads, feature_cache_bytes=0)

    def run(configs: dict[str, GenerationConfig], cases: Sequence[Case]) -> dict[str, Measured]:
        results = {}
        for name, config in configs.items():
            results[name] = measure(pipe, cases, config)
            print(name, json.dumps(asdict(results[name])), flush=True)
        return results

    cases, fewer = (make_cases(styles, things, count) for count in (args.count, args.grid_count))
    of_presets, of_grid = run(presets(), cases), run(grid(), fewer)
    parts = [
        f"Written by `benchmarks/quality.py`: questions about held-out drawings (twemoji, openmoji), {len(cases)} for "
        f"the presets and {len(fewer)} for the grid, canvas of {pipe.bundle.manifest.generation.gen_length} tokens. "
        "Right is an exact match of the whole answer; times are means, with pictures that are new in every answer. The "
        "demo checkpoint is a toy; what holds for it need not hold for LLaDA-V.",
        "## Gates",
        "\n".join(gates(of_presets)),
        "## Presets",
        table(of_presets),
        "## Presets by type of question",
        types_table(of_presets, cases),
        "## Refresh interval and selector",
        table(of_grid),
    ]
    figures = {name: asdict(measured) for name, measured in (of_presets | of_grid).items()}
    if args.page:
        replace_parts(args.page, {"presets": ["\n\n".join(parts)]})
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    if args.picture:
        draw(figures, len(cases), args.picture)


if __name__ == "__main__":
    main()
