"""A profile and a comparison of two as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lladav.cli import screen

if TYPE_CHECKING:
    from lladav.runtime.profiling.compare import Comparison, Line
    from lladav.runtime.profiling.distribution import Distribution
    from lladav.runtime.profiling.record import Layers, Memory, Profile

_PERCENTILES = ("n", "mean", "p50", "p90", "p95", "p99", "max", "std")
_SHOWN_STEPS = 24


def print_profile(profile: Profile, out: Console) -> None:
    """Everything but the sweep."""
    tables = [_stages(profile), _steps(profile), _commits(profile), _passes(profile)]
    if profile.layers is not None:
        tables += [_tree(profile.layers), _slowest(profile.layers)]
    if profile.memory is not None:
        tables.append(_memory(profile.memory))
    tables.append(_facts(profile))
    for table in tables:
        out.print(table)
        out.print()
    for note in profile.notes:
        out.print(Text("note:", "yellow"), note, soft_wrap=True)


def print_comparison(found: Comparison, out: Console) -> None:
    """The lines, and where the difference lies."""
    how = "paired" if found.whole.paired else "not paired"
    table = screen.table(f"ms per answer, {how}", "", "first", "second", "ratio", "noise", numbers=(1, 2, 3, 4))
    for line in (found.whole, *sorted(found.lines, key=lambda line: -max(line.first, line.second))):
        ratio = Text(_ratio(line), "bold" if line.differs else "dim")
        table.add_row(line.name, f"{line.first:,.2f}", f"{line.second:,.2f}", ratio, _noise(line))
    out.print(table)
    out.print()
    if (largest := found.largest()) is None:
        out.print("the answers' times do not differ by more than noise", soft_wrap=True)
        return
    line, share = largest
    out.print(
        f"the second takes {_ratio(found.whole)} times as long as the first; {share:.0%} of that is {line.name}, "
        f"{_ratio(line)} times",
        soft_wrap=True,
    )


def _ratio(line: Line) -> str:
    return f"{line.ratio:.3f}" if math.isfinite(line.ratio) else "new"


def _noise(line: Line) -> str:
    return f"±{line.noise:.3f}" if math.isfinite(line.noise) else "unknown"


def _stages(profile: Profile) -> Table:
    columns = ("", *_PERCENTILES)
    table = screen.table("Milliseconds by nearest rank", *columns, numbers=tuple(range(1, len(columns))))
    for stage, ms in profile.stages.items():
        if stage != "total":
            table.add_row(stage.replace("_", " "), *_cells(ms))
    table.add_section()
    table.add_row("first token", *_cells(profile.first_token_ms))
    table.add_row("answer", *_cells(profile.answer_ms))
    return table


def _cells(values: Distribution) -> list[str]:
    cells = (getattr(values, name) for name in _PERCENTILES[1:])
    return [str(values.n), *("" if value is None else f"{value:,.2f}" for value in cells)]


def _steps(profile: Profile) -> Table:
    columns = ("step", "pass", "ms", "graph", "sampling", "commit", "host", "waiting")
    table = screen.table("Milliseconds of denoising steps, means", *columns, numbers=(0, *range(2, len(columns))))
    for step in profile.steps[:_SHOWN_STEPS]:
        parts = (step.ms, step.graph_ms, step.sampling_ms, step.commit_ms, step.host_ms, step.waiting_ms)
        table.add_row(str(step.step), step.kind, *("" if part is None else f"{part.mean:,.2f}" for part in parts))
    return _with_rest(table, profile)


def _commits(profile: Profile) -> Table:
    columns = ("step", "answers", "tokens", "masks left", "mean confidence", "least confidence")
    table = screen.table("What they commit, means", *columns, numbers=tuple(range(len(columns))))
    for step in profile.steps[:_SHOWN_STEPS]:
        sure = (step.mean_confidence, step.least_confidence)
        table.add_row(
            str(step.step),
            str(step.ms.n),
            f"{step.committed:.3g}",
            f"{step.masks_left:.3g}",
            *("" if confidence is None else f"{confidence:.3f}" for confidence in sure),
        )
    return _with_rest(table, profile)


def _with_rest(table: Table, profile: Profile) -> Table:
    if (more := len(profile.steps) - _SHOWN_STEPS) > 0:
        table.caption = f"and {more} more in profile.json"
    return table


def _passes(profile: Profile) -> Table:
    columns = ("pass", "p50", "predicted", "limit", "of it", "moves", "runs", "bound by")
    table = screen.table("Passes against this machine's limit, milliseconds", *columns, numbers=tuple(range(1, 7)))
    for name, found in profile.passes.items():
        cells = [""] * 6
        if (limit := found.limit) is not None:
            moves, operations = screen.size(limit.bytes), f"{limit.operations / 1e9:,.2f} G"
            predicted = "" if limit.predicted_ms is None else f"{limit.predicted_ms:,.2f}"
            cells = [predicted, f"{limit.ms:,.2f}", f"{limit.share:.0%}", moves, operations, limit.bound]
        table.add_row(name.replace("_", " "), f"{found.ms.p50:,.2f}", *cells)
    return table


def _tree(layers: Layers) -> Table:
    table = screen.table("Layers, from a run of their own", "", "ms", "share", numbers=(1, 2))
    for part in layers.tree:
        graph, _, kind = part.name.partition("/")
        name = f"  {kind}" if kind else graph.replace("_", " ")
        table.add_row(name, f"{part.ms:,.2f}", f"{part.share:.0%}", style=None if kind else "bold")
    return table


def _slowest(layers: Layers) -> Table:
    table = screen.table("The slowest nodes", "", "ms", "of its graph", numbers=(1, 2))
    for part in layers.slowest:
        table.add_row(part.name, f"{part.ms:,.3f}", f"{part.share:.1%}")
    return table


def _memory(memory: Memory) -> Table:
    table = screen.table("Memory", "", "size", "", numbers=(1,))
    for part in memory.parts:
        where = "on the GPU" if part.on_gpu else "of a file" if part.file_backed else ""
        table.add_row(part.name, screen.size(part.bytes), where)
    table.add_section()
    table.add_row("peak of an answer", screen.size(memory.total), f"{memory.unexplained:+.1%} in no category")
    table.add_row("peak of loading", screen.size(memory.loading), "")
    table.add_row("proportional", screen.size(memory.proportional), "shared pages divided among those who share them")
    if memory.graphics is not None:
        table.add_row("graphics", screen.size(memory.graphics), "NvMap, beside the process's own")
    return table


def _facts(profile: Profile) -> Table:
    table, asked, frames = screen.facts("Answers"), profile.workload, profile.frames
    question = "synthetic question" if asked.synthetic else "question"
    table.add_row(
        question,
        f"{asked.prompt_tokens:,} positions, {asked.crops} crops, canvas {asked.gen_length}, {asked.knobs.preset}",
    )
    table.add_row("backend", f"{profile.setup.backend}, {profile.setup.precision}, {profile.setup.processor}")
    table.add_row("tokens per pass", f"{profile.tokens_per_pass:.2f}")
    if frames.jitter_mean is not None:
        table.add_row("frame-to-frame jitter", f"mean {frames.jitter_mean:,.2f} ms, max {frames.jitter_max:,.2f} ms")
    table.add_row("image age", f"mean {frames.image_age.mean:,.2f} ms, max {frames.image_age.max:,.2f} ms")
    table.add_row("missed frames", f"{frames.dropped} of {frames.sent}")
    if frames.missed is not None:
        table.add_row("missed deadlines", f"{frames.missed} of {len(profile.runs)}, at {frames.deadline_ms:,.0f} ms")
    if profile.energy is not None:
        watts = profile.energy.watts.mean
        table.add_row(
            "energy", f"{profile.energy.joules_per_answer:.2f} J per answer, {watts:.1f} W by {profile.energy.source}"
        )
    return table
