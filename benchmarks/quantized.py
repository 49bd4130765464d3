"""Speed on the CPU and size of quantised bundles, beside fp32.

    python -m benchmarks.quantized --page docs/quantization.md

Every form runs beside fp32 in one process and in alternation, so that what else the machine does weighs on both; a
ratio is the median over the rounds. One thread's processor time is taken. Sizes are those that the writer of the real
geometry's graphs gives to every file, without writing one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cpu, mid_size
from benchmarks.cpu import CANVAS, CLOCKS, DEMO, PROMPT, alternate, machine, ratio
from benchmarks.make_full_size import LAYERS, real_geometry
from benchmarks.noise import calibrate_on_noise
from benchmarks.pages import replace_parts
from lladav.bundle import Bundle
from lladav.export.config import ExportConfig
from lladav.export.exporter import build_graphs, export
from lladav.export.graph_form import GraphForm, head_parts, linear_forms
from lladav.geometry import LanguageGeometry
from lladav.manifest import INT4_BLOCK, Quantization, QuantizedForm
from lladav.runtime import Pipeline
from lladav.runtime.denoiser import HostWindow

REFRESH, STEP, HALF, ONE = "refresh", "step", "step, half of the canvas decided", "step, logits of one position"
FORMS: dict[str, dict[str, Any]] = {
    "w8": {"quantize": "w8"},
    "w8a8": {"quantize": "w8a8"},
    "w4": {"quantize": "w4"},
    "w4 --widen-on-cpu": {"quantize": "w4", "widen_on_cpu": True},
    "w8 --quantize-head": {"quantize": "w8", "quantize_head": True},
    "w8a8 --quantize-head": {"quantize": "w8a8", "quantize_head": True},
    "w4 --quantize-head": {"quantize": "w4", "quantize_head": True},
    "w4 --quantize-head --widen-on-cpu": {"quantize": "w4", "quantize_head": True, "widen_on_cpu": True},
}
"""What an export is asked for, by the options' names."""
STORED = tuple(name for name in FORMS if "widen" not in name)
"""Forms whose files differ."""


