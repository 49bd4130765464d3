"""`lladav run`."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lladav.cli import screen
from lladav.cli.values import integers
from lladav.errors import OptionError, PromptError

if TYPE_CHECKING:
    from lladav.runtime import Answer, Message

_GENERATION = "Generation"
_INPUT = "Input"


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `lladav export`.")],
    prompt: Annotated[
        str | None, typer.Option(rich_help_panel=_INPUT, help="The question; <image> in it marks a picture's place.")
    ] = None,
    prompt_ids: Annotated[
        str | None,
        typer.Option(rich_help_panel=_INPUT, metavar="N,N,...", help="The whole prompt as ids; -200 marks a picture."),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_INPUT, metavar="FILE", help="A conversation: JSON [{role, content}, ...]."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(rich_help_panel=_INPUT, help="System message instead of the authors'.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(rich_help_panel=_INPUT, metavar="FILE", help="A picture; may be repeated.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(rich_help_panel=_INPUT, metavar="DIR", help="A folder of frames.")
    ] = None,
    video_frames: Annotated[
        int | None,
        typer.Option(rich_help_panel=_INPUT, min=1, help="Most frames to look at, spread evenly.", show_default="32"),
    ] = None,
    image_aspect: Annotated[
        str,
        typer.Option(
            rich_help_panel=_INPUT, metavar="anyres|pad", help="Several crops per picture, or one with a gray border."
        ),
    ] = "anyres",
    exif: Annotated[
        bool, typer.Option("--exif", rich_help_panel=_INPUT, help="Turn pictures as their EXIF tag says.")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(rich_help_panel=_INPUT, min=1, help="Larger pictures are refused.", show_default="179 million"),
    ] = None,
    gen_length: Annotated[
        int | None,
        typer.Option(rich_help_panel=_GENERATION, help="Tokens to fill.", show_default="the bundle's"),
    ] = None,
    block_length: Annotated[
        int | None,
        typer.Option(rich_help_panel=_GENERATION, help="Tokens per block, left to right.", show_default="gen-length"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(rich_help_panel=_GENERATION, help="Denoising steps in all.", show_default="one per token"),
    ] = None,
    temperature: Annotated[float, typer.Option(rich_help_panel=_GENERATION, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(rich_help_panel=_GENERATION, help="Same seed, same answer.")] = 0,
    cfg_scale: Annotated[
        float, typer.Option(rich_help_panel=_GENERATION, help="Classifier-free guidance; 0 is off.")
    ] = 0.0,
    remasking: Annotated[
        str,
        typer.Option(
            rich_help_panel=_GENERATION, metavar="low_confidence|random", help="Which positions are filled first."
        ),
    ] = "low_confidence",
    refresh_interval: Annotated[
        int,
        typer.Option(
            rich_help_panel=_GENERATION,
            help="Steps from one pass over prompt and canvas to the next; those between compute the canvas alone. "
            "1 computes all of it always, as the authors do; 0 only once.",
        ),
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_GENERATION,
            help="Text that ends the answer; may be repeated.",
            show_default="end of turn for a text prompt",
        ),
    ] = None,
    no_stop: Annotated[
        bool, typer.Option("--no-stop", rich_help_panel=_GENERATION, help="Fill the whole canvas whatever comes.")
    ] = False,
    stop_ids: Annotated[
        list[str] | None, typer.Option(rich_help_panel=_GENERATION, metavar="N,N,...", help="The same as token ids.")
    ] = None,
    suffix: Annotated[
        str | None, typer.Option(rich_help_panel=_GENERATION, help="Text that the answer has to end with.")
    ] = None,
    suffix_ids: Annotated[
        str | None, typer.Option(rich_help_panel=_GENERATION, metavar="N,N,...", help="The same as token ids.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one operator.", show_default="one per physical core")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the answer filling in.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Answer a question about pictures, a video or nothing but text."""
    if no_stop and (stop or stop_ids):
        raise OptionError("--no-stop and --stop or --stop-ids contradict each other", cure="leave one of them out")
    conversation = _conversation(prompt, prompt_ids, messages, system)
    ids = integers("--prompt-ids", prompt_ids) if prompt_ids is not None else None

    from lladav.runtime import Pipeline
    from lladav.runtime.config import Schedule
    from lladav.runtime.images import MAX_PIXELS
    from lladav.runtime.pipeline import DEFAULT_FRAMES, generation_config

    config = generation_config(
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        seed=seed,
        cfg_scale=cfg_scale,
        remasking=remasking,
        refresh_interval=refresh_interval,
        stop=() if no_stop else tuple(stop) if stop else None,
        stop_ids=tuple(integers("--stop-ids", text) for text in stop_ids or ()),
        suffix=suffix,
        suffix_ids=integers("--suffix-ids", suffix_ids) if suffix_ids is not None else (),
        image_aspect=image_aspect,
    )
    began = perf_counter()
    pipe = Pipeline.load(bundle, threads, MAX_PIXELS if max_pixels is None else max_pixels)
    loading = (perf_counter() - began) * 1e3
    request: dict[str, Any] = {
        "prompt_ids": ids,
        "images": image or [],
        "video": video,
        "video_frames": DEFAULT_FRAMES if video_frames is None else video_frames,
        "config": config,
        "exif": exif,
    }
    if watch:
        from lladav.cli.watch import follow

        steps_in_all = Schedule.of(config, pipe.bundle.manifest.generation.gen_length).steps
        answer = follow(pipe, pipe.stream(conversation, **request), steps_in_all, screen.stderr())
    else:
        answer = pipe.generate(conversation, **request)
    if answer.truncated_tokens:
        screen.stderr().print(
            f"warning: the last {answer.truncated_tokens:,} of "
            f"{answer.prompt_tokens + answer.truncated_tokens:,} prompt positions were cut off at the model's limit"
        )
    if as_json:
        screen.print_json(answer.to_json())
    else:
        typer.echo(answer.text)
        _print_timings(answer, loading)


