"""Other processes beside the answers, as a robot has them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from lladav.errors import OptionError

_GRACE = 5


@contextmanager
def loaded(commands: Sequence[str]) -> Iterator[list[str]]:
    """Runs commands while the block runs, and ends them and what they started.

    Yields:
        A list that tells, when the block is left, which of them had ended by themselves.

    Raises:
        OptionError: a command that cannot be started.
    """
    running: list[subprocess.Popen[bytes]] = []
    early: list[str] = []
    try:
        running.extend(map(_start, commands))
        yield early
        early += [command for command, one in zip(commands, running, strict=True) if one.poll() is not None]
    finally:
        for one in running:
            _end(one)


def _start(command: str) -> subprocess.Popen[bytes]:
    cure = "pass --load a command of this machine, such as --load 'stress-ng --cpu 1'"
    try:
        words = shlex.split(command)
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError, IndexError) as error:
        raise OptionError(f"--load {command!r} cannot be started: {error}", cure=cure) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return
