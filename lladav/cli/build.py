"""`lladav build`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated, get_args

import typer
from rich.text import Text

from lladav.bundle import Bundle
from lladav.cli import screen
from lladav.errors import OptionError


def build(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `lladav export`.")],
    target: Annotated[str, typer.Option(help="What the engines are for; an unknown name lists them all.")],
    precision: Annotated[
        str | None,
        typer.Option(metavar="fp16|bf16|int8|int4", help="Refuse a bundle in another; by default its own is taken."),
    ] = None,
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Build nothing; print the lines with which NVIDIA's own tools do it.")
    ] = False,
) -> None:
    """Compile a bundle's graphs to engines for a GPU, into the bundle."""
    from lladav.engines import Progress, load_target
    from lladav.engines import build as build_engines
    from lladav.engines.drawbacks import drawbacks
    from lladav.engines.prediction import implications
    from lladav.engines.target import EnginePrecision

    known: tuple[EnginePrecision, ...] = get_args(EnginePrecision)
    asked = next((name for name in known if name == precision), None)
    if precision is not None and asked is None:
        raise OptionError(f"--precision {precision!r} is none", cure=f"choose one of {', '.join(known)}")
    if reproduce:
        _print_lines(bundle, target)
        return
    began = perf_counter()
    with screen.stage_bars(screen.stderr(), percent=True) as bars:
        made = build_engines(bundle, target, precision=asked, progress=Progress(bars.start, bars.advance))
    opened, wanted = Bundle.open(bundle), load_target(target)
    for note in (*implications(wanted, opened.manifest), *drawbacks(opened, wanted, made)):
        screen.stderr().print(Text("warning:", "yellow"), note, soft_wrap=True)
    out = screen.stdout()
    first = made[0]
    ahead = "" if first.device else ", ahead of time"
    out.print(
        f"{bundle}: {len(made)} engines for {target}, {screen.size(sum(r.plan.bytes for r in made))} in "
        f"{first.precision}, built by {first.library} {first.library_version}{ahead} in {perf_counter() - began:.1f} s",
        soft_wrap=True,
    )
    out.print(f"next: lladav plan {bundle} --target {target}", soft_wrap=True)


def _print_lines(bundle: Path, target: str) -> None:
    """One command per line, for a shell; what each does is a comment before it."""
    from lladav.engines import load_target
    from lladav.engines.reproduce import reproduce

    for line in reproduce(Bundle.open(bundle), load_target(target)):
        print(f"# {line.purpose}\n{line.command}")
