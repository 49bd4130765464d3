"""What calibrations ask: pictures and prompts, in turns."""

from __future__ import annotations

from pathlib import Path

from lladav.calib.questions import PROMPTS, pair, read_prompts


def test_pictures_and_prompts_take_turns() -> None:
    pictures = [Path(name) for name in "abcde"]
    questions = pair(pictures, ["p", "q"], None, seed=1)
    assert sorted(str(question.picture) for question in questions) == list("abcde")
    assert [question.prompt for question in questions] == ["p", "q", "p", "q", "p"]
    assert questions == pair(pictures, ["p", "q"], None, seed=1) != pair(pictures, ["p", "q"], None, seed=2)
    assert len(pair(pictures[:1], PROMPTS, None, 0)) == len(PROMPTS)
    assert len(pair(pictures, PROMPTS, 3, 0)) == 3
    assert [question.picture for question in pair((), ["p", "q"], None, 0)] == [None, None]


def test_prompts_are_asked_once(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("b\na\n\n  b \n")
    assert read_prompts(file) == ("b", "a")
