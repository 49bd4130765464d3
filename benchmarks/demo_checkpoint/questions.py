"""What is asked about a picture of one to four drawings, and the one right answer."""

from __future__ import annotations

import dataclasses
import random

import numpy as np

from benchmarks.demo_checkpoint.drawings import Thing

NUMBERS = ("zero", "one", "two", "three", "four")
YES_NO = ("yes", "no")
SINGLE_TYPES = ("name", "kind", "colour", "yes-no", "describe", "count")
COMPOSED_TYPES = ("place", "relation", "list", "there", "count")

# Kinds as a person would say them; a subgroup that is not listed keeps its last word(s).
_KINDS = {
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-marine": "sea animal",
    "animal-bug": "bug",
    "animal-reptile": "reptile",
    "animal-amphibian": "amphibian",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "prepared food",
    "food-asian": "asian food",
    "food-sweet": "sweet",
    "transport-ground": "ground transport",
    "transport-air": "air transport",
    "transport-water": "water transport",
    "place-map": "map",
    "place-building": "building",
    "place-religious": "religious place",
    "place-geographic": "landscape",
    "place-other": "place",
    "sky-weather": "sky and weather",
    "arts-crafts": "arts and crafts",
    "award-medal": "medal",
    "book-paper": "book or paper",
    "light-video": "light and video",
    "musical-instrument": "musical instrument",
    "other-object": "object",
}

# Reference colours of the eleven basic English colour words, RGB.
COLOURS = {
    "red": [(200, 30, 35), (235, 60, 60), (140, 20, 25)],
    "orange": [(245, 140, 30), (255, 165, 60)],
    "yellow": [(255, 205, 50), (250, 225, 90)],
    "green": [(90, 160, 60), (40, 110, 60), (150, 200, 90)],
    "blue": [(40, 110, 200), (90, 175, 235), (25, 60, 130), (150, 205, 235)],
    "purple": [(130, 70, 170), (170, 130, 210)],
    "pink": [(240, 130, 170), (250, 180, 195)],
    "brown": [(125, 80, 50), (165, 115, 75), (85, 55, 40)],
    "black": [(25, 25, 25), (50, 50, 55)],
    "gray": [(130, 135, 140), (165, 170, 175), (95, 100, 105)],
    "white": [(245, 245, 245), (225, 228, 232)],
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        type: name, kind, colour, yes-no, describe, count, place, relation, list or there.
        text: what is asked, without the image mark.
        answer: the only answer that counts as right.
    """

    type: str
    text: str
    answer: str


def kind_of(thing: Thing) -> str:
    """The subgroup in plain words."""
    return _KINDS.get(thing.subgroup, thing.subgroup.replace("-", " "))


def main_colour(drawing: np.ndarray) -> str:
    """The colour word that covers most of a drawing.

    Args:
        drawing: `[H, W, 4]` uint8, straight alpha.
    """
    words = [word for word, shades in COLOURS.items() for _ in shades]
    shades = np.array([shade for group in COLOURS.values() for shade in group], np.float32)
    pixels = drawing[drawing[..., 3] > 128][:, :3].astype(np.float32)
    if not len(pixels):
        return "white"
    # Squared distances by the binomial formula: [pixels, shades] without a third axis.
    nearest = ((shades**2).sum(1) - 2 * pixels @ shades.T).argmin(1)
    counts: dict[str, int] = dict.fromkeys(COLOURS, 0)
    for shade, count in enumerate(np.bincount(nearest, minlength=len(shades))):
        counts[words[shade]] += int(count)
    return max(counts, key=lambda word: counts[word])


def with_article(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def name_question(thing: Thing) -> Question:
    return Question("name", "What is this?", thing.name)


def description(thing: Thing, colour: str) -> Question:
    """Everything about a picture of one drawing, in one answer of eight tokens."""
    answer = f"{with_article(thing.name)}, {with_article(kind_of(thing))}, mostly {colour}"
    return Question("describe", "Describe this.", answer)


def ask_single(thing: Thing, colour: str, others: list[Thing], rng: random.Random) -> Question:
    """A question about a picture of one drawing."""
    type_ = rng.choices(SINGLE_TYPES, (12, 22, 18, 18, 26, 4))[0]
    if type_ == "name":
        return name_question(thing)
    if type_ == "kind":
        return Question("kind", "What kind of thing is this?", kind_of(thing))
    if type_ == "colour":
        return Question("colour", "What is its main color?", colour)
    if type_ == "yes-no":
        return ask_yes_no(thing, others, rng)
    if type_ == "describe":
        return description(thing, colour)
    return Question("count", "How many things are there?", "one")


def ask_yes_no(thing: Thing, others: list[Thing], rng: random.Random) -> Question:
    """ "Is this a ...?": half the time about the right thing, else often about one of its kind."""
    if rng.random() < 0.5:
        return Question("yes-no", f"Is this {with_article(thing.name)}?", "yes")
    similar = [t for t in others if t.subgroup == thing.subgroup and t.name != thing.name]
    other = rng.choice(similar) if similar and rng.random() < 0.5 else rng.choice(others)
    return Question("yes-no", f"Is this {with_article(other.name)}?", "yes" if other.name == thing.name else "no")


def _places(columns: int, rows: int) -> list[str]:
    """How to say where each cell is, row by row."""
    across = {1: [""], 2: ["left", "right"], 3: ["left", "middle", "right"]}[columns]
    down = {1: [""], 2: ["top", "bottom"], 3: ["top", "middle", "bottom"]}[rows]
    words = [f"{y} {x}".strip() for y in down for x in across]
    return [
        f"in the {w}" if w == "middle" else f"on the {w}" if w in ("left", "right") else f"at the {w}" for w in words
    ]


def _neighbours(columns: int, rows: int) -> list[tuple[str, int, int]]:
    """`(relation, cell, other cell)`: `cell` is next to `other cell` in that direction."""
    out = []
    for y in range(rows):
        for x in range(columns):
            here = y * columns + x
            if x + 1 < columns:
                out += [("left of", here, here + 1), ("right of", here + 1, here)]
            if y + 1 < rows:
                out += [("above", here, here + columns), ("below", here + columns, here)]
    return out


def ask_composed(
    things: list[Thing], columns: int, rows: int, rng: random.Random, others: list[Thing], type_: str | None = None
) -> Question:
    """A question about `columns` x `rows` drawings, listed row by row.

    Args:
        things: what each cell shows, all different.
        columns: cells in a row.
        rows: rows of cells.
        rng: source of the choice.
        others: all things, to ask about one that is not there.
        type_: ask for this type of question only.
    """
    type_ = type_ or rng.choices(COMPOSED_TYPES, (28, 28, 20, 20, 4))[0]
    if type_ == "count":
        return Question("count", "How many things are there?", NUMBERS[len(things)])
    if type_ == "list":
        *most, last = (with_article(t.name) for t in things)
        return Question("list", "What is in this picture?", f"{', '.join(most)} and {last}")
    if type_ == "place":
        cell = rng.randrange(len(things))
        return Question("place", f"What is {_places(columns, rows)[cell]}?", things[cell].name)
    if type_ == "relation":
        relation, cell, other = rng.choice(_neighbours(columns, rows))
        return Question("relation", f"What is {relation} the {things[other].name}?", things[cell].name)
    shown = {t.name for t in things}
    if rng.random() < 0.5:
        return Question("there", f"Is there {with_article(rng.choice(things).name)}?", "yes")
    other_thing = rng.choice(others)
    answer = "yes" if other_thing.name in shown else "no"
    return Question("there", f"Is there {with_article(other_thing.name)}?", answer)
