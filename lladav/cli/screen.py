"""What the verbs print with: answers and reports on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def stdout() -> Console:
    """For what was asked for."""
    return _console(stderr=False)


def stderr() -> Console:
    """For everything about it."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    # Names of files and texts of models are printed as they are, brackets and colons included.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_json(value: object) -> None:
    """One object, in ASCII, so that no terminal or pipe can spoil it."""
    typer.echo(json.dumps(value))


def table(title: str | None, *columns: str, numbers: tuple[int, ...] = ()) -> Table:
    """An empty table; `numbers` are the columns that are aligned to the right."""
    out = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for i, column in enumerate(columns):
        out.add_column(column, justify="right" if i in numbers else "left", overflow="fold")
    return out


def facts(title: str) -> Table:
    """An empty table of names and values, without a header."""
    out = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    out.add_column(style="dim", no_wrap=True, min_width=20)
    out.add_column(overflow="fold")
    return out


def verdict(good: bool, yes: str, no: str) -> Text:
    """One of two words, in its colour."""
    return Text(yes, "green") if good else Text(no, "bold red")


def milliseconds(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes as a person reads them: `1.6 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}" if count < 100 else f"{count:,.0f} {unit}"


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{size(task.completed)} of {size(task.total or 0)}")


class _Percent(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.percentage:3.0f} %")


class StageBars:
    """One bar per stage of a long work; the earlier ones stay and are full."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def start(self, stage: str, total: int) -> None:
        self.finish()
        self._task = self._progress.add_task(stage, total=total)

    def advance(self, amount: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, amount)

    def finish(self) -> None:
        """Fills the bar of the stage that ends."""
        if self._task is not None:
            self._progress.update(self._task, completed=self._progress.tasks[-1].total)


@contextmanager
def stage_bars(console: Console, *, percent: bool = False) -> Iterator[StageBars]:
    """Progress bars while the block runs, of bytes or of percent."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        _Percent() if percent else _Amount(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        bars = StageBars(progress)
        yield bars
        bars.finish()
