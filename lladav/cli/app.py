"""The verbs and what they share."""

from __future__ import annotations

from typing import Annotated

import typer

from lladav import __version__
from lladav.cli.build import build
from lladav.cli.calibrate import calibrate
from lladav.cli.doctor import doctor
from lladav.cli.export import export
from lladav.cli.faults import guarded
from lladav.cli.inspect import inspect
from lladav.cli.plan import plan
from lladav.cli.profile import profile
from lladav.cli.run import run
from lladav.cli.verify import verify

app = typer.Typer(
    help="Export LLaDA-V checkpoints to bundles, and answer questions about pictures with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lladav {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _verb in (export, run, profile, calibrate, build, plan, verify, inspect, doctor):
    app.command()(guarded(_verb))
