"""How far predictions for this machine's CPU are from what passes take.

    python -m benchmarks.prediction --out prediction.json --table docs/prediction.md

The same as `lladav plan BUNDLE --target cpu --measure`, by the processor time of one thread, because other
programs may keep the cores busy. What is predicted from is measured for each model anew.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import mid_size
from benchmarks.cpu import DEMO, machine
from benchmarks.quantized import slice_of_the_real_model
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.manifest import QuantizedForm
from lladav.runtime.profiling.prediction import predict_here
from lladav.runtime.profiling.probe import measure as measure_rates

PROMPTS, CANVASES = (256, 1024, 3072), (32, 128)
FORMS: dict[str, QuantizedForm | None] = {"fp32": None, "w8": "w8", "w4": "w4"}


def measure_model(checkpoint: Path, work: Path) -> dict[str, Any]:
    """The rates of this machine, and rows of every form and canvas; `work` is a new folder for the bundles."""
    work.mkdir()
    rates = measure_rates(1, clock=time.process_time)
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        config = ExportConfig(
            **{"dtype": "fp32", "quantize": form, "vocab_rows": "all", "verify": False},
            **{"prompt_buckets": PROMPTS, "canvas_buckets": CANVASES},
        )
        bundle = export(checkpoint, work / name, config)
        for canvas in CANVASES:
            rows = predict_here(bundle, rates, canvas, measured=True, clock=time.process_time)
            found[f"{name}, canvas {canvas}"] = [
                {"prompt": row.prompt, "refresh": row.refresh.to_json(), "step": row.step.to_json()} for row in rows
            ]
        print(name, [f"{row['step']['error']:+.0%}" for row in found[f"{name}, canvas {canvas}"]], flush=True)
    return {"rates": rates.model_dump(), "passes": found}


def report(results: dict[str, Any]) -> str:
    """The whole page."""
    about, models = results["machine"], results["models"]
    errors = [
        abs(row[kind]["error"])
        for model in models.values()
        for rows in model["passes"].values()
        for row in rows
        for kind in ("refresh", "step")
    ]
    parts = [
        "# Predictions beside what passes take",
        "Written by `python -m benchmarks.prediction`. `lladav plan --target cpu` and `lladav profile` predict a pass "
        "from its matrix products, by form and rows, and what its other nodes read and write, which tests hold against "
        "the graphs; and from what a probe of this machine measured: products of each form with 1 to 512 rows, on "
        "weights that no cache holds, and copies. Nothing is fitted to passes. The limit is the longer of two: bytes "
        "that must move and operations that must run, each at the best rate that the probe saw.",
        f"One thread, processor time, logits of the whole canvas. {about['processor']}, load {about['load']} when it "
        f"began and {about['load_after']} at its end; ONNX Runtime {about['onnxruntime']}. The error is the share by "
        f"which a prediction is too short (below 0) or too long; the largest is {max(errors):.0%}, the mean "
        f"{sum(errors) / len(errors):.0%}.",
    ]
    for name, model in models.items():
        parts += [f"## {name}", "\n".join(_rates(model["rates"])), "\n".join(_table(model["passes"]))]
    return "\n\n".join(parts) + "\n"


def _rates(rates: dict[str, Any]) -> Iterator[str]:
    yield f"Copies move {rates['bandwidth'] / 1e9:.1f} GB/s. Billions of operations a second by rows:"
    yield ""
    rows = [str(rows) for rows, _ in rates["products"]["float"]]
    yield f"| products of | {' | '.join(rows)} | at best |"
    yield "|---" * (len(rows) + 2) + "|"
    for form, curve in rates["products"].items():
        speeds = [operations for _, operations in curve]
        best = max(*speeds, rates["integers"].get(form, rates["operations"]))
        yield f"| {form} | {' | '.join(f'{speed / 1e9:,.0f}' for speed in (*speeds, best))} |"


def _table(passes: dict[str, Any]) -> Iterator[str]:
    parts = ("predicted, ms", "measured, ms", "error", "limit, ms")
    yield f"| form | prompt | {' | '.join(f'{kind} {part}' for kind in ('refresh', 'step') for part in parts)} |"
    yield "|---" * (2 * len(parts) + 2) + "|"
    for form, rows in passes.items():
        for row in rows:
            times = [
                cell
                for one in (row["refresh"], row["step"])
                for cell in (
                    *(f"{one['ms']:,.0f}", f"{one['measured_ms']:,.0f}", f"{one['error']:+.0%}"),
                    f"{one['limit_ms']:,.0f}",
                )
            ]
            yield f"| {form} | {row['prompt']:,} | {' | '.join(times)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--table", type=Path, help="Markdown file")
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        mid = mid_size.write_checkpoint(work / "mid")
        part = mid_size.write_checkpoint(work / "slice", slice_of_the_real_model(), DEMO / "checkpoint")
        models = {
            "A model of width 1024, 8 layers and 126,464 tokens": measure_model(mid, work / "mids"),
            "One layer of LLaDA, and a 32nd of its vocabulary": measure_model(part, work / "slices"),
        }
    about["load_after"] = round(os.getloadavg()[0], 2)
    results = {"machine": about, "models": models}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    text = report(results)
    if options.table:
        options.table.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
