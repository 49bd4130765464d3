"""`lladav export`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.text import Text

from lladav.cli import screen
from lladav.cli.values import integers
from lladav.errors import OptionError


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder in Hugging Face layout.")],
    bundle: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    dtype: Annotated[
        str | None,
        typer.Option(metavar="fp32|fp16|bf16", help="Type of the weights; by default what the checkpoint suggests."),
    ] = None,
    canvas_buckets: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Answer lengths, suffix included.")
    ] = None,
    prompt_buckets: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Prompt lengths in tokens, pictures included.")
    ] = None,
    tile_buckets: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Crops per pass of the vision encoder.")
    ] = None,
    vocab_rows: Annotated[
        str, typer.Option(metavar="tokenizer|all", help="Rows of embedding and head to keep.")
    ] = "tokenizer",
    quantize: Annotated[
        str | None,
        typer.Option(metavar="w8|w4|w8a8", help="Integers for the linear layers: weights, or weights and inputs."),
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="What `lladav calibrate` wrote; w8a8 needs it, w8 and w4 may have it.")
    ] = None,
    keep_layers: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,...", help="Linear layers that are no integers; * is anything.")
    ] = None,
    quantize_head: Annotated[
        bool, typer.Option("--quantize-head", help="8-bit weights for the head too, with any --quantize.")
    ] = False,
    widen_on_cpu: Annotated[
        bool,
        typer.Option("--widen-on-cpu", help="w4 is 8 bits on the CPU: faster, 5 bytes a weight while it is loaded."),
    ] = False,
    prompt_kv: Annotated[
        str | None,
        typer.Option("--prompt-kv", metavar="int8", help="Integers for the prompt's keys and values; by default none."),
    ] = None,
    head_parts: Annotated[
        int | None, typer.Option(help="Products of the head along the vocabulary; by default as many as it needs.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare the graphs with PyTorch.")] = True,
) -> None:
    """Turn a checkpoint into a bundle."""
    chosen: dict[str, Any] = {"dtype": dtype, "vocab_rows": vocab_rows, "verify": verify}
    chosen |= {"quantize": quantize, "statistics": statistics, "prompt_kv": prompt_kv}
    chosen |= {"quantize_head": quantize_head, "widen_on_cpu": widen_on_cpu, "head_parts": head_parts}
    if keep_layers is not None:
        chosen["keep_layers"] = tuple(keep_layers.replace(",", " ").split())
        if not chosen["keep_layers"]:
            raise OptionError(f"--keep-layers {keep_layers!r} names no layer", cure="write it like '*.down_proj,*.fc1'")
    buckets = {"canvas_buckets": canvas_buckets, "prompt_buckets": prompt_buckets, "tile_buckets": tile_buckets}
    for name, text in buckets.items():
        if text is not None:
            chosen[name] = integers(f"--{name.replace('_', '-')}", text)

    from lladav.export.config import ExportConfig

    try:
        config = ExportConfig.model_validate(chosen)
    except ValidationError as error:
        faults = "; ".join(
            ": ".join(
                (*(f"--{name}".replace("_", "-") for name in e["loc"][:1]), e["msg"].removeprefix("Value error, "))
            )
            for e in error.errors()
        )
        for name in ExportConfig.model_fields:
            if "_" in name:
                faults = faults.replace(name, f"--{name}".replace("_", "-"))
        raise OptionError(f"these options cannot be used: {faults}", cure="see `lladav export --help`") from error

    from lladav.export import require

    require("export")
    from lladav.export.exporter import export as write_bundle
    from lladav.export.progress import Progress

    began = perf_counter()
    notes: list[str] = []
    try:
        with screen.stage_bars(screen.stderr()) as bars:
            made = write_bundle(checkpoint, bundle, config, Progress(bars.start, bars.advance, notes.append))
    finally:  # they may say why an export failed
        for note in notes:
            screen.stderr().print(Text("warning:", "yellow"), note, soft_wrap=True)
    total = sum(entry.bytes for entry in made.manifest.files)
    out = screen.stdout()
    out.print(
        f"{bundle}: {screen.size(total)} in {made.manifest.numbers}, exported in {perf_counter() - began:.1f} s",
        soft_wrap=True,
    )
    if made.manifest.quantization and (kept := made.manifest.quantization.kept):
        out.print(f"{len(kept)} linear layers are no integers: {', '.join(kept)}", soft_wrap=True)
    picture = "--image FILE " if made.manifest.geometry.vision else ""
    out.print(f"next: lladav run {bundle} {picture}--prompt 'What is this?'", soft_wrap=True)
