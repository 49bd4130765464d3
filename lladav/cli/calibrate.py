"""`lladav calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from lladav.cli import screen

if TYPE_CHECKING:
    from lladav.statistics import Statistics
    from lladav.statistics_header import Condition


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `lladav export`, in fp32 or fp16.")],
    output: Annotated[Path, typer.Option(help="File of statistics to make, ending in .npz.")],
    images: Annotated[Path | None, typer.Option(help="Folder of pictures like those of later use.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line.", show_default="eight kinds of questions")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most questions.", show_default="as many as pictures or prompts")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of pictures.")] = 0,
    gen_length: Annotated[
        int | None, typer.Option(min=1, help="Positions of the canvas.", show_default="the bundle's")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Passes per answer.")] = 16,
    refresh_interval: Annotated[int, typer.Option(min=0, help="A refresh every this many passes.")] = 3,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(help="Run these .npz files, or folders of them, by names of a graph's inputs instead."),
    ] = None,
    save_inputs: Annotated[Path | None, typer.Option(help="Folder for .npz files of inputs, for other tools.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output, and drop an unfinished one of something else.")
    ] = False,
) -> None:
    """Record what linear layers multiply while a bundle answers, for a quantised export."""
    from lladav.export import require

    require("export")
    from lladav.calib import CalibrationConfig
    from lladav.calib import calibrate as record
    from lladav.export.progress import Progress

    config = CalibrationConfig(
        limit=limit, seed=seed, gen_length=gen_length, steps=steps, refresh_interval=refresh_interval
    )
    with screen.stage_bars(screen.stderr(), percent=True) as bars:
        statistics = record(
            bundle,
            output,
            images=images,
            prompts=prompts,
            inputs=inputs or (),
            config=config,
            save_inputs=save_inputs,
            force=force,
            progress=Progress(bars.start, bars.advance),
        )
    _print(statistics, output)


def _print(statistics: Statistics, output: Path) -> None:
    run, out = statistics.header.run, screen.stdout()
    for graph, record in statistics.header.graphs.items():
        counts = dict(zip(record.conditions, statistics.rows(graph).tolist(), strict=True))
        if all(condition.mask_ratio is not None for condition in counts):
            out.print(_by_masks(graph, counts))
            out.print()
        else:
            seen = ", ".join(f"{rows:,} of {condition.label}" for condition, rows in counts.items())
            out.print(f"{graph}: positions seen: {seen}", soft_wrap=True)
        missing = "; ".join(condition.label for condition, rows in counts.items() if not rows)
        if missing and run.asked is not None:
            note = f"{graph}: nothing was seen of {missing}. Change --steps, --refresh-interval or the pictures"
            screen.stderr().print(Text("warning:", "yellow"), note, soft_wrap=True)
    shown = "files" if run.asked is None else "questions"
    facts = f"linear layers: {len(statistics.linears)}, {shown}: {run.count}"
    facts += f", pictures: {len(run.sources)}" if run.asked is not None else ""
    out.print(f"{output}: {facts}, {screen.size(output.stat().st_size)}", soft_wrap=True)


def _by_masks(graph: str, counts: dict[Condition, int]) -> Table:
    """A row per share of masks, a column per pass and place."""
    places = list(dict.fromkeys((c.kind, c.where) for c in counts))
    columns = ("masks left", *(f"{kind}, {where}" for kind, where in places))
    table = screen.table(f"{graph}: positions seen", *columns, numbers=tuple(range(1, len(columns))))
    for ratio in dict.fromkeys(c.mask_ratio for c in counts if c.mask_ratio is not None):
        own = {(c.kind, c.where): rows for c, rows in counts.items() if c.mask_ratio == ratio}
        table.add_row(f"{ratio:.0%}", *(f"{own[place]:,}" for place in places))
    return table
