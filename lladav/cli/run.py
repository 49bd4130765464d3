"""`lladav run`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from lladav.cli import screen
from lladav.cli.answer_table import print_timings, warn_if_cut
from lladav.cli.conversation import conversation, read_batch, read_template
from lladav.cli.loading import load_pipeline
from lladav.cli.values import integers
from lladav.errors import OptionError

_GENERATION = "Generation"
_INPUT = "Input"
_SPEED = "Speed"
_FORM = "Form of the answer"
_MACHINE = "Machine"


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
    preset: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_SPEED,
            metavar="exact|quality|balanced|fast|realtime",
            help="Where the options below come from that are not given.",
            show_default="balanced; exact with --steps, --block-length or --remasking random",
        ),
    ] = None,
    refresh_interval: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_SPEED,
            metavar="R",
            help="Steps from one pass over prompt and canvas to the next; those between compute the canvas alone. "
            "1 computes all of it always, as the authors do; 0 only once.",
        ),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_SPEED,
            metavar="fixed|threshold|factor|frechet|entropy",
            help="How many tokens a step commits: a schedule, or as many as the model is sure of.",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(rich_help_panel=_SPEED, help="Least confidence, of the threshold selector.")
    ] = None,
    factor: Annotated[float | None, typer.Option(rich_help_panel=_SPEED, help="Of the factor selector.")] = None,
    delta: Annotated[float | None, typer.Option(rich_help_panel=_SPEED, help="Of the frechet selector.")] = None,
    gamma: Annotated[
        float | None, typer.Option(rich_help_panel=_SPEED, help="Nats, of the entropy-bounded selector.")
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(rich_help_panel=_SPEED, metavar="MS", help="The answer is whole after that many milliseconds."),
    ] = None,
    max_grid: Annotated[
        str | None,
        typer.Option(rich_help_panel=_SPEED, metavar="WxH", help="Most columns and rows of crops of a picture."),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(rich_help_panel=_SPEED, metavar="anyres|single", help="Crops, or one view of the whole picture."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_FORM,
            metavar="TEXT|FILE",
            help='The answer with holes to fill: {"object": "{{6}}", "side": "{{left|right}}", "seen": {{bool}}}.',
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_FORM, metavar="FILE", help="A JSON schema of flat fields, as a template."),
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_INPUT,
            metavar="FILE.jsonl",
            help='Questions, one per line: {"prompt": "...", "image": "a.png"}; answers come as JSON lines.',
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_INPUT, min=1, help="Questions of --batch computed side by side.", show_default="8"
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            rich_help_panel=_MACHINE,
            metavar="auto|tensorrt|tensorrt-rtx|ort-cuda|cpu",
            help="What computes; auto takes the first of these that really loads.",
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_MACHINE, help="Threads of one operator on the CPU.", show_default="one per physical core"
        ),
    ] = None,
    max_prompt: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_MACHINE,
            help="Prompt positions that GPU memory is laid out for.",
            show_default="as many as fit",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the answer filling in.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Answer a question about pictures, a video or nothing but text."""
    if no_stop and (stop or stop_ids):
        raise OptionError("--no-stop and --stop or --stop-ids contradict each other", cure="leave one of them out")
    if batch is not None:
        beside = {
            "--prompt": prompt,
            "--prompt-ids": prompt_ids,
            "--messages": messages,
            "--system": system,
            "--image": image,
            "--video": video,
            "--video-frames": video_frames,
            "--watch": watch or None,
        }
        given = [name for name, value in beside.items() if value is not None]
        if given:
            raise OptionError(
                f"--batch holds the questions, so there is no {', '.join(given)} beside it",
                cure="put them into the file's lines, or leave --batch out",
            )
    elif batch_size is not None:
        raise OptionError("--batch-size without --batch means nothing", cure="pass --batch FILE.jsonl, or leave it out")
    ids = integers("--prompt-ids", prompt_ids) if prompt_ids is not None else None

    from lladav.runtime.config import generation_config
    from lladav.runtime.pipeline import BATCH
    from lladav.runtime.question import DEFAULT_FRAMES

    config = generation_config(
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        seed=seed,
        cfg_scale=cfg_scale,
        remasking=remasking,
        stop=() if no_stop else tuple(stop) if stop else None,
        stop_ids=tuple(integers("--stop-ids", text) for text in stop_ids or ()),
        suffix=suffix,
        suffix_ids=integers("--suffix-ids", suffix_ids) if suffix_ids is not None else (),
        image_aspect=image_aspect,
        preset=preset,
        refresh_interval=refresh_interval,
        selector=selector,
        threshold=threshold,
        factor=factor,
        delta=delta,
        gamma=gamma,
        deadline_ms=deadline_ms,
        max_grid=max_grid,
        view=view,
        template=read_template(template, schema),
    )
    questions = read_batch(batch, exif) if batch is not None else []
    asked = conversation(prompt, prompt_ids, messages, system) if batch is None else None
    began = perf_counter()
    pipe = load_pipeline(bundle, backend, config, threads=threads, max_prompt=max_prompt, max_pixels=max_pixels)
    loading = (perf_counter() - began) * 1e3
    if batch is not None:
        for number, answer in enumerate(pipe.generate_batch(questions, config, batch=batch_size or BATCH), 1):
            warn_if_cut(answer, f"question {number}: ")
            screen.print_json(answer.to_json())
        return
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

        answer = follow(pipe, pipe.stream(asked, **request), screen.stderr())
    else:
        answer = pipe.generate(asked, **request)
    warn_if_cut(answer)
    if as_json:
        screen.print_json(answer.to_json())
    else:
        typer.echo(answer.text)
        print_timings(answer, loading)
