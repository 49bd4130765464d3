"""Signals that ask the command line to end, and how it ends then."""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; what is cleaned up after Ctrl-C is cleaned up after them as well."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def listen() -> None:
    """Lets SIGTERM and SIGHUP end a verb as Ctrl-C does: no half-made files, and no `--load` that runs on alone."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup SIGHUP is ignored, and stays so
            signal.signal(number, _terminate)


def _terminate(number: int, _frame: FrameType | None) -> None:
    # A service manager may signal the process and its group: the second one must not end the cleaning up.
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(number)


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The signal behind an error, if there is one: native modules wrap it while they are imported."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return found


def exit_code(error: KeyboardInterrupt) -> int:
    """As shells count: 128 and the signal's number."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)
