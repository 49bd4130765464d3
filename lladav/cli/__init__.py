"""The command line. Every verb imports what it needs when it runs, and nothing before."""

from __future__ import annotations

import io
import sys

from lladav.cli.interrupts import exit_code, listen


def main() -> None:
    """Entry point of `lladav`."""
    listen()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character must not cost an answer
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from lladav.cli.app import app

        app(prog_name="lladav")
    except KeyboardInterrupt as error:  # before a verb began, which ends by itself
        print("interrupted", file=sys.stderr)
        sys.exit(exit_code(error))
