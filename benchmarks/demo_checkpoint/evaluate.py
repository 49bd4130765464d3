"""Measures a checkpoint: exact answers to questions about seen and held-out drawings.

Pictures go through the runtime's own preprocessing and merge, and answers through the
reference's denoising loop (greedy, lowest confidence remasked, one token per step).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.demo_checkpoint import questions
from benchmarks.demo_checkpoint.checkpoint import load_checkpoint
from benchmarks.demo_checkpoint.drawings import (
    HELD_OUT_STYLES,
    TRAIN_STYLES,
    Style,
    Thing,
    load_style,
    load_things,
    paste,
)
from benchmarks.demo_checkpoint.language import Answerer, answer_logits
from benchmarks.demo_checkpoint.questions import Question
from benchmarks.demo_checkpoint.results import add_results
from benchmarks.demo_checkpoint.sizes import CANVAS, PINPOINTS, VISION
from benchmarks.demo_checkpoint.tokenizer import SUPPRESSED
from lladav.manifest import Preprocessing
from lladav.runtime.images import pixel_values, preprocess
from lladav.runtime.merge import apply, merge_plan

PREPROCESSING = Preprocessing(
    crop_size=VISION.image_size,
    grid_pinpoints=tuple((c * VISION.image_size, r * VISION.image_size) for c, r in PINPOINTS),
    max_tiles=4,
)
COMPOSED = (
    ((2, 1), "2 in a row"),
    ((1, 2), "2 in a column"),
    ((3, 1), "3 in a row"),
    ((1, 3), "3 in a column"),
    ((2, 2), "4 in a square"),
)


class Model:
    """Answers questions with a checkpoint, many at once."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_checkpoint(folder)
        self.answerer = Answerer(self.model, self.tokenizer)
        self.suppressed = [self.tokenizer.token_to_id(t) for t in SUPPRESSED]

    def image_rows(self, image: Image.Image) -> Tensor:
        """One picture -> its rows in the prompt, `[M, D]`."""
        crops = preprocess(image, PREPROCESSING)
        features = self.model.image_features(torch.from_numpy(pixel_values(crops.pixels)))
        plan = merge_plan(crops.size, crops.grid, VISION.side, PREPROCESSING.max_tiles)
        return torch.from_numpy(apply(plan, features.numpy(), self.model.model.image_newline.numpy()))

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], asked: Sequence[Question], batch: int = 32) -> list[str]:
        """Answers one question per picture."""
        answers = [""] * len(images)
        waiting: dict[int, list[tuple[int, Tensor]]] = {}
        for i, image in enumerate(images):
            rows = self.image_rows(image)
            same = waiting.setdefault(len(rows), [])
            same.append((i, rows))
            if len(same) == batch:
                self._finish(waiting.pop(len(rows)), asked, answers)
        for same in waiting.values():
            self._finish(same, asked, answers)
        return answers

    def _finish(self, group: list[tuple[int, Tensor]], asked: Sequence[Question], answers: list[str]) -> None:
        ids = self.denoise(torch.stack([rows for _, rows in group]), [asked[i] for i, _ in group])
        for (i, _), row in zip(group, ids.tolist(), strict=True):
            text = row[: row.index(self.answerer.eot)] if self.answerer.eot in row else row
            answers[i] = self.tokenizer.decode(text).strip()

    def denoise(self, image: Tensor, asked: list[Question]) -> Tensor:
        """The reference loop with one block, one token per step, and the end of turn as the stop.

        Args:
            image: `[B, M, D]` image rows.
            asked: B questions.

        Returns:
            Ids `[B, CANVAS]`.
        """
        size, mask, eot = len(asked), self.answerer.mask, self.answerer.eot
        rows, positions, bias = self.answerer.prompt(image, asked, CANVAS)
        ids = torch.full((size, CANVAS), mask)
        place = torch.arange(CANVAS)
        for _ in range(CANVAS):
            is_stop = ids == eot
            stop = torch.where(is_stop.any(1), is_stop.int().argmax(1), torch.tensor(CANVAS))
            open_ = (ids == mask) & (place < stop[:, None])
            active = open_.any(1).nonzero().flatten()
            if not len(active):
                break
            canvas = self.model.model.embed_tokens(ids[active])
            logits = answer_logits(
                self.model, torch.cat((rows[active], canvas), 1), positions[active], bias[active], CANVAS
            )
            logits[..., self.suppressed] = -torch.inf
            chosen = logits.argmax(-1)
            confidence = logits.double().softmax(-1).gather(-1, chosen[..., None])[..., 0]
            best = confidence.masked_fill(~open_[active], -torch.inf).argmax(1)
            ids[active, best] = chosen.gather(1, best[:, None])[:, 0]
        return ids


