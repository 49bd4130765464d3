"""How far predictions for this machine's CPU are from what passes take, on the mid-size model.

    python -m benchmarks.prediction --out prediction.json --table docs/prediction.md

The same as `lladav plan BUNDLE --target cpu --measure`, by the processor time of one thread, because other
programs may keep the cores busy.
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
from benchmarks.cpu import machine
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.manifest import QuantizedForm
from lladav.runtime.profiling.prediction import predict_here
from lladav.runtime.profiling.probe import Probe, probe

PROMPTS, CANVASES = (256, 1024, 3072), (32, 128)
FORMS: dict[str, QuantizedForm | None] = {"fp32": None, "w8": "w8"}


def measure(folder: Path, rates: Probe) -> dict[str, Any]:
    """Rows of every form and canvas."""
    checkpoint = mid_size.write_checkpoint(folder / "mid")
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        config = ExportConfig(
            **{"dtype": "fp32", "quantize": form, "vocab_rows": "all", "verify": False},
            **{"prompt_buckets": PROMPTS, "canvas_buckets": CANVASES},
        )
        bundle = export(checkpoint, folder / f"{name}.bundle", config)
        for canvas in CANVASES:
            rows = predict_here(bundle, rates, canvas, measured=True, clock=time.process_time)
            found[f"{name}, canvas {canvas}"] = [
                {"prompt": row.prompt, "refresh": row.refresh.to_json(), "step": row.step.to_json()} for row in rows
            ]
    return found


def report(results: dict[str, Any]) -> str:
    """The whole page."""
    about, rates = results["machine"], results["probe"]
    head = (
        "# Predictions beside what passes take\n\n"
        "Written by `python -m benchmarks.prediction`. `lladav plan --target cpu` predicts a pass from the bytes that "
        "must move, the operations that must run and two rates of the machine; `lladav profile` sets passes beside the "
        "same limit. Mid-size random model (width 1024, 8 layers, vocabulary 126,464), one thread, processor time, "
        f"logits of the whole canvas. {about['processor']}, load {about['load']} when it began and "
        f"{about['load_after']} at its end; {rates['bandwidth'] / 1e9:.1f} GB/s and {rates['operations'] / 1e9:.0f} "
        f"GFLOPS measured; ONNX Runtime {about['onnxruntime']}.\n\n"
        "The error is the share by which a prediction is too short (below 0) or too long. Products of integers (w8) "
        "are predicted at the rate of float32, which they may exceed.\n\n"
    )
    return head + "\n".join(_table(results["passes"])) + "\n"


def _table(passes: dict[str, Any]) -> Iterator[str]:
    heads = [f"{kind} {what}" for kind in ("refresh", "step") for what in ("predicted, ms", "measured, ms", "error")]
    yield f"| form | prompt | {' | '.join(heads)} | a step waits for |"
    yield "|---" * (len(heads) + 3) + "|"
    for form, rows in passes.items():
        for row in rows:
            times = [
                cell
                for one in (row["refresh"], row["step"])
                for cell in (f"{one['ms']:,.0f}", f"{one['measured_ms']:,.0f}", f"{one['error']:+.0%}")
            ]
            yield f"| {form} | {row['prompt']:,} | {' | '.join(times)} | {row['step']['bound']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--table", type=Path, help="Markdown file")
    options = parser.parse_args()
    about, rates = machine(), probe(1, renew=True)
    with tempfile.TemporaryDirectory() as folder:
        passes = measure(Path(folder), rates)
    about["load_after"] = round(os.getloadavg()[0], 2)
    results = {"machine": about, "probe": rates.model_dump(), "passes": passes}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    text = report(results)
    if options.table:
        options.table.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
