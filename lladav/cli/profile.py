"""`lladav profile`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lladav.cli import screen
from lladav.cli.loading import load_pipeline
from lladav.cli.profile_tables import print_comparison, print_profile
from lladav.errors import OptionError

if TYPE_CHECKING:
    from lladav.runtime import GenerationConfig, Pipeline
    from lladav.runtime.profiling import Asking
    from lladav.runtime.profiling.memory import MemoryLedger

_INPUT = "Input"
_ANSWER = "Answer"
_MEASURING = "Measuring"
_FILES = "Profiles that exist"


def profile(
    bundle: Annotated[Path | None, typer.Argument(help="Folder made by `lladav export`.")] = None,
    prompt: Annotated[
        str | None, typer.Option(rich_help_panel=_INPUT, help="The question; <image> in it marks a picture's place.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(rich_help_panel=_INPUT, metavar="FILE", help="A picture; may be repeated.")
    ] = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            rich_help_panel=_INPUT,
            help="A picture of noise, and an answer that fills the canvas; what is asked without a --prompt.",
        ),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_ANSWER, metavar="exact|quality|balanced|fast|realtime", show_default="as in `lladav run`"
        ),
    ] = None,
    gen_length: Annotated[
        int | None, typer.Option(rich_help_panel=_ANSWER, help="Tokens to fill.", show_default="the bundle's")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(rich_help_panel=_ANSWER, help="Denoising steps in all, of a schedule.")
    ] = None,
    refresh_interval: Annotated[
        int | None, typer.Option(rich_help_panel=_ANSWER, metavar="R", help="Steps from one refresh to the next.")
    ] = None,
    selector: Annotated[
        str | None, typer.Option(rich_help_panel=_ANSWER, metavar="fixed|threshold|factor|frechet|entropy")
    ] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(rich_help_panel=_ANSWER, metavar="MS", help="Answers are whole after that time.")
    ] = None,
    view: Annotated[str | None, typer.Option(rich_help_panel=_ANSWER, metavar="anyres|single")] = None,
    no_stop: Annotated[
        bool, typer.Option("--no-stop", rich_help_panel=_ANSWER, help="Fill the whole canvas whatever comes.")
    ] = False,
    backend: Annotated[
        str, typer.Option(metavar="auto|tensorrt|tensorrt-rtx|ort-cuda|cpu", help="What computes.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads of one operator on the CPU.", show_default="one per physical core")
    ] = None,
    runs: Annotated[
        int, typer.Option(rich_help_panel=_MEASURING, help="Answers that are measured; 100 for a p99.")
    ] = 10,
    warmup: Annotated[int, typer.Option(rich_help_panel=_MEASURING, help="Answers before them.")] = 2,
    fps: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_MEASURING,
            help="Play a camera of that rate, of which answers see the latest frame.",
            show_default="a new frame whenever one is wanted",
        ),
    ] = None,
    load: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_MEASURING, metavar="COMMAND", help="A process to run beside the answers; may be repeated."
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", rich_help_panel=_MEASURING, help="Also measure passes over the bundle's buckets."),
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(rich_help_panel=_MEASURING, help="Look into the graphs afterwards, in sessions of their own."),
    ] = True,
    probe: Annotated[
        bool,
        typer.Option("--probe", rich_help_panel=_MEASURING, help="Measure the machine's rates anew, for the limits."),
    ] = False,
    nvtx: Annotated[
        bool, typer.Option("--nvtx", rich_help_panel=_MEASURING, help="Mark ranges for Nsight Systems.")
    ] = False,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")] = Path("lladav-profile"),
    force: Annotated[bool, typer.Option("--force", help="Replace a profile that is there.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(rich_help_panel=_FILES, metavar="A.json B.json", help="Compare two profiles, and do no more."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_FILES, metavar="FILE", help="Draw the report of a profile.json beside it."),
    ] = None,
) -> None:
    """Measure where every millisecond of an answer goes, or compare two such measurements."""
    if sum(given is not None for given in (bundle, compare, report)) != 1:
        raise OptionError(
            "exactly one of a bundle, --compare and --report is needed", cure="pass `lladav profile BUNDLE`"
        )
    if compare is not None:
        _compare(*compare)
        return
    if report is not None:
        _draw(report)
        return
    assert bundle is not None
    if synthetic and (prompt is not None or image):
        raise OptionError("--synthetic and --prompt or --image contradict each other", cure="leave one of them out")
    if image and prompt is None:
        raise OptionError("--image without --prompt asks nothing", cure="pass --prompt 'What is this?'")

    from lladav.machine import check_threads
    from lladav.runtime.config import generation_config
    from lladav.runtime.profiling import MemoryLedger
    from lladav.runtime.profiling import profile as measure
    from lladav.runtime.profiling.measure import check
    from lladav.runtime.profiling.output import REPORT, check_output, write
    from lladav.runtime.profiling.probe import probe as measure_rates

    check(runs, warmup, fps)
    check_threads(threads)
    replace = force or _may_replace(output)
    check_output(output, replace=replace)
    config = generation_config(
        gen_length=gen_length,
        steps=steps,
        preset=preset,
        refresh_interval=refresh_interval,
        selector=selector,
        deadline_ms=deadline_ms,
        view=view,
        stop=() if no_stop else None,
    )
    rates = measure_rates(threads, renew=probe) if backend in ("auto", "cpu") else None
    ledger = MemoryLedger(bundle)
    pipeline = _load(bundle, backend, config, threads, ledger)
    asking = _asking(pipeline, config, prompt, image or [])
    with screen.stderr().status("warm-up") as status:
        measured = measure(
            pipeline,
            asking,
            runs=runs,
            warmup=warmup,
            frames_per_second=fps,
            load=load or (),
            ledger=ledger,
            probe=rates,
            layers=layers,
            sweeping=sweep,
            nvtx=nvtx,
            progress=lambda stage, done: status.update(f"{stage}: {done}"),
        )
    files = write(measured, output, replace=replace)
    print_profile(measured.profile, screen.stdout())
    screen.stderr().print("written:", ", ".join(map(str, files)), soft_wrap=True)
    if output / REPORT not in files:
        screen.stderr().print(
            f"{REPORT} takes matplotlib, which is missing: pip install 'lladav[report]'", soft_wrap=True
        )


def _may_replace(output: Path) -> bool:
    """Asks where somebody is there to answer."""
    return output.exists() and sys.stdin.isatty() and typer.confirm(f"{output} exists; replace it?", err=True)


def _load(bundle: Path, backend: str, config: GenerationConfig, threads: int | None, ledger: MemoryLedger) -> Pipeline:
    """With nothing kept of earlier pictures, since a robot's next one is another."""
    from lladav.runtime.tracing import traced

    with traced(ledger):
        pipeline = load_pipeline(bundle, backend, config, threads=threads, feature_cache_bytes=0)
        if pipeline.bundle.manifest.geometry.vision is not None:
            pipeline.pictures.load()
    ledger.loaded()
    return pipeline


def _asking(pipeline: Pipeline, config: GenerationConfig, prompt: str | None, images: list[Path]) -> Asking:
    from lladav.runtime.profiling import Asking, synthetic

    return synthetic(pipeline, config) if prompt is None else Asking(prompt, images, config)


def _compare(first: Path, second: Path) -> None:
    from lladav.runtime.profiling import Profile
    from lladav.runtime.profiling.compare import compare

    print_comparison(compare(Profile.read(first), Profile.read(second)), screen.stdout())


def _draw(file: Path) -> None:
    from lladav.runtime.profiling import Profile
    from lladav.runtime.profiling.output import write_report

    page = write_report(Profile.read(file), file.parent)
    screen.stderr().print("written:", str(page), soft_wrap=True)