def _share(answers: Sequence[str], asked: Sequence[Question]) -> dict[str, float | int]:
    right = sum(a == q.answer for a, q in zip(answers, asked, strict=True))
    return {"asked": len(asked), "right": round(right / len(asked), 4)}


def names(model: Model, style: Style, things: dict[str, Thing], cell: int, limit: int | None) -> dict[str, Any]:
    """ "What is this?" for every concrete drawing of a style."""
    picked = [i for i, code in enumerate(style.codes) if things[code].concrete]
    if limit:
        picked = random.Random(0).sample(picked, min(limit, len(picked)))
    asked = [questions.name_question(things[style.codes[i]]) for i in picked]
    images = [paste([style.pixels[i]], 1, cell) for i in picked]
    answers = model.answer(images, asked)
    wrong = [[q.answer, a] for a, q in zip(answers, asked, strict=True) if a != q.answer]
    return {**_share(answers, asked), "pixels": cell, "some wrong": wrong[:12]}


def singles(model: Model, style: Style, things: dict[str, Thing], cell: int, count: int) -> dict[str, Any]:
    """Kind, colour, yes-no questions and descriptions, `count` of each, about single drawings."""
    rng = random.Random(1)
    picked = [i for i, code in enumerate(style.codes) if things[code].concrete]
    others = [things[style.codes[i]] for i in picked]
    makers = {
        "kind": lambda t, _: Question("kind", "What kind of thing is this?", questions.kind_of(t)),
        "colour": lambda _, p: Question("colour", "What is its main color?", questions.main_colour(p)),
        "yes-no": lambda t, _: questions.ask_yes_no(t, others, rng),
        "describe": lambda t, p: questions.description(t, questions.main_colour(p)),
    }
    out = {}
    for type_, make in makers.items():
        chosen = rng.sample(picked, min(count, len(picked)))
        asked = [make(things[style.codes[i]], style.pixels[i]) for i in chosen]
        out[type_] = _share(model.answer([paste([style.pixels[i]], 1, cell) for i in chosen], asked), asked)
    return out


def composed(model: Model, style: Style, things: dict[str, Thing], cell: int, count: int) -> dict[str, Any]:
    """Place, relation, list, "is there" and count questions, `count` of each, by arrangement."""
    rng = random.Random(2)
    picked = [i for i, code in enumerate(style.codes) if things[code].concrete]
    others = [things[style.codes[i]] for i in picked]
    out: dict[str, Any] = {}
    for (columns, rows), label in COMPOSED:
        for type_ in questions.COMPOSED_TYPES:
            images, asked = [], []
            for _ in range(count):
                cells = rng.sample(picked, columns * rows)
                shown = [things[style.codes[i]] for i in cells]
                asked.append(questions.ask_composed(shown, columns, rows, rng, others, type_))
                images.append(paste([style.pixels[i] for i in cells], columns, cell))
            out.setdefault(type_, {})[label] = _share(model.answer(images, asked), asked)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; results are added to what it holds")
    parser.add_argument("--styles", nargs="+", default=[*HELD_OUT_STYLES, *TRAIN_STYLES])
    parser.add_argument("--pixels", type=int, default=96, help="side of a single drawing")
    parser.add_argument("--limit", type=int, help="ask only so many names per style; all when absent")
    parser.add_argument("--single", type=int, default=0, help="questions of each other type about one drawing")
    parser.add_argument("--composed", type=int, default=0, help="questions of each type and layout about several")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, things = Model(args.checkpoint), load_things(args.data)
    for name in args.styles:
        start, style = time.monotonic(), load_style(args.data, name, args.cache)
        measured: dict[str, Any] = {}
        if args.limit != 0:
            measured[f"name at {args.pixels}"] = names(model, style, things, args.pixels, args.limit)
        if args.single:
            measured["single"] = singles(model, style, things, args.pixels, args.single)
        if args.composed:
            measured["composed"] = composed(model, style, things, args.pixels, args.composed)
        add_results(args.out, f"whole model, {name}", measured)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
