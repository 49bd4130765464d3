"""What two bundles are asked: files of questions, or prompts about pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from lladav.errors import ImageError, LladavError, OptionError, PromptError
from lladav.export.agreement_questions import gather_questions


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two of them by their names, and files that are none; nothing is opened here."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("1.JPG", "0.png", "._0.png", "notes.txt"):
        (folder / name).touch()
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_prompts_and_pictures_are_paired(pictures: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.txt", "What is this?\n\nWhere is it?\nHow many?\n")
    asked = gather_questions(pictures, prompts, None, None, sees=True)
    assert [question.prompt for question in asked] == ["What is this?", "Where is it?", "How many?"]
    assert [question.image.name for question in asked if question.image] == ["0.png", "1.JPG", "0.png"]
    assert len(gather_questions(pictures, prompts, None, 2, sees=True)) == 2
    (text,) = gather_questions(None, None, None, None, sees=False)
    assert text.image is None


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("", PromptError, "has no questions"),
        ("no", PromptError, "line 1, is no JSON"),
        ('{"prompt": 1}', PromptError, "prompt: Input should be a valid string"),
        ('{"prompt": "What?", "reply": "a"}', PromptError, "reply: Extra inputs"),
        ("[1, 2]", PromptError, "line 1, is no question"),
        ('{"prompt": "What?", "image": "absent.png"}', ImageError, "absent.png, which does not exist"),
    ],
)
def test_questions_that_cannot_be_read(tmp_path: Path, line: str, kind: type[LladavError], message: str) -> None:
    with pytest.raises(kind, match=message):
        gather_questions(None, None, write(tmp_path / "asked.jsonl", line), None, sees=True)


def test_nothing_to_ask(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ImageError, match="is not a folder"):
        gather_questions(tmp_path / "absent", None, None, None, sees=True)
    with pytest.raises(ImageError, match="holds no picture"):
        gather_questions(tmp_path, None, None, None, sees=True)
    with pytest.raises(PromptError, match="holds no prompt"):
        gather_questions(None, write(tmp_path / "blank.txt", "\n \n"), None, None, sees=True)
    with pytest.raises(PromptError, match="cannot be read"):
        gather_questions(None, tmp_path / "absent.txt", None, None, sees=True)
    with pytest.raises(OptionError, match="there is no --prompts beside it"):
        gather_questions(None, tmp_path / "prompts.txt", tmp_path / "questions.jsonl", None, sees=True)
    with pytest.raises(OptionError, match="reads text alone"):
        gather_questions(pictures, None, None, None, sees=False)
