"""`lladav plan --target cpu`: predictions for the machine that it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lladav.cli import screen
from lladav.errors import OptionError

if TYPE_CHECKING:
    from lladav.linear_layers import ProductForm
    from lladav.runtime.profiling.prediction import CpuRow, PredictedPass
    from lladav.runtime.profiling.probe import Probe


_FORMS: dict[ProductForm, str] = {
    **{"float": "float32 weights", "int8": "int8 weights, float32 inputs", "int4": "int4 weights"},
    **{"w8a8": "int8 weights and inputs", "attention": "attention"},
}


def plan_here(
    bundle: Path,
    canvas: int | None,
    batch: int,
    threads: int | None,
    *,
    renew: bool,
    measure: bool,
    as_json: bool,
) -> None:
    """Prints how long passes take on this machine's CPU, and how far that is from what they do take.

    Args:
        bundle: folder made by `lladav export`.
        canvas: bucket; None takes that of the default answer length.
        batch: sequences side by side.
        threads: of one operator; None is all cores.
        renew: measure the machine's rates anew.
        measure: run the passes.
        as_json: print one JSON object.

    Raises:
        OptionError: a size that means nothing.
    """
    from lladav.bundle import Bundle
    from lladav.machine import check_threads
    from lladav.memory_plan import Sizes, check_sizes, default_canvas
    from lladav.runtime.profiling.prediction import predict_here
    from lladav.runtime.profiling.probe import probe

    check_threads(threads)
    opened = Bundle.open(bundle)
    if opened.manifest.precision == "bf16":
        raise OptionError("a bundle in bf16 is for engines: nothing computes it on a CPU", cure="pass another --target")
    chosen = default_canvas(opened.manifest) if canvas is None else canvas
    check_sizes(opened.manifest, Sizes(batch, opened.manifest.buckets.prompt[0], chosen, 0))
    rates = probe(threads, renew=renew)
    rows = list(predict_here(opened, rates, chosen, batch, measured=measure))
    if as_json:
        screen.print_json(
            {
                "predicted": True,
                "target": "cpu",
                "probe": rates.model_dump(),
                "canvas": chosen,
                "batch": batch,
                "rows": [
                    {"prompt": row.prompt, "refresh": row.refresh.to_json(), "step": row.step.to_json()} for row in rows
                ],
            }
        )
        return
    out = screen.stdout()
    out.print(_rows(rows, rates, chosen, batch, measured=measure))
    out.print()
    out.print(_basis(rates))


def _rows(rows: list[CpuRow], rates: Probe, canvas: int, batch: int, *, measured: bool) -> Table:
    parts = ("ms", "limit", "measured", "error") if measured else ("ms", "limit")
    columns = ["prompt", *(f"{kind} {part}" for kind in ("refresh", "step") for part in parts)]
    table = screen.table(
        f"Predicted: {rates.processor}, threads {rates.threads}, canvas {canvas}, batch {batch}",
        *columns,
        numbers=tuple(range(len(columns))),
    )
    for row in rows:
        table.add_row(f"{row.prompt:,}", *_cells(row.refresh), *_cells(row.step))
    return table


def _cells(one: PredictedPass) -> tuple[str, ...]:
    cells = (screen.milliseconds(one.ms), screen.milliseconds(one.limit.ms))
    if one.measured_ms is None or one.error is None:
        return cells
    return (*cells, screen.milliseconds(one.measured_ms), f"{one.error:+.0%}")


def _basis(rates: Probe) -> Table:
    table = screen.facts("From")
    table.add_row("bandwidth", f"{rates.bandwidth / 1e9:,.1f} GB/s, copies measured on this machine")
    table.add_row("matrix products", f"{rates.operations / 1e9:,.0f} GFLOPS at best, float32, measured on this machine")
    for form, curve in rates.products.items():
        speeds = ", ".join(f"{point.operations / 1e9:,.0f}" for point in curve)
        rows = ", ".join(str(point.rows) for point in curve)
        table.add_row(f"  of {_FORMS[form]}", f"{speeds} GFLOPS for {rows} rows")
    table.add_row("limit", "of what must move and be multiplied at best, whichever is longer")
    table.add_row("not counted", "vision encoder and sampling")
    return table
