"""`lladav run`: what goes to stdout and what to stderr."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from command import run
from PIL import Image
from rich.console import Console

from lladav.cli.watch import follow
from lladav.runtime import GenerationConfig, Pipeline

SHORT = ("--gen-length", "4")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "gradient.png"
    Image.linear_gradient("L").resize((80, 60)).save(path)
    return str(path)


def test_text_alone_is_on_stdout(tiny_bundle: Path, picture: str) -> None:
    out, err = run(tiny_bundle, "--image", picture, "--prompt", "What is this?", *SHORT)
    answer = Pipeline.load(tiny_bundle).generate(
        "What is this?", images=[picture], config=GenerationConfig(gen_length=4)
    )
    assert out == answer.text + "\n"
    for stage in ("load", "preprocess", "vision encoder", "connector", "merge", "denoise", "total"):
        assert stage in err


def test_json_is_one_object(tiny_bundle: Path, picture: str) -> None:
    out, err = run(tiny_bundle, "--image", picture, "--prompt-ids", "-200,3,4", *SHORT, "--steps", "2", "--json")
    answer = json.loads(out)
    assert out.count("\n") == 1
    assert err == ""
    assert answer.keys() == {
        *("token_ids", "text", "finish_reason", "prompt_tokens", "truncated_tokens", "steps", "timings_ms"),
        *("image_tokens", "tiles", "reused_pictures", "knobs", "passes", "mean_confidence", "forced_tokens", "values"),
        *("backend", "fallbacks"),
    }
    assert [len(step["positions"]) for step in answer["steps"]] == [2, 2]
    assert all({"positions", "tokens", "confidences", "ms"} <= step.keys() for step in answer["steps"])
    assert answer["finish_reason"] == "length"
    assert answer["timings_ms"]["total"] == pytest.approx(sum(answer["timings_ms"].values()) / 2)


@pytest.mark.parametrize("ids", ["3,-200", "-200,3", "-200 3", " -200, 3 ,"])
def test_prompt_ids(tiny_bundle: Path, picture: str, ids: str) -> None:
    out, _ = run(tiny_bundle, "--image", picture, f"--prompt-ids={ids}", *SHORT, "--json")
    assert json.loads(out)["prompt_tokens"] > 1


def test_all_generation_options_reach_the_loop(tiny_bundle: Path) -> None:
    options = ("--gen-length", "8", "--block-length", "4", "--steps", "4", "--temperature", "0.7", "--seed", "5")
    more = ("--cfg-scale", "1.5", "--remasking", "random", "--stop-ids", "1,2", "--stop-ids", "3", "--suffix-ids", "9")
    out, _ = run(tiny_bundle, "--prompt-ids", "3,4,5", *options, *more, "--json")
    config = GenerationConfig(
        gen_length=8,
        block_length=4,
        steps=4,
        temperature=0.7,
        seed=5,
        cfg_scale=1.5,
        remasking="random",
        stop_ids=((1, 2), (3,)),
        suffix_ids=(9,),
    )
    expected = Pipeline.load(tiny_bundle).generate(prompt_ids=[3, 4, 5], config=config)
    assert json.loads(out)["token_ids"] == list(expected.token_ids)
    assert expected.token_ids[-1] == 9


def test_limit_of_pixels_can_be_moved(tiny_bundle: Path, picture: str) -> None:
    question = ("--prompt", "Hi", "--image", picture, *SHORT)
    _, err = run(tiny_bundle, *question, "--max-pixels", "4799", expect=1)
    assert "4,800 pixels" in err
    assert "--max-pixels N" in err
    run(tiny_bundle, *question, "--max-pixels", "4800")


def test_no_stop_fills_the_canvas(tiny_bundle: Path) -> None:
    options = ("--prompt", "Hi", "--gen-length", "48", "--json")
    stopped = json.loads(run(tiny_bundle, *options)[0])
    filled = json.loads(run(tiny_bundle, *options, "--no-stop")[0])
    assert len(stopped["token_ids"]) < len(filled["token_ids"]) == 48


def test_video(tiny_bundle: Path, picture: str, tmp_path: Path) -> None:
    for number in range(3):
        Image.open(picture).rotate(90 * number).save(tmp_path / f"{number}.png")
    question = ("--video", str(tmp_path), "--prompt", "hm", *SHORT, "--json")
    (three, _), (two, _) = run(tiny_bundle, *question), run(tiny_bundle, *question, "--video-frames", "2")
    assert json.loads(three)["prompt_tokens"] > json.loads(two)["prompt_tokens"]


def test_system_message_and_conversation(tiny_bundle: Path, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hm"}]
    (tmp_path / "turns.json").write_text(json.dumps(turns))
    (asked, _) = run(tiny_bundle, "--prompt", "hm", "--system", "Be brief.", *SHORT, "--json")
    (read, _) = run(tiny_bundle, "--messages", str(tmp_path / "turns.json"), *SHORT, "--json")
    assert json.loads(asked)["prompt_tokens"] == json.loads(read)["prompt_tokens"]
    assert json.loads(asked)["token_ids"] == json.loads(read)["token_ids"]


def test_cut_prompt_is_told(tiny_bundle: Path, picture: str) -> None:
    ids = ",".join(["3"] * 383 + ["-200"])
    out, err = run(tiny_bundle, "--prompt-ids", ids, "--image", picture, *SHORT, "--json")
    cut = json.loads(out)["truncated_tokens"]
    assert cut > 0
    assert f"the last {cut} of {384 + cut} prompt positions were cut off" in err


def test_watch_without_a_terminal_is_one_line_per_step(tiny_bundle: Path) -> None:
    out, err = run(tiny_bundle, "--prompt", "hm", *SHORT, "--watch")
    lines = [line for line in err.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1  block 1  3 masks")
    assert "\n" in out
    assert "step" not in out


def test_watch_and_json_go_together(tiny_bundle: Path) -> None:
    out, err = run(tiny_bundle, "--prompt", "hm", *SHORT, "--watch", "--json")
    assert len(json.loads(out)["steps"]) == sum(line.startswith("step ") for line in err.splitlines())


def test_watch_in_a_terminal_shows_the_canvas(tiny_bundle: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system="truecolor", width=60)
    pipe = Pipeline.load(tiny_bundle)
    config = GenerationConfig(gen_length=4, preset="exact")
    answer = follow(pipe, pipe.stream(prompt_ids=[3, 4], config=config), console)
    pictures = screen.getvalue().split("\x1b[2K")
    masks = [int(found[1]) for picture in pictures if (found := re.search(r"(\d+) masks", picture))]
    assert masks[:4] == [3, 2, 1, 0]
    assert "step 4  block 1  0 masks" in screen.getvalue()
    assert len(answer.token_ids) == 4


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no question": ((), "exactly one of --prompt"),
    "two questions": (("--prompt", "a", "--prompt-ids", "1"), "exactly one of --prompt"),
    "no ids": (("--prompt-ids", "1,x"), "no list of whole numbers"),
    "empty ids": (("--prompt-ids", ""), "no list of whole numbers"),
    "uneven blocks": (("--prompt", "a", "--gen-length", "6", "--block-length", "4"), "not a multiple of block_length"),
    "uneven steps": (("--prompt", "a", "--gen-length", "8", "--block-length", "4", "--steps", "3"), "--steps 2 or 4"),
    "no steps": (("--prompt", "a", "--steps", "0"), "steps: Input should be greater than 0"),
    "unknown remasking": (("--prompt", "a", "--remasking", "best"), "remasking"),
    "negative temperature": (("--prompt", "a", "--temperature", "-1"), "temperature"),
    "empty stop": (("--prompt", "a", "--stop", ""), "a stop must not be empty"),
    "two suffixes": (("--prompt", "a", "--suffix", "b", "--suffix-ids", "3"), "cannot both be given"),
    "no threads": (("--prompt", "a", "--threads", "0"), "0 threads"),
    "stop and none": (("--prompt", "a", "--no-stop", "--stop", "b"), "contradict each other"),
    "system for ids": (("--prompt-ids", "1", "--system", "a"), "--system goes with --prompt only"),
    "too long": (("--prompt", "a", "--gen-length", "4096"), "lower --gen-length"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_mean_nothing(tiny_bundle: Path, name: str) -> None:
    arguments, message = BAD[name]
    out, err = run(tiny_bundle, *arguments, expect=2)
    assert out == ""
    assert message in err
    assert "\n  -> " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "text", ["", "{", "{}", '["hm"]', '[{"role": "user"}]', '[{"role": "user", "content": 1}]', "[]"]
)
def test_conversation_that_is_none(tiny_bundle: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "turns.json").write_text(text)
    _, err = run(tiny_bundle, "--messages", str(tmp_path / "turns.json"), expect=1)
    assert "error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "a", "--image", "absent.png"), "absent.png does not exist"),
        (("--prompt-ids", "999999"), "token id 999999"),
        (("--prompt", "a", "--video", "absent"), "absent"),
    ],
)
def test_input_that_cannot_be_used(tiny_bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    out, err = run(tiny_bundle, *arguments, expect=1)
    assert out == ""
    assert message in err
    assert "Traceback" not in err
