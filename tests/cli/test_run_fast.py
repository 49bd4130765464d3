"""`lladav run`: presets, deadlines, templates and batches on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run
from PIL import Image


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "gradient.png"
    Image.linear_gradient("L").resize((200, 80)).save(path)
    return str(path)


def answer(bundle: Path, *arguments: str) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(run(bundle, "--prompt", "hm", *arguments, "--json")[0])
    return parsed


def test_knobs_are_in_the_result(tiny_bundle: Path) -> None:
    options = ("--preset", "fast", "--refresh-interval", "5", "--selector", "entropy", "--gamma", "0.3")
    assert answer(tiny_bundle, *options)["knobs"] == {
        "preset": "fast",
        "refresh_interval": 5,
        "selector": "entropy",
        "gamma": 0.3,
        "max_grid": [2, 2],
        "view": "anyres",
        "forbid_mask": True,
    }
    exact = answer(tiny_bundle, "--gen-length", "8", "--steps", "4")
    assert exact["passes"] == {"refresh": 4, "step": 0}


def test_pictures_can_be_cut_into_fewer_crops(tiny_bundle: Path, picture: str) -> None:
    tiles = [
        answer(tiny_bundle, "--image", picture, "--gen-length", "2", *options)["tiles"]
        for options in ((), ("--max-grid", "2x1"), ("--view", "single"))
    ]
    assert tiles[1:] == [[3], [1]]
    assert tiles[0] > tiles[1]  # type: ignore[operator]
    _, err = run(tiny_bundle, "--prompt", "hm", "--image", picture, "--gen-length", "2", "--view", "single")
    assert "1 crop, 17 tokens" in err


def test_deadline(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = answer(tiny_bundle, "--gen-length", "8", "--deadline-ms", "60000")
    assert found["finish_reason"] in ("stop", "length")
    assert list(tmp_path.rglob("*.json"))
    _, err = run(tiny_bundle, "--prompt", "hm", "--deadline-ms", "0.001", expect=2)
    assert "--deadline-ms 0.001 cannot be kept here" in err
    assert "pass --deadline-ms" in err


def test_template_and_schema(tiny_bundle: Path, tmp_path: Path) -> None:
    template = '{"a": "{{3}}", "side": "{{1|2}}", "ok": {{bool}}}'
    (tmp_path / "form.txt").write_text(template + "\n")
    out, _ = run(tiny_bundle, "--prompt", "hm", "--template", template)
    assert json.loads(out).keys() == {"a", "side", "ok"}
    assert run(tiny_bundle, "--prompt", "hm", "--template", str(tmp_path / "form.txt"))[0] == out
    (tmp_path / "schema.json").write_text(
        json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer"}}})
    )
    values = answer(tiny_bundle, "--schema", str(tmp_path / "schema.json"))["values"]
    assert isinstance(values, dict)
    assert isinstance(values["ok"], bool)
    assert isinstance(values["n"], int)


def test_batch(tiny_bundle: Path, picture: str, tmp_path: Path) -> None:
    lines = [
        {"prompt": "hm", "image": picture},
        {"prompt": "what?", "image": [picture]},
        {"prompt_ids": [3, 4, 5]},
        {"prompt": "a\u2028b"},
    ]
    file = tmp_path / "questions.jsonl"
    text = "\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    file.write_text(text, "utf-8", newline="")
    out, _ = run(tiny_bundle, "--batch", str(file), "--batch-size", "2", "--gen-length", "4")
    answers = [json.loads(line) for line in out.splitlines()]
    single = json.loads(run(tiny_bundle, "--prompt-ids", "3,4,5", "--gen-length", "4", "--json")[0])
    assert [a["token_ids"] for a in answers][2] == single["token_ids"]
    assert [a["reused_pictures"] for a in answers] == [0, 1, 0, 0]
    assert [len(a["tiles"]) for a in answers] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "slow"), "preset"),
        (("--batch-size", "2"), "--batch-size without --batch means nothing"),
        (("--selector", "best"), "selector"),
        (("--steps", "4", "--selector", "factor"), "--selector fixed"),
        (("--threshold", "0.9"), "--selector threshold"),
        (("--deadline-ms", "5", "--preset", "exact"), "--deadline-ms and the exact preset"),
        (("--deadline-ms", "-5"), "deadline_ms"),
        (("--max-grid", "2"), "like 2x2"),
        (("--max-grid", "0x2"), "max_grid"),
        (("--view", "double"), "view"),
        (("--template", "no hole"), "--template"),
        (("--template", "{{2}}", "--schema", "x.json"), "--template and --schema"),
        (("--schema", "missing.json"), "missing.json"),
        (("--template", "{{2}}", "--suffix", "x"), "suffix"),
        (("--template", '{"a": "{{left|somewhere else}}"}'), "left"),
        (("--refresh-interval", "-1"), "refresh_interval"),
    ],
)
def test_bad_options_name_themselves(tiny_bundle: Path, arguments: tuple[str, ...], words: str) -> None:
    _, err = run(tiny_bundle, "--prompt", "hm", *arguments, expect=2)
    assert words in err
    assert "->" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no questions"),
        ("{", "line 1, is no JSON"),
        ("[1]", "line 1, is no object"),
        ('{"prompt": "a", "colour": 1}', "line 1, is no object"),
        ('{"prompt": "a"}\n{"prompt": 3}', "line 2, has a value of the wrong type"),
        ('{"image": "a.png"}', "not exactly one of prompt and prompt_ids"),
        ('{"prompt": "a", "prompt_ids": [1]}', "not exactly one"),
        ('{"prompt_ids": [true]}', "wrong type"),
        ('{"prompt": "a"}\n{"prompt": "a", "image": "gone.png"}', "line 2, names the picture gone.png"),
    ],
)
def test_bad_batches_name_the_line(tiny_bundle: Path, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    assert words in run(tiny_bundle, "--batch", str(file), expect=1)[1]
    assert (
        "no --prompt, --system beside it"
        in run(tiny_bundle, "--batch", str(file), "--prompt", "", "--system", "a", expect=2)[1]
    )
