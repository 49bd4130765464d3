"""What the model is shown: pictures and prompts, paired in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from lladav.errors import CalibrationError
from lladav.picture_files import KINDS, picture_files
from lladav.statistics_header import SourceFile

LEAST_PICTURES = 8
"""With half as many, ranges on the demo checkpoint were up to twice as small as with 128 (docs/calibration.md)."""

PROMPTS = (
    "Please describe the image in detail.",
    "What is shown in this image?",
    "Is there a person in the picture? Answer yes or no.",
    "Read any text that you can see.",
    "How many objects are there, and what are they?",
    "What is to the left of the largest object?",
    "Which colours stand out?",
    "What could happen next? Explain your reasoning step by step.",
)
"""Asked unless the user has prompts: one for each kind of question that LLaDA-V is evaluated on."""


@dataclass(frozen=True)
class CalibrationQuestion:
    """One question, about a picture or about none."""

    prompt: str
    picture: Path | None


def find_pictures(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, by their suffix, in the order of their names.

    Raises:
        CalibrationError: no folder, or too few pictures in it.
    """
    if not folder.is_dir():
        raise CalibrationError(f"{folder} is not a folder", cure="pass --images a folder of pictures")
    found = picture_files(folder)
    if len(found) < LEAST_PICTURES:
        raise CalibrationError(
            f"{folder} holds {len(found)} pictures; a calibration needs at least {LEAST_PICTURES}",
            cure=f"add some that are like those of later use ({KINDS})",
        )
    return tuple(found)


def read_prompts(file: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank, each once.

    Raises:
        CalibrationError: missing, not UTF-8, or blank altogether.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{file} cannot be read: {error}", cure="pass a UTF-8 text, a prompt per line"
        ) from error
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise CalibrationError(f"{file} holds no prompt", cure="write one prompt per line, or leave --prompts out")
    return prompts


def pair(
    pictures: Sequence[Path], prompts: Sequence[str], limit: int | None, seed: int
) -> tuple[CalibrationQuestion, ...]:
    """As many questions as there are pictures or prompts, whichever are more.

    Args:
        pictures: taken in an order that the seed decides, over and over; none for text alone.
        prompts: taken in turn, over and over.
        limit: most questions.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(pictures))
    shown = [pictures[number] for number in order] or [None]
    count = max(len(pictures), len(prompts))
    if limit is not None:
        count = min(count, limit)
    return tuple(CalibrationQuestion(*both) for both in islice(zip(cycle(prompts), cycle(shown)), count))


def source_file(path: Path) -> SourceFile:
    """Its name and sha256."""
    return SourceFile(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
