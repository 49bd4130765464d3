"""Time and memory of prompts whose keys and values are handed to steps in int8, beside floats.

    python -m benchmarks.prompt_kv --page docs/quantization.md

Passes of both kinds run in one process and in alternation, so that what else the machine does weighs on both; a ratio
is the median over the rounds, of one thread's processor time. Bytes are those of the real model's arrays, which are
counted and not measured. Without a page the tables are printed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cpu, mid_size
from benchmarks.cpu import CANVAS, CLOCKS, DEMO, alternate, machine, ratio
from benchmarks.make_full_size import real_geometry
from benchmarks.pages import replace_parts
from benchmarks.quantized import slice_of_the_real_model
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.geometry import LanguageGeometry
from lladav.manifest import PromptKV
from lladav.prompt_kv import position_bytes
from lladav.runtime import Pipeline
from lladav.runtime.denoiser import HostWindow

KINDS: dict[str, PromptKV | None] = {"floats": None, "int8": "int8"}
PROMPTS = (1000, 3000)
REAL_PROMPTS = (900, 3650)
STEP, REFRESH = "step", "refresh"


def passes(pipe: Pipeline, prompt: int) -> dict[str, partial[np.ndarray]]:
    """Both kinds of pass over one window, logits of the whole canvas wanted."""
    window = pipe.denoiser.window([prompt], CANVAS, CANVAS, cached=True)
    assert isinstance(window, HostWindow)
    draw = np.random.default_rng(0)
    window.prompt[0, :prompt] = 0.02 * draw.standard_normal(window.prompt[0, :prompt].shape)
    window.canvas[:] = pipe.table.gather([pipe.bundle.manifest.tokens.mask])
    rows = window.canvas_start + np.arange(CANVAS)
    window.refresh(rows)
    return {STEP: partial(window.step, rows), REFRESH: partial(window.refresh, rows)}


def measure_model(checkpoint: Path, work: Path, rounds: int, chosen: tuple[str, ...]) -> dict[str, Any]:
    """Times floats by prompt and kind of pass."""
    pipes = {}
    for name, kind in KINDS.items():
        config = ExportConfig(dtype="fp32", vocab_rows="all", prompt_kv=kind, verify=False)
        pipes[name] = Pipeline.load(export(checkpoint, work / name, config).path, 1)
    found: dict[str, Any] = {}
    for prompt in PROMPTS:
        kinds = {name: passes(pipe, prompt) for name, pipe in pipes.items()}
        for kind in chosen:
            times = alternate({name: own[kind] for name, own in kinds.items()}, rounds)
            found[f"{kind}, prompt of {prompt:,}"] = {"seconds": times, "ratio": ratio(times["floats"], times["int8"])}
            print(work.name, kind, prompt, round(ratio(times["floats"], times["int8"]), 3), flush=True)
    return found


def models() -> dict[str, tuple[LanguageGeometry, tuple[str, ...]]]:
    """Geometries, and which passes of them say something: the last layer of a refresh computes the canvas alone."""
    real = slice_of_the_real_model()
    mid = mid_size.GEOMETRY.model_copy(update={"vocab_rows": real.vocab_rows})
    return {"1/32 of LLaDA": (real, (STEP,)), "8 layers of width 1024": (mid, (STEP, REFRESH))}


def speed_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    of = results["machine"]
    yield f"{of['processor']}, ONNX Runtime {of['onnxruntime']}, one thread, fp32, {results['rounds']} rounds."
    yield ""
    yield "| pass | int8, times the speed of floats | floats take |"
    yield "|---|---|---|"
    for model, own in results["speed"].items():
        for kind, one in own.items():
            ms = 1e3 * float(np.median(one["seconds"]["floats"]))
            yield f"| {model}: {kind} | {one['ratio']:.2f} | {ms:.0f} ms |"


def memory_table() -> Iterator[str]:
    """Markdown, of the real geometry."""
    language = real_geometry().language
    yield f"| | one position | {' | '.join(f'prompt of {prompt:,}' for prompt in REAL_PROMPTS)} |"
    yield "|---" * (len(REAL_PROMPTS) + 2) + "|"
    for name, kind in (("fp16", None), ("int8", "int8")):
        one = position_bytes(language, 2, kind)
        cells = [f"{prompt * one / 1e9:.2f} GB" for prompt in REAL_PROMPTS]
        yield f"| {name} | {one:,} bytes | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="rounds of every pass")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables are replaced")
    options = parser.parse_args()
    cpu.clock = CLOCKS["processor"]
    speed: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (geometry, chosen) in models().items():
            work = Path(folder) / name.replace("/", " of ")
            checkpoint = mid_size.write_checkpoint(work / "checkpoint", geometry, DEMO / "checkpoint")
            speed[name] = measure_model(checkpoint, work, options.repeat, chosen)
    results = {"machine": machine(), "rounds": options.repeat, "speed": speed}
    tables = {"prompt KV: speed": speed_table(results), "prompt KV: memory": memory_table()}
    if options.page:
        replace_parts(options.page, tables)
    else:
        for table in tables.values():
            print("\n".join(("", *table)))


if __name__ == "__main__":
    main()