def _conversation(
    prompt: str | None, prompt_ids: str | None, file: Path | None, system: str | None
) -> str | list[Message] | None:
    """What is asked, unless it is given as ids."""
    if sum(given is not None for given in (prompt, prompt_ids, file)) != 1:
        raise OptionError(
            "exactly one of --prompt, --prompt-ids and --messages is needed", cure="pass --prompt 'What is this?'"
        )
    if system is not None and prompt is None:
        raise OptionError("--system goes with --prompt only", cure="put it into the ids, or into the first message")

    from lladav.runtime import Message

    if file is not None:
        return _read_messages(file)
    if prompt is not None and system is not None:
        return [Message("system", system), Message("user", prompt)]
    return prompt


def _read_messages(file: Path) -> list[Message]:
    from lladav.runtime import Message

    cure = 'write it like [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "..."}, ...]'
    try:
        turns = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"{file} cannot be read as JSON: {error}", cure=cure) from error
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and turn.keys() == {"role", "content"} and all(isinstance(v, str) for v in turn.values())
        for turn in turns
    ):
        raise PromptError(f"{file} is no list of objects with a role and a content", cure=cure)
    return [Message(**turn) for turn in turns]


def _print_timings(answer: Answer, loading: float) -> None:
    table = screen.table(None, "stage", "ms", "", numbers=(1,))
    table.add_row("load", f"{loading:,.1f}", "not in the total")
    for stage, spent in answer.timings_ms.items():
        note = ""
        if stage == "denoise" and answer.steps:
            note = f"{len(answer.steps)} steps of {spent / len(answer.steps):,.1f} ms"
        elif stage == "total":
            table.add_section()
            tokens = f"{answer.prompt_tokens} prompt and {len(answer.token_ids)} answer tokens"
            note = f"{tokens}, ended by {answer.finish_reason}"
        table.add_row(stage.replace("_", " "), f"{spent:,.1f}", note)
    screen.stderr().print(table)
