"""`lladav verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lladav.cli import screen

if TYPE_CHECKING:
    from lladav.export.verification import VerificationReport


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `lladav export`.")],
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint it was made from.")],
    image: Annotated[Path | None, typer.Option(help="Picture to compare on instead of the built-in one.")] = None,
) -> None:
    """Compare every graph of a bundle with PyTorch."""
    from lladav.export import require

    require("export")
    require("verify")
    from lladav.export.progress import Progress
    from lladav.export.verification import DeviationError
    from lladav.export.verify import verify as compare

    try:
        with screen.stage_bars(screen.stderr()) as bars:
            report = compare(bundle, checkpoint, image=image, progress=Progress(bars.start, bars.advance))
    except DeviationError as error:
        _print(error.report)
        raise
    _print(report)


def _print(report: VerificationReport) -> None:
    columns = ("component", "what", "difference", "tolerance", "", "where")
    table = screen.table("Largest differences from PyTorch in float32", *columns, numbers=(2, 3))
    for row in report.rows:
        verdict = screen.verdict(row.passed, "ok", "too far")
        if row.max_abs_error is None:
            verdict = Text("left out", "yellow")
        numbers = ("" if n is None else f"{n:.2g}" for n in (row.max_abs_error, row.tolerance))
        table.add_row(row.component, row.what, *numbers, verdict, row.note)
    screen.stdout().print(table)
    screen.stdout().print(f"compared in {report.seconds:.1f} s")
