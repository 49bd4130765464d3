"""What two bundles are asked when they are compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lladav.errors import ImageError, OptionError, PromptError, faults_of
from lladav.export.verify import PICTURE
from lladav.picture_files import KINDS, picture_files

PROMPT = "What is this?"


class AgreementQuestion(BaseModel):
    """One question; a line of a file of questions.

    Attributes:
        prompt: its text.
        image: picture it is about; None for a question of text alone.
        answer: the right one, if it is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    image: Path | None = None
    answer: str | None = None


def gather_questions(
    images: Path | None, prompts: Path | None, questions: Path | None, limit: int | None, *, sees: bool
) -> tuple[AgreementQuestion, ...]:
    """The questions of a file, or prompts about pictures: as many as there are of the more numerous.

    Args:
        images: folder of pictures; for a file of questions, what its paths are relative to.
        prompts: text file, a prompt per line.
        questions: JSON lines of `AgreementQuestion`.
        limit: most questions.
        sees: whether the model has a vision tower, and is shown a built-in photograph where nothing is given.

    Raises:
        ImageError, PromptError: a file that cannot be read, or holds nothing.
        OptionError: options that contradict one another, or pictures for a model of text.
    """
    if questions is not None:
        if prompts is not None:
            raise OptionError("--questions holds prompts, so there is no --prompts beside it", cure="leave one out")
        asked: Sequence[AgreementQuestion] = _read_questions(questions, images or Path())
    else:
        pictures = _find_pictures(images) if images is not None else [PICTURE] if sees else []
        texts = _read_prompts(prompts) if prompts is not None else [PROMPT]
        shown: Sequence[Path | None] = pictures or [None]
        pairs = islice(zip(cycle(texts), cycle(shown), strict=False), max(len(texts), len(shown)))
        asked = [AgreementQuestion(prompt=text, image=picture) for text, picture in pairs]
    if not sees and any(question.image is not None for question in asked):
        raise OptionError("the model reads text alone, but there are pictures", cure="ask about none")
    return tuple(asked[:limit])


def _find_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder", cure="pass --images a folder of pictures")
    found = picture_files(folder)
    if not found:
        raise ImageError(f"{folder} holds no picture", cure=f"add some ({KINDS})")
    return found


def _read_prompts(file: Path) -> list[str]:
    prompts = [line.strip() for line in _text(file).splitlines() if line.strip()]
    if not prompts:
        raise PromptError(f"{file} holds no prompt", cure="write one prompt per line, or leave --prompts out")
    return prompts


def _read_questions(file: Path, folder: Path) -> list[AgreementQuestion]:
    cure = 'write lines like {"image": "a.png", "prompt": "What is this?", "answer": "octopus"}'
    asked = []
    # JSON may hold line separators that are none of the file's lines.
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            question = AgreementQuestion.model_validate(json.loads(line))
        except ValidationError as error:
            raise PromptError(
                f"{file}, line {number}, is no question: {faults_of(error, 'line')}", cure=cure
            ) from error
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{file}, line {number}, is no JSON: {error}", cure=cure) from error
        if question.image is not None:
            picture = folder / question.image
            if not picture.is_file():
                raise ImageError(
                    f"{file}, line {number}, names the picture {picture}, which does not exist",
                    cure="pass --images the folder that paths are relative to, or check the path",
                )
            question = question.model_copy(update={"image": picture})
        asked.append(question)
    if not asked:
        raise PromptError(f"{file} has no questions", cure=cure)
    return asked


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{file} cannot be read: {error}", cure="pass a UTF-8 text file") from error
