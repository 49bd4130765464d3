"""Whether a model fits a target and how long its passes take there, without the target.

This is a roofline, not a measurement: a pass takes as long as moving its bytes, or as its matrix
products (`lladav.costs`), whichever is longer, at the share of the data sheet's rate that published
runs of another model of this size reached.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lladav.bundle import Bundle
from lladav.costs import Bound, Rates, pass_cost
from lladav.engines.needs import Needs, memory_needs
from lladav.engines.profiles import BATCH
from lladav.engines.target import EnginePrecision, Target, load_target
from lladav.errors import EngineError
from lladav.linear_layers import Numbers
from lladav.manifest import INT4_BLOCK, Manifest, Precision, Quantization
from lladav.memory_plan import BYTES, Sizes, check_sizes, default_canvas
from lladav.records import engine_precision

# Llama-3-8B with TinyChat on Jetson AGX Orin 64 GB, as published: 15.0 GB of fp16 weights read in
# 96 ms a token, of 204.8 GB/s; 1,024 tokens read in 0.566 s, of 42.6 TFLOPS.
BANDWIDTH_SHARE = 0.76
COMPUTE_SHARE = 0.64
PREDICTED: tuple[EnginePrecision, ...] = ("fp16", "bf16", "int8", "int4")

# On a Jetson Orin Nano, TensorRT failed at a head of this size in one product.
FAILED_HEAD_BYTES = 622e6


@dataclass(frozen=True)
class Row:
    """One prompt bucket.

    Attributes:
        refresh_ms: predicted time of the pass over prompt and canvas.
        refresh_bound: what it waits for.
        step_ms: predicted time of the pass over the canvas alone.
        step_bound: what it waits for.
        needs: bytes of memory.
        free: bytes left of the target's memory; negative where it does not fit.
    """

    prompt: int
    refresh_ms: float
    refresh_bound: Bound
    step_ms: float
    step_bound: Bound
    needs: Needs
    free: int


@dataclass(frozen=True)
class Prediction:
    """For one target, canvas and batch, a row per prompt bucket.

    Attributes:
        all_sizes_activations: bytes that an engine for all of the bundle's sizes asks for at once,
            where its memory is not given by size.
        notes: what else the target implies for this model.
    """

    target: Target
    precision: EnginePrecision
    canvas: int
    batch: int
    rows: tuple[Row, ...]
    all_sizes_activations: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `lladav plan --json` prints."""
        return {
            "predicted": True,
            "target": self.target.model_dump(mode="json"),
            "precision": self.precision,
            "canvas": self.canvas,
            "batch": self.batch,
            "bandwidth_share": BANDWIDTH_SHARE,
            "compute_share": COMPUTE_SHARE,
            "rows": [asdict(row) | {"total": row.needs.total, "fits": row.free >= 0} for row in self.rows],
            "all_sizes_activations": self.all_sizes_activations,
            "notes": list(self.notes),
        }


def predict(
    bundle: str | Path,
    target: str,
    *,
    precision: EnginePrecision | None = None,
    canvas: int | None = None,
    batch: int = 1,
) -> Prediction:
    """Predicts memory and latency of a bundle on a target.

    Args:
        bundle: folder made by `lladav export`.
        target: one of `target_names()`.
        precision: one of `PREDICTED`, as if exported in that; None takes the bundle's, and fp16 for
            one in fp32. Matrix products of int8 and int4 weights are counted in the compute type.
        canvas: one of the bundle's canvas buckets; None takes that of the default answer length.
        batch: sequences side by side.

    Raises:
        BundleError: the bundle is damaged.
        OptionError: there is no such target or canvas bucket.
        EngineError: the target lacks the precision.
    """
    manifest, wanted = Bundle.open(bundle).manifest, load_target(target)
    own = engine_precision(manifest)
    if precision is None:
        precision = "fp16" if own == "fp32" else own
    if precision not in PREDICTED or precision not in wanted.precisions:
        raise EngineError(
            f"there is no prediction for {precision} on {wanted.title}, which takes {', '.join(wanted.precisions)}",
            cure=f"pass --precision {' or '.join(p for p in PREDICTED if p in wanted.precisions)}",
        )
    canvas = default_canvas(manifest) if canvas is None else canvas
    check_sizes(manifest, Sizes(batch, manifest.buckets.prompt[0], canvas, 0))
    numbers, rates = _numbers(manifest, precision), rates_of(wanted)
    rows = []
    for prompt in manifest.buckets.prompt:
        sizes = Sizes(batch, prompt, canvas, 0)
        needs = memory_needs(manifest, prompt, canvas, batch=batch, numbers=numbers)
        refresh = rates.roofline(pass_cost(manifest, "refresh", sizes, numbers))
        step = rates.roofline(pass_cost(manifest, "step", sizes, numbers))
        rows.append(
            Row(
                prompt=prompt,
                refresh_ms=refresh.ms,
                refresh_bound=refresh.bound,
                step_ms=step.ms,
                step_bound=step.bound,
                needs=needs,
                free=int(wanted.memory_gb * 1e9) - needs.total,
            )
        )
    buckets = manifest.buckets
    largest = memory_needs(manifest, buckets.prompt[-1], buckets.canvas[-1], batch=BATCH.most, numbers=numbers)
    notes = implications(wanted, manifest)
    return Prediction(wanted, precision, canvas, batch, tuple(rows), largest.activations, notes)


def rates_of(target: Target) -> Rates:
    """What a target's memory and matrix units are taken to reach."""
    return Rates(target.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE, target.fp16_tflops * 1e12 * COMPUTE_SHARE)


def implications(target: Target, manifest: Manifest) -> tuple[str, ...]:
    """What is known, or not known, about a bundle on a target beside its sizes."""
    notes = []
    if head_fault := unsplit_head(target, manifest):
        notes.append(head_fault)
    if manifest.quantization and manifest.quantization.form == "w8a8" and target.library == "tensorrt_rtx":
        notes.append(
            "TensorRT-RTX's support matrix has INT8 for weights alone: it builds engines that multiply integers, and "
            "nobody has measured whether they are faster than w8"
        )
    return tuple(notes)


def head_bytes(manifest: Manifest) -> int:
    """Of the weights of all parts of the head, in the type of matrix products: a builder may widen integers to it."""
    g = manifest.geometry.language
    return g.vocab_rows * g.hidden_size * BYTES[manifest.precision]


def unsplit_head(target: Target, manifest: Manifest) -> str:
    """What is wrong with a head whose products are as large as one that failed to build; empty if nothing is."""
    part = head_bytes(manifest) // manifest.head_parts
    if not target.splits_head or part < FAILED_HEAD_BYTES:
        return ""
    return f"the head takes {part / 1e6:,.0f} MB in one product, which may not build: {target.sources['splits_head']}"


def _numbers(manifest: Manifest, precision: EnginePrecision) -> Numbers:
    """Of the bundle itself, or of one that was exported in another precision; engines have no float32."""
    if precision == engine_precision(manifest) and manifest.precision != "fp32":
        return Numbers.of(manifest)
    if precision in ("fp16", "bf16"):
        return Numbers(precision, prompt_kv=manifest.prompt_kv)
    compute: Precision = "fp16" if manifest.precision == "fp32" else manifest.precision
    form = Quantization(form="w4", block=INT4_BLOCK) if precision == "int4" else Quantization(form="w8")
    return Numbers(compute, form, prompt_kv=manifest.prompt_kv)
