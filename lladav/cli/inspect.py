"""`lladav inspect`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lladav.bundle import Bundle
from lladav.cli import screen
from lladav.inspect import Inspection
from lladav.inspect import inspect as look
from lladav.manifest import TensorSpec
from lladav.memory_plan import MemoryPlan, Region, check_sizes, default_sizes, plan_memory
from lladav.prompt_kv import PAST, PRESENT
from lladav.records import EngineRecord, read_records

_CACHE = (PAST, PRESENT)
_Tensor = TypeVar("_Tensor", TensorSpec, Region)


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `lladav export`.")],
    checksums: Annotated[bool, typer.Option("--checksums", help="Compare every file's sha256, too.")] = False,
    prompt: Annotated[
        int | None, typer.Option(help="Prompt bucket of the plan of GPU memory.", show_default="the middle one")
    ] = None,
    canvas: Annotated[
        int | None, typer.Option(help="Canvas bucket of it.", show_default="that of the default answer length")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a bundle holds and what it needs, and check that it is whole."""
    if checksums:
        opened = Bundle.open(bundle)
        plans = [record.plan for record in read_records(opened.path)]
        total = sum(entry.bytes for entry in (*opened.manifest.files, *plans))
        with screen.stage_bars(screen.stderr()) as bars:
            bars.start("checksums", total)
            found = look(bundle, checksums=True, progress=bars.advance)
    else:
        found = look(bundle)
    plan = _plan(found, prompt, canvas)
    if as_json:
        screen.print_json(found.to_json() | {"gpu_memory": plan.to_json()})
        return
    out = screen.stdout()
    engines = [_engines(found)] if found.engines else []
    memory = (_memory(found), _gpu_memory(plan))
    for table in (_model(found), _files(found), *_graphs(found), *engines, _use(found), *memory, _origin(found)):
        out.print(table)
        out.print()
    _print_verdict(found, out)


def _plan(found: Inspection, prompt: int | None, canvas: int | None) -> MemoryPlan:
    """Of one answer, with as much scratch as the engines ask for that were built."""
    usual = default_sizes(found.manifest)
    sizes = replace(usual, prompt=prompt or usual.prompt, canvas=canvas or usual.canvas)
    check_sizes(found.manifest, sizes)
    asked = [count for record in found.engines for count in record.activations]
    return plan_memory(found.manifest, sizes, scratch=max(asked, default=0))


