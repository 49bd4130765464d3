"""How the command line ends when something goes wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import typer

from lladav.cli.interrupts import exit_code, interruption
from lladav.errors import LladavError

BROKEN_PIPE = 141
OUR_FAULT = 70
_FRAMES = 4

P = ParamSpec("P")


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """Turns what `verb` raises into a message and an exit code."""

    @wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except LladavError as error:
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _say("interrupted")
            raise typer.Exit(exit_code(error)) from error
        except BrokenPipeError as error:
            # Python flushes stdout once more at exit; the reader is gone, so that goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from error
        except PermissionError as error:
            _say(f"error: {error.filename}: {error.strerror}\n  -> change its permissions, or be a user who has them")
            raise typer.Exit(LladavError.exit_code) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if signal := interruption(error):
                _say("interrupted")
                raise typer.Exit(exit_code(signal)) from error
            if _folder_is_gone():
                _say("error: the current folder does not exist any more\n  -> change to one that does")
                raise typer.Exit(LladavError.exit_code) from error
            _say("".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-_FRAMES)).rstrip())
            _say(
                "error: this is a fault of lladav, not yours\n"
                "  -> please report it with the lines above, the command, and what `lladav doctor --json` prints"
            )
            raise typer.Exit(OUR_FAULT) from error

    return call


def _folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _say(text: str) -> None:
    print(text, file=sys.stderr)
