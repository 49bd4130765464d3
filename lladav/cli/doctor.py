"""`lladav doctor`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lladav.cli import screen
from lladav.doctor import Ability, Diagnosis


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show what this machine can do, and the cure for what it cannot."""
    from lladav.doctor import doctor as examine

    found = examine()
    if as_json:
        screen.print_json(found.to_json())
        return
    out = screen.stdout()
    backends = _abilities("Backends", "backend", found.backends)
    verbs = _abilities("Verbs", "verb", found.verbs)
    for table in (_machine(found), _packages(found), _providers(found), backends, verbs):
        out.print(table)
        out.print()
    _print_warnings(found, out)


def _machine(found: Diagnosis) -> Table:
    machine, table = found.machine, screen.facts(f"lladav {found.version}")
    table.add_row("python", found.python)
    table.add_row("system", machine.system)
    if machine.board:
        table.add_row("board", machine.board)
    table.add_row("cpu", f"{machine.cpu}, {machine.cores} usable cores")
    table.add_row("cpu features", ", ".join(machine.features) or "none that speed up matrix products")
    if (memory := machine.memory) is not None:
        swap = f", {screen.size(memory.swap)} swap" if memory.swap else ""
        table.add_row("memory", f"{screen.size(memory.available)} free of {screen.size(memory.total)}{swap}")
        if memory.cma_total:
            table.add_row("contiguous (CMA)", f"{screen.size(memory.cma_free)} free of {screen.size(memory.cma_total)}")
    for gpu in machine.gpus:
        details = [gpu.memory, f"compute capability {gpu.compute_capability}" if gpu.compute_capability else ""]
        table.add_row("gpu", ", ".join(filter(None, [gpu.name, *details, f"driver {gpu.driver}"])))
    if not machine.gpus:
        table.add_row("gpu", "none found")
    table.add_row("cuda", machine.cuda or "none found")
    if machine.l4t:
        table.add_row("jetpack", f"{machine.jetpack or 'unknown'} (L4T {machine.l4t})")
    return table


def _packages(found: Diagnosis) -> Table:
    table = screen.facts("Packages")
    for purpose, versions in found.packages.items():
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        table.add_row("base" if purpose == "lladav" else purpose, listed or "none")
    if found.resampling is not None:
        table.add_row("picture resizing", "as the reference" if found.resampling else "otherwise than the reference")
    table.add_row("gpu kernels", found.kernels or "built")
    return table


def _providers(found: Diagnosis) -> Table:
    table = screen.table("ONNX Runtime providers", "provider", "loads", "")
    for provider in found.providers:
        table.add_row(provider.name, screen.verdict(not provider.fault, "yes", "no"), provider.fault)
    if not found.providers:
        table.add_row("none", screen.verdict(False, "yes", "no"), "onnxruntime is not installed")
    return table


def _abilities(title: str, name: str, abilities: tuple[Ability, ...]) -> Table:
    table = screen.table(title, name, "works", "why not", "cure")
    for ability in abilities:
        table.add_row(ability.name, screen.verdict(not ability.fault, "yes", "no"), ability.fault, ability.cure)
    return table


def _print_warnings(found: Diagnosis, out: Console) -> None:
    for warning in found.warnings:
        out.print(Text("warning:", "yellow"), warning)
