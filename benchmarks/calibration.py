"""Do ranges of activations depend on how many masks are left, and on pictures? Calibrations of the demo checkpoint.

The pictures are held-out drawings, one to four in each, as in `benchmarks/quality.py`. Every kind of
linear layer is drawn by itself, over the share of masks; and of calibrations that see less, it is
counted how far inputs go beyond the ranges that they found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.demo_checkpoint.drawings import load_style, load_things
from benchmarks.quality import make_cases
from lladav.calib import CalibrationConfig, calibrate
from lladav.calib.passes import MASK_RATIOS
from lladav.statistics import Statistics
from lladav.statistics_header import Condition

PROMPTS = ("What is this?", "What kind of thing is this?", "Describe this.", "What is its main color?")
PROMPTS += ("How many things are there?", "What is in this picture?")
KINDS = {
    "q, k, v": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate, up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
    "lm_head": ("lm_head",),
}
PLACES: dict[str, Callable[[Condition], bool]] = {
    "canvas, refresh": lambda c: c.kind == "refresh" and c.where == "canvas",
    "canvas, step": lambda c: c.kind == "step",
    "image rows": lambda c: c.where == "image",
    "text rows": lambda c: c.where == "text",
}
PERCENT = 99.9
FEWER_PICTURES = (4, 8, 16, 32)


def tensors(statistics: Statistics, kind: str) -> list[str]:
    """The language model's inputs of one kind of layer, each once."""
    names = statistics.header.graphs["denoiser"].tensors
    return [name for name in names if name.rpartition(".")[2] in KINDS[kind]]


def curves(statistics: Statistics, kind: str) -> dict[str, list[list[float]]]:
    """Percentiles over those of all conditions: by place, for every mask ratio, of every layer that was seen."""
    out: dict[str, list[list[float]]] = {}
    for place, belongs in PLACES.items():
        rows = []
        for ratio in MASK_RATIOS:
            wanted = [c for c in statistics.conditions if belongs(c) and c.mask_ratio == ratio]
            seen = [name for name in tensors(statistics, kind) if _rows(statistics, name, wanted)]
            rows.append([_percentile(statistics, name, wanted) / _percentile(statistics, name) for name in seen])
        if all(rows):
            out[place] = rows
    return out


@dataclass(frozen=True)
class Missed:
    """How far inputs of the language model go beyond the ranges of a calibration that saw less.

    Attributes:
        largest: over all inputs, the range of everything over the range that was found.
        where: the layer of which that is.
        median: the same of the median layer.
        channels: share of channels that go beyond their own range by more than a tenth, in the
            median layer.
    """

    largest: float
    where: str
    median: float
    channels: float


def missed(whole: Statistics, part: Statistics, wanted: Callable[[Condition], bool] = lambda _: True) -> Missed:
    """What `part` would have missed of `whole` if it had seen the wanted conditions alone."""
    names = whole.header.graphs["denoiser"].tensors
    ratios, channels = [], []
    for name in names:
        theirs, ours = part.of(name, wanted).absmax, whole.of(name).absmax
        ratios.append(float(ours.max() / theirs.max()))
        channels.append(float((ours > 1.1 * theirs).mean()))
    worst = int(np.argmax(ratios))
    return Missed(ratios[worst], names[worst], float(np.median(ratios)), float(np.median(channels)))


def draw(statistics: Statistics, file: Path) -> None:
    """A panel per kind of layer: the mean over layers by place, and every layer's refreshed canvas by itself."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(KINDS), figsize=(12, 3.4), sharey=True, layout="constrained")
    shares = [f"{ratio:.0%}" for ratio in MASK_RATIOS]
    for axes, kind in zip(panels, KINDS, strict=True):
        found = curves(statistics, kind)
        for place, rows in found.items():
            mean = [np.exp(np.mean(np.log(row))) for row in rows]
            axes.plot(shares, mean, "o-", color=f"C{list(PLACES).index(place)}", label=place, ms=3)
        axes.plot(shares, found["canvas, refresh"], color="C0", lw=0.8, alpha=0.5)
        axes.axhline(1, color="black", lw=0.6, ls=":")
        axes.set_title(f"input of {kind}", fontsize=10)
        axes.set_xlabel("masks left on the canvas")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{PERCENT} % range under the condition,\nover that of all conditions")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    figure.savefig(file, dpi=150)


def _rows(statistics: Statistics, name: str, wanted: Sequence[Condition]) -> int:
    conditions = statistics.header.graphs["denoiser"].conditions
    chosen = [number for number, condition in enumerate(conditions) if condition in wanted]
    return int(statistics.arrays[f"{name}/histogram"][chosen].sum())


def _percentile(statistics: Statistics, name: str, wanted: Sequence[Condition] | None = None) -> float:
    return statistics.of(name, lambda c: wanted is None or c in wanted).percentile(PERCENT)


def make_pictures(data: Path, cache: Path, folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    things, style = load_things(data), load_style(data, "twemoji", cache)
    for number, case in enumerate(make_cases([style], things, count)):
        case.image.save(folder / f"{number:03d}.png")


def measure(bundle: Path, work: Path, length: int) -> tuple[Statistics, dict[str, Missed]]:
    """The statistics of everything, and what smaller calibrations miss of them."""
    prompts = work / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), "utf-8")

    def run(name: str, images: Path | None, limit: int | None = None) -> Statistics:
        config = CalibrationConfig(gen_length=length, limit=limit)
        return calibrate(bundle, work / f"{name}.npz", images=images, prompts=prompts, config=config, force=True)

    whole = run("whole", work / "pictures")
    less = {
        "first pass alone": missed(whole, whole, lambda c: c.kind == "refresh" and c.mask_ratio == 1.0),
        "refreshes alone": missed(whole, whole, lambda c: c.kind == "refresh"),
        "no image rows": missed(whole, whole, lambda c: c.where != "image"),
        "text alone, no pictures": missed(whole, run("text", None)),
    }
    for count in FEWER_PICTURES:
        less[f"{count} pictures"] = missed(whole, run(f"limit-{count}", work / "pictures", count))
    return whole, less


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="the demo checkpoint's")
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and statistics")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--gen-length", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--picture", type=Path, required=True, help="PNG of ranges against masks")
    args = parser.parse_args()
    make_pictures(args.data, args.cache, args.work / "pictures", args.pictures)
    statistics, less = measure(args.bundle, args.work, args.gen_length)
    report = {
        "missed by calibrations that saw less": {name: asdict(row) for name, row in less.items()},
        f"{PERCENT} % range over that of all conditions": {kind: curves(statistics, kind) for kind in KINDS},
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    draw(statistics, args.picture)
    for name, row in less.items():
        print(f"{name}: {row.largest:.2f} at {row.where}, median {row.median:.3f}, channels {row.channels:.0%}")


if __name__ == "__main__":
    main()
