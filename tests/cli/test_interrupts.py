"""How the command line ends when a signal asks it to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
import typer

from lladav.cli.faults import guarded

UNDER_WAY = """
import sys
from pathlib import Path

from lladav.cli.faults import guarded
from lladav.cli.interrupts import listen
from lladav.runtime.profiling.load import loaded
from lladav.staging import staged_folder


def verb() -> None:
    made, pid = map(Path, sys.argv[1:])
    with staged_folder(made) as folder, loaded([f"sh -c 'echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60'"]):
        (folder / "half").write_text("made")
        sys.stdin.read()


listen()
try:
    guarded(verb)()
except Exception as ending:
    sys.exit(ending.exit_code)
"""
IMPORTING = """
import sys


class Interrupted:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt


sys.meta_path.insert(0, Interrupted())
from lladav.cli import main

main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_neither_files_nor_processes(tmp_path: Path, number: signal.Signals) -> None:
    made, pid = tmp_path / "made", tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", UNDER_WAY, str(made), str(pid)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (pid.exists() and (tmp_path / ".made.partial" / "half").exists()):
            assert process.poll() is None
            sleep(0.01)
        process.send_signal(number)
        if number != signal.SIGINT:  # again, as `timeout` and service managers do, which signal the group as well
            process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert (process.returncode, said) == (128 + number, "interrupted\n")
    assert sorted(tmp_path.iterdir()) == [pid]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_ctrl_c_while_modules_are_imported_needs_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_that_a_native_module_wraps_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    with pytest.raises(typer.Exit) as caught:
        guarded(verb)()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted\n"
