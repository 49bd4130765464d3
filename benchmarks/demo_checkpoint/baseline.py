"""The baseline without learning: nearest neighbour on oriented gradients and colour."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.demo_checkpoint.drawings import HELD_OUT_STYLES, TRAIN_STYLES, Style, Thing, load_style, load_things
from benchmarks.demo_checkpoint.results import add_results

SIDE, CELLS, BINS, COLOUR = 64, 8, 8, 12


def features(drawing: np.ndarray) -> np.ndarray:
    """`[H, W, 4]` uint8 -> `[704 + 432]` float32: 8x8 cells of 8 gradient bins, and 12x12 RGB.

    Each half has unit length, so that shape and colour count the same.
    """
    rgba = Image.fromarray(drawing)
    ground = Image.new("RGBA", rgba.size, "white")
    image = Image.alpha_composite(ground, rgba).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    dy, dx = np.gradient(luma)
    size, angle = np.hypot(dx, dy), np.arctan2(dy, dx) % np.pi / np.pi * BINS
    low = np.floor(angle).astype(int) % BINS
    share = angle - np.floor(angle)
    planes = np.zeros((BINS, SIDE, SIDE), np.float32)
    rows, columns = np.indices((SIDE, SIDE))
    planes[low, rows, columns] = size * (1 - share)
    planes[(low + 1) % BINS, rows, columns] += size * share
    step = SIDE // CELLS
    hog = np.sqrt(planes.reshape(BINS, CELLS, step, CELLS, step).mean((2, 4))).ravel()
    small = np.asarray(image.resize((COLOUR, COLOUR), Image.Resampling.BOX), np.float32).ravel() / 255 - 1
    return np.concatenate([v / (np.linalg.norm(v) + 1e-6) for v in (hog, small)]).astype(np.float32)


Described = tuple[np.ndarray, list[str]]
"""Features `[N, F]` and code points of N drawings."""


def concrete(style: Style, things: dict[str, Thing]) -> Described:
    """The concrete drawings of a style."""
    picked = [i for i, code in enumerate(style.codes) if things[code].concrete]
    return np.stack([features(style.pixels[i]) for i in picked]), [style.codes[i] for i in picked]


def top_five(bank: list[Described], asked: Described) -> dict[str, float]:
    """Share of `asked` whose class is the nearest, or among the five nearest, in the bank."""
    rows = np.concatenate([x for x, _ in bank])
    codes = np.array([c for _, style_codes in bank for c in style_codes])
    queries, answers = asked
    top1 = top5 = 0
    for similarity, answer in zip(queries @ rows.T, answers, strict=True):
        # The five nearest classes, not drawings: one class may hold several of the nearest.
        ranked = list(dict.fromkeys(codes[np.argsort(-similarity)[:60]]))[:5]
        top1 += ranked[0] == answer
        top5 += answer in ranked
    return {"asked": len(answers), "top1": top1 / len(answers), "top5": top5 / len(answers)}


def evaluate(root: Path, cache: Path, bank_styles: tuple[str, ...], test_style: str) -> dict[str, float]:
    """Top-1 and top-5 share of `test_style`; the bank is every concrete drawing of `bank_styles`."""
    things = load_things(root)
    bank = [concrete(load_style(root, style, cache), things) for style in bank_styles]
    return top_five(bank, concrete(load_style(root, test_style, cache), things))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; figures are added to what it holds")
    args = parser.parse_args()
    without_3d = tuple(s for s in TRAIN_STYLES if s != "fluent-emoji-3d")
    results = {
        style: {
            "bank without -3d": evaluate(args.data, args.cache, without_3d, style),
            "bank of all training styles": evaluate(args.data, args.cache, TRAIN_STYLES, style),
        }
        for style in HELD_OUT_STYLES
    }
    add_results(args.out, "baseline", results)


if __name__ == "__main__":
    main()
