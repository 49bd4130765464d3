"""Draws the ten example pictures, from drawings under Apache-2.0 or MIT only."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.demo_checkpoint.drawings import draw, load_things, paste

CELL = 256
LICENCES = {
    "noto": "Apache-2.0 (Google, Noto Emoji; npm @iconify-json/noto)",
    "fxemoji": "Apache-2.0 (Mozilla, FxEmojis; npm @iconify-json/fxemoji)",
    "fluent-emoji-flat": "MIT (Microsoft, Fluent Emoji; npm @iconify-json/fluent-emoji-flat)",
}
# Style, columns, ground, and names row by row; then question and answer.
PICTURES = [
    ("noto", 1, "white", ["octopus"], "What is this?", "octopus"),
    ("fluent-emoji-flat", 1, "white", ["red apple"], "What is this?", "red apple"),
    ("fxemoji", 1, "white", ["guitar"], "What is this?", "guitar"),
    ("noto", 1, "#dff3ff", ["fire engine"], "What is this?", "fire engine"),
    ("fluent-emoji-flat", 1, "white", ["lion"], "What kind of thing is this?", "mammal"),
    ("noto", 1, "white", ["banana"], "Describe this.", "a banana, a fruit, mostly yellow"),
    ("noto", 2, "white", ["octopus", "red apple"], "What is left of the red apple?", "octopus"),
    ("fluent-emoji-flat", 1, "white", ["umbrella", "sunflower"], "What is below the umbrella?", "sunflower"),
    ("noto", 3, "#fff4d6", ["lemon", "key", "rocket"], "What is in this picture?", "a lemon, a key and a rocket"),
    ("fluent-emoji-flat", 2, "white", ["tiger", "pizza", "rose", "trumpet"], "How many things are there?", "four"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    codes = {t.name: t.code for t in load_things(args.data).values()}
    listed, licences = [], []
    for number, (style, columns, ground, shown, question, answer) in enumerate(PICTURES):
        drawings = draw(args.data, style, [codes[name] for name in shown], CELL)
        file = f"{number:02d}-{'-'.join(shown).replace(' ', '_')}.png"
        cells = [np.asarray(drawings[codes[name]]) for name in shown]
        paste(cells, columns, CELL, ground).save(args.out / file, optimize=True)
        listed.append({"image": file, "question": question, "answer": answer})
        licences.append(f"| {file} | {style} | {LICENCES[style]} |")
    (args.out / "questions.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    table = ["| Picture | Style | Licence of the drawings |", "|---|---|---|", *licences]
    text = "# Licences of the pictures\n\nComposed by `pictures.py` from unmodified drawings, scaled.\n\n"
    (args.out / "LICENSES.md").write_text(text + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
