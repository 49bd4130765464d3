"""`lladav plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lladav.cli import screen
from lladav.cli.plan_here import plan_here
from lladav.errors import OptionError

if TYPE_CHECKING:
    from lladav.engines import Prediction
    from lladav.engines.target import EnginePrecision


def plan(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `lladav export`.")],
    target: Annotated[
        str, typer.Option(help="What to predict for, `cpu` is this machine's; an unknown name lists them all.")
    ],
    precision: Annotated[
        str | None,
        typer.Option(metavar="fp16|bf16|int8|int4", help="As if exported in that; by default the bundle's own."),
    ] = None,
    canvas: Annotated[
        int | None, typer.Option(help="Canvas bucket.", show_default="that of the default answer length")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences side by side.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="With `--target cpu`.", show_default="all cores of this machine")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="With `--target cpu`: measure what this machine reaches anew.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With `--target cpu`: run the passes, and show the predictions' error.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict memory and latency on a target, without having it."""
    from lladav.engines import predict
    from lladav.engines.prediction import PREDICTED

    if target == "cpu":
        if precision is not None:
            raise OptionError("the CPU computes what the bundle holds", cure="leave --precision out")
        plan_here(bundle, canvas, batch, threads, renew=probe, measure=measure, as_json=as_json)
        return
    if threads is not None or probe or measure:
        raise OptionError("--threads, --probe and --measure are for this machine's CPU", cure="pass --target cpu")
    asked: EnginePrecision | None = next((name for name in PREDICTED if name == precision), None)
    if precision is not None and asked is None:
        raise OptionError(f"--precision {precision!r} is not predicted", cure=f"choose {' or '.join(PREDICTED)}")
    found = predict(bundle, target, precision=asked, canvas=canvas, batch=batch)
    if as_json:
        screen.print_json(found.to_json())
        return
    out = screen.stdout()
    out.print(_rows(found))
    out.print()
    out.print(_basis(found))
    out.print()
    _print_verdict(found, out)
    for note in found.notes:
        screen.stderr().print(Text("warning:", "yellow"), note, soft_wrap=True)


def _rows(found: Prediction) -> Table:
    columns = ("prompt", "refresh ms", "step ms", "activations", "keys, values", "logits", "buffers", "free")
    table = screen.table(
        f"Predicted, not measured: {found.target.title}, {found.precision}, canvas {found.canvas}, batch {found.batch}",
        *columns,
        numbers=tuple(range(len(columns))),
    )
    for row in found.rows:
        needs = (row.needs.activations, row.needs.prompt_kv, row.needs.logits, row.needs.buffers)
        free = Text(screen.size(row.free)) if row.free >= 0 else Text(f"-{screen.size(-row.free)}", "bold red")
        table.add_row(
            f"{row.prompt:,}",
            screen.milliseconds(row.refresh_ms),
            screen.milliseconds(row.step_ms),
            *(screen.size(count) for count in needs),
            free,
        )
    return table


def _print_verdict(found: Prediction, out: Console) -> None:
    fitting = [row for row in found.rows if row.free >= 0]
    if fitting:
        out.print(Text("fits:", "green"), f"prompts of up to {fitting[-1].prompt:,} positions")
    else:
        short = screen.size(-found.rows[0].free)
        out.print(Text("does not fit:", "bold red"), f"{short} are missing for the shortest prompts already")


def _basis(found: Prediction) -> Table:
    from lladav.engines.prediction import BANDWIDTH_SHARE, COMPUTE_SHARE

    target, table = found.target, screen.facts("From")
    table.add_row("weights", screen.size(found.rows[0].needs.weights))
    table.add_row("memory", f"{target.memory_gb:g} GB{' shared with the CPU' if target.unified_memory else ''}")
    table.add_row("bandwidth", f"{BANDWIDTH_SHARE:.0%} of {target.bandwidth_gb_s:,g} GB/s")
    table.add_row("matrix products", f"{COMPUTE_SHARE:.0%} of {target.fp16_tflops:g} TFLOPS")
    table.add_row(
        "activations",
        f"of one size; an engine for all sizes and two sequences asks for {screen.size(found.all_sizes_activations)}",
    )
    table.add_row("keys, values", "of the prompt, kept for steps")
    table.add_row("buffers", "the embedding table, inputs, and what goes through the vision encoder at once")
    table.add_row("not counted", "vision encoder, sampling, launches, and what the driver takes of the memory")
    return table