def _model(found: Inspection) -> Table:
    geometry = found.manifest.geometry
    table = screen.facts(f"{found.path}")
    total = sum(found.parameters.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {_count(n)}" for name, n in found.parameters.items())
    table.add_row("parameters", f"{_count(total)} ({parts})")
    table.add_row("precision", found.manifest.numbers)
    if found.manifest.quantization and (kept := found.manifest.quantization.kept):
        table.add_row("no integers", f"{len(kept)} linear layers: {', '.join(kept)}")
    g = geometry.language
    table.add_row(
        "language model",
        f"{g.layers} layers of width {g.hidden_size:,}, {g.heads} heads of {g.head_size}"
        + (f" on {g.kv_heads} key-value heads" if g.kv_heads != g.heads else "")
        + f", feed-forward {g.intermediate_size:,}, {g.vocab_rows:,} tokens, {g.max_positions:,} positions",
    )
    v = geometry.vision
    if v is None:
        table.add_row("vision tower", "none: text only")
    else:
        table.add_row(
            "vision tower",
            f"{v.layers} layers of width {v.hidden_size:,}, {v.heads} heads of {v.head_size}, "
            f"crops of {v.image_size} pixels in patches of {v.patch_size}: {v.tokens} tokens each",
        )
    return table


def _files(found: Inspection) -> Table:
    title = "Files" + (" (contents match their sha256)" if found.checksums else "")
    table = screen.table(title, "file", "size", "sha256", numbers=(1,))
    for entry in sorted(found.manifest.files, key=lambda e: -e.bytes):
        table.add_row(entry.path, screen.size(entry.bytes), entry.sha256[:12])
    table.add_section()
    table.add_row("total with manifest", screen.size(found.total_bytes), "")
    return table


def _graphs(found: Inspection) -> list[Table]:
    tables = []
    for name, graph in found.manifest.graphs.items():
        table = screen.table(f"Graph {name}", "", "tensor", "type", "shape")
        for direction, specs in (("in", graph.inputs), ("out", graph.outputs)):
            for label, spec in _folded(specs):
                table.add_row(direction, label, spec.dtype, " x ".join(map(str, spec.shape)))
        tables.append(table)
    return tables


def _folded(specs: tuple[_Tensor, ...]) -> list[tuple[str, _Tensor]]:
    """Tensors with their labels; those that exist once per layer become one row."""
    rows: dict[str, tuple[str, _Tensor]] = {}
    for spec in specs:
        cache = next((prefix for prefix in _CACHE if spec.name.startswith(prefix)), None)
        if cache is None:
            rows[spec.name] = (spec.name, spec)
        else:
            layer, kind = spec.name.removeprefix(cache).split(".")
            rows[cache + kind] = (f"{cache}{{0..{layer}}}.{kind}", spec)
    return list(rows.values())


def _engines(found: Inspection) -> Table:
    columns = ("target", "graph", "size", "activations", "integers", "built by")
    table = screen.table("Engines", *columns, numbers=(2, 3))
    for record in found.engines:
        activations = screen.size(max(record.activations)) if record.activations else "unknown"
        builder = f"{record.library} {record.library_version} for compute capability {record.compute_capability}"
        size = screen.size(record.plan.bytes)
        table.add_row(record.target, record.graph, size, activations, _integers(found, record), builder)
    return table


def _integers(found: Inspection, record: EngineRecord) -> str:
    """What became of the graph's integers."""
    if found.manifest.quantization is None:
        return "none"
    if (used := record.integers) is None:
        return "unknown"
    parts = [f"{used.weights} weights"]
    parts += [f"{len(used.widened)} in floats"] if used.widened else []
    parts += [f"{used.untold} not told"] if used.untold else []
    parts += [f"{len(used.conversions)} converted by layers of their own"] if used.conversions else []
    return ", ".join(parts)


def _use(found: Inspection) -> Table:
    manifest = found.manifest
    table = screen.facts("Use")
    for name, sizes in manifest.buckets:
        table.add_row(f"{name} buckets", ", ".join(map(str, sizes)))
    table.add_row("longest prompt", f"{manifest.max_prompt:,} tokens with pictures; what is beyond is cut off")
    p = manifest.preprocessing
    if p is not None:
        sides = sorted(
            {w // p.crop_size for w, _ in p.grid_pinpoints} | {h // p.crop_size for _, h in p.grid_pinpoints}
        )
        limit = f", at most {p.max_tiles} crops' worth of tokens" if p.max_tiles else ""
        table.add_row(
            "pictures",
            f"{len(p.grid_pinpoints)} grids of {sides[0]} to {sides[-1]} crops a side{limit}; "
            f"(value / 255 - {p.mean:g}) / {p.std:g}",
        )
        table.add_row("video", f"{p.video_pool_mode} pooling by {p.video_pool_stride}, newline per {p.video_newline}")
    t = manifest.tokens
    named = {"bos": t.bos, "eos": t.eos, "mask": t.mask, "end of turn": t.end_of_turn}
    table.add_row("tokens", ", ".join(f"{name} {token}" for name, token in named.items()))
    table.add_row("never predicted", ", ".join(map(str, t.suppressed)) or "none")
    others = [str(token) for token in t.mask_aliases if token != t.mask]
    if others:
        table.add_row("taken for masks", ", ".join(others))
    d = manifest.generation
    table.add_row("defaults", f"{d.gen_length} tokens, ended by {', '.join(d.stop)}")
    table.add_row("system prompt", d.system_prompt)
    return table


def _memory(found: Inspection) -> Table:
    table, needs = screen.facts("Memory"), found.memory
    table.add_row("weights", f"{screen.size(needs.weights)} as stored")
    table.add_row("mapped from disk", screen.size(needs.mapped))
    table.add_row("prompt cache", f"{screen.size(needs.prompt_kv)} per prompt token, if kept")
    ends = {min(needs.logits), max(needs.logits)}
    sizes = {bucket: needs.logits[bucket] for bucket in sorted(ends)}
    table.add_row("logits", ", ".join(f"{screen.size(n)} for a canvas of {bucket}" for bucket, n in sizes.items()))
    return table


def _gpu_memory(plan: MemoryPlan) -> Table:
    title = f"GPU memory of an answer beside weights: prompt {plan.sizes.prompt:,}, canvas {plan.sizes.canvas:,}"
    table = screen.table(title, "region", "type", "shape", "size", numbers=(3,))
    for label, region in _folded(tuple(region for region in plan.regions if region.bytes)):
        alike = [region]
        if region.name.startswith(PAST):
            _, kind = region.name.removeprefix(PAST).split(".")
            alike = [r for r in plan.regions if r.name.startswith(PAST) and r.name.endswith(f".{kind}")]
        size = sum(r.bytes for r in alike)
        table.add_row(label, region.dtype, " x ".join(map(str, region.shape)), screen.size(size))
    table.add_section()
    without = "" if plan.bytes_of("scratch") else ", without activations"
    table.add_row(f"total, allocated at once{without}", "", "", screen.size(plan.total))
    return table


def _origin(found: Inspection) -> Table:
    manifest = found.manifest
    table = screen.facts("Origin")
    table.add_row("checkpoint", f"{manifest.checkpoint.model_type} in {manifest.checkpoint.dtype}")
    table.add_row("fingerprint", manifest.checkpoint.fingerprint)
    table.add_row("made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    table.add_row("schema", str(manifest.schema_version))
    return table


def _print_verdict(found: Inspection, out: Console) -> None:
    if found.checksums:
        engines = f" and all {len(found.engines)} engines" if found.engines else ""
        out.print(Text("whole:", "green"), f"all {len(found.manifest.files)} files{engines} match their sha256")
    else:
        count = len(found.manifest.files)
        out.print(Text("complete:", "green"), f"all {count} files are there at full size (--checksums reads them)")


def _count(parameters: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= limit:
            return f"{parameters / limit:.2f} {unit}"
    return str(parameters)
