"""What a check found, as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lladav.machine import Machine, examine

_PACKAGES = (
    *("lladav", "numpy", "cuda-bindings", "onnxruntime", "onnxruntime-gpu", "torch"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu13"),
)


class CannotRunError(Exception):
    """A check that this machine cannot do; the message names what is missing."""


@dataclass(frozen=True)
class Table:
    """Rows of text below a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = (self.columns, ("---",) * len(self.columns), *self.rows)
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


@dataclass(frozen=True)
class Finding:
    """Of one check.

    Attributes:
        figures: everything that was measured, as JSON.
        tables: what of it is to be read.
        skipped: what is missing here; empty where the check ran.
        failed: the traceback of what nobody expected; empty where there was nothing.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    skipped: str = ""
    failed: str = ""


def write(name: str, finding: Finding, folder: Path) -> str:
    """Writes `NAME.json` and `NAME.md`.

    Returns:
        The page.
    """
    machine = examine()
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"check": name, "machine": asdict(machine), "versions": versions(), **asdict(finding)}
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    page = _page(name, finding, machine)
    (folder / f"{name}.md").write_text(page, "utf-8")
    return page


def versions() -> dict[str, str]:
    """Of the packages that decide what is measured, as far as they are installed."""
    found = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def verdict(found: float, most: float, digits: str) -> str:
    """A figure, and whether it is at most what is asked for.

    Args:
        found: the figure.
        most: what is asked for.
        digits: how the figure is written, such as `.2f`.
    """
    return f"{found:{digits}}, {'met' if found <= most else '**missed**'}"


def _page(name: str, finding: Finding, machine: Machine) -> str:
    gpus = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in machine.gpus) or machine.board or "no GPU"
    packages = ", ".join(f"{package} {version}" for package, version in versions().items())
    parts: Sequence[str] = [table.markdown() for table in finding.tables]
    if finding.skipped:
        parts = [f"Not run: {finding.skipped}"]
    if finding.failed:
        parts = [f"Failed:\n\n```\n{finding.failed}```"]
    return "\n\n".join([f"# {name}", f"{gpus}; {machine.cpu}; {packages}.", *parts]) + "\n"
