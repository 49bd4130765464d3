"""`lladav run` in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from lladav.cli.app import app


def run(bundle: Path, *arguments: str, expect: int = 0) -> tuple[str, str]:
    """What it wrote to stdout and stderr; fails unless it exits with `expect`."""
    result = CliRunner().invoke(app, ["run", str(bundle), *arguments])
    assert result.exit_code == expect, result.stderr
    return result.stdout, result.stderr
