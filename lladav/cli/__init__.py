"""The command line. Every verb imports what it needs when it runs, and nothing before."""

from __future__ import annotations


def main() -> None:
    """Entry point of `lladav`."""
    from lladav.cli.app import app

    app(prog_name="lladav")