def passes(pipe: Pipeline) -> dict[str, partial[np.ndarray]]:
    """Every kind of pass, on one window."""
    window = pipe.denoiser.window([PROMPT], CANVAS, CANVAS, cached=True)
    assert isinstance(window, HostWindow)
    window.prompt[0, :PROMPT] = cpu.prompt_rows(pipe)
    window.canvas[:] = pipe.table.gather([pipe.bundle.manifest.tokens.mask])
    rows = window.canvas_start + np.arange(CANVAS)
    window.refresh(rows)
    return {
        REFRESH: partial(window.refresh, rows),
        STEP: partial(window.step, rows),
        HALF: partial(window.step, rows[: CANVAS // 2]),
        ONE: partial(window.step, rows[:1]),
    }


def measure(plain: Bundle, form: Bundle, rounds: int, chosen: Sequence[str]) -> dict[str, Any]:
    """Seconds of both bundles' passes of the chosen kinds, and ratios."""
    pipes = {"fp32": Pipeline.load(plain.path, 1), "integers": Pipeline.load(form.path, 1)}
    kinds = {name: passes(pipe) for name, pipe in pipes.items()}
    found: dict[str, Any] = {}
    for kind in chosen:
        times = alternate({name: own[kind] for name, own in kinds.items()}, rounds)
        found[kind] = {"seconds": times, "ratio": ratio(times["fp32"], times["integers"])}
    return found


def sizes() -> dict[str, dict[str, int]]:
    """Bytes of the weights files of the real geometry and of its embedding table, by form and file."""
    geometry = real_geometry()
    language = geometry.language
    parts = head_parts(language, width=2)
    found = {}
    for name in ("fp16", *STORED):
        forms = {}
        if name != "fp16":
            # Inputs' scales are constants of the graph: w8a8's weights are those of w8.
            form: QuantizedForm = "w4" if FORMS[name]["quantize"] == "w4" else "w8"
            head = "quantize_head" in FORMS[name]
            asked = Quantization(form=form, block=INT4_BLOCK if form == "w4" else None, head=head)
            forms = linear_forms(geometry, asked)
        graphs = build_graphs(geometry, GraphForm("float16", parts, forms))
        found[name] = {graph.name: graph.weights_bytes for graph in graphs if graph.owns_weights}
        found[name]["embedding table"] = language.vocab_rows * language.hidden_size * 2
    return found


def measure_model(checkpoint: Path, work: Path, rounds: int, chosen: Sequence[str]) -> dict[str, Any]:
    """Every form of a checkpoint beside fp32; `work` is a new folder for the bundles."""
    work.mkdir()
    common: dict[str, Any] = {"dtype": "fp32", "vocab_rows": "all", "verify": False}
    plain = export(checkpoint, work / "fp32", ExportConfig(**common))
    calibrate_on_noise(plain, work / "seen.npz")
    found = {}
    for form, options in FORMS.items():
        statistics = None if options["quantize"] == "w8" else work / "seen.npz"
        config = ExportConfig(**common, **options, statistics=statistics)
        found[form] = measure(plain, export(checkpoint, work / "form", config), rounds, chosen)
        shutil.rmtree(work / "form")
        print(form, {kind: round(own["ratio"], 2) for kind, own in found[form].items()}, flush=True)
    return found


def slice_of_the_real_model() -> LanguageGeometry:
    """One of its layers, and as large a part of its vocabulary."""
    language = real_geometry().language
    return language.model_copy(update={"layers": 1, "vocab_rows": language.vocab_rows // LAYERS})


def speed_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    of = results["machine"]
    yield f"{of['processor']}, ONNX Runtime {of['onnxruntime']}, one thread, {results['rounds']} rounds."
    yield ""
    columns = [(model, kind) for model, forms in results["speed"].items() for kind in next(iter(forms.values()))]
    yield f"| times fp32 | {' | '.join(f'{model}: {kind}' for model, kind in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for form in FORMS:
        cells = [f"{results['speed'][model][form][kind]['ratio']:.2f}" for model, kind in columns]
        yield f"| `{form}` | {' | '.join(cells)} |"
    fp32 = [next(iter(results["speed"][model].values()))[kind]["seconds"]["fp32"] for model, kind in columns]
    yield f"| fp32 takes | {' | '.join(f'{1e3 * float(np.median(times)):.0f} ms' for times in fp32)} |"


def size_table(found: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Markdown."""
    files = list(next(iter(found.values())))
    yield f"| GB | {' | '.join(files)} | all |"
    yield "|---" * (len(files) + 2) + "|"
    for form, own in found.items():
        cells = [f"{own[file] / 1e9:.2f}" for file in files]
        yield f"| `{form}` | {' | '.join(cells)} | **{sum(own.values()) / 1e9:.2f}** |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9, help="rounds of every pass")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables are replaced")
    options = parser.parse_args()
    cpu.clock = CLOCKS["processor"]
    speed: dict[str, Any] = {}
    results: dict[str, Any] = {"machine": machine(), "rounds": options.repeat, "speed": speed, "bytes": sizes()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        part = mid_size.write_checkpoint(work / "slice", slice_of_the_real_model(), DEMO / "checkpoint")
        # In a refresh of a single layer most of it is computed for the canvas alone, unlike in 32.
        speed["1/32 of LLaDA"] = measure_model(part, work / "slices", options.repeat, (STEP,))
        mid = mid_size.write_checkpoint(work / "mid")
        speed["mid-size"] = measure_model(mid, work / "mids", options.repeat, (STEP, HALF, ONE, REFRESH))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if options.page:
        replace_parts(options.page, {"speed": speed_table(results), "sizes": size_table(results["bytes"])})


if __name__ == "__main__":
    main()
