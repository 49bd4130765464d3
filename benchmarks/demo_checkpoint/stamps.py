"""Out-of-domain pictures: Tux Paint stamps (Debian `tuxpaint-stamps-default`, GPL-2), mostly cut-out photographs.

A stamp counts if the first line of its caption has the name of a concrete thing in it; the
longest such name is the right answer. Symbols are left out. None of this is ever trained on.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.demo_checkpoint.baseline import concrete, top_five
from benchmarks.demo_checkpoint.drawings import RENDER_SIZE, TRAIN_STYLES, Style, Thing, load_style, load_things, square
from benchmarks.demo_checkpoint.evaluate import Model, names
from benchmarks.demo_checkpoint.results import add_results


def load_stamps(folder: Path, things: dict[str, Thing]) -> Style:
    """Every stamp below `folder` whose caption names a concrete thing."""
    codes = {thing.name: thing.code for thing in things.values() if thing.concrete}
    longest_first = "|".join(re.escape(name) for name in sorted(codes, key=len, reverse=True))
    name = re.compile(rf"\b({longest_first})\b")
    found, pixels = [], []
    for path in sorted(folder.rglob("*.png")):
        caption = path.with_suffix(".txt")
        if "symbols" in path.relative_to(folder).parts or not caption.exists():
            continue
        matches = name.findall(caption.read_text("utf8", errors="replace").split("\n")[0].lower())
        if matches:
            found.append(codes[max(matches, key=len)])
            pixels.append(np.asarray(square(Image.open(path), RENDER_SIZE)))
    return Style("tuxpaint-stamps", found, np.stack(pixels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="the package's folder usr/share/tuxpaint/stamps")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; figures are added to what it holds")
    args = parser.parse_args()
    things = load_things(args.data)
    stamps = load_stamps(args.stamps, things)
    bank = [load_style(args.data, style, args.cache) for style in TRAIN_STYLES if style != "fluent-emoji-3d"]
    baseline = top_five([concrete(style, things) for style in bank], concrete(stamps, things))
    results = {"baseline": baseline, "whole model": names(Model(args.checkpoint), stamps, things, 96, None)}
    add_results(args.out, "tuxpaint-stamps", results)


if __name__ == "__main__":
    main()
