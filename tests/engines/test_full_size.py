"""LLaDA-V's real geometry with random weights, exported and built ahead of time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_builder import fused_attentions

from benchmarks import make_full_size
from benchmarks.export_full_size import anonymous_bytes
from lladav.bundle import Bundle
from lladav.costs import weight_bytes
from lladav.engines import read_records
from lladav.engines.builder import memory_per_weight
from lladav.export import ExportConfig, export
from lladav.linear_layers import Numbers, block_layers
from lladav.machine import examine
from lladav.manifest import INT4_BLOCK, Manifest, Quantization, QuantizedForm
from lladav.reductions import BINS, bin_numbers
from lladav.statistics import Statistics
from lladav.statistics_header import CalibrationRun, Condition, GraphRecord, Header

MOST_TO_EXPORT = 4e9


class Cost(NamedTuple):
    """Of a command: how long it took, and the most memory that the kernel could not have dropped."""

    seconds: float
    anonymous: int


def measured(*arguments: str) -> Cost:
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "lladav", *arguments])
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.05)
    assert process.returncode == 0
    return Cost(time.perf_counter() - began, peak)


def layers_that_fit(form: QuantizedForm | None) -> int:
    """As many of the language model's layers as this machine's free memory builds in fp16 with these integers."""
    memory = examine().memory
    assert memory is not None
    share = memory_per_weight("int4" if form == "w4" else "int8" if form else "fp16", streams=True)
    integers = Quantization(form=form, block=INT4_BLOCK) if form else None
    for layers in range(make_full_size.LAYERS, 0, -1):
        weights = weight_bytes(make_full_size.real_geometry(layers, 1), Numbers("fp16", integers))["denoiser"]
        if weights * share < memory.available:
            return layers
    pytest.skip(f"{memory.available / 1e9:.1f} GB of free memory build no layer")


def write_statistics(path: Path, manifest: Manifest) -> None:
    """Of normal numbers as inputs of every block: what is built does not depend on what its ranges are."""
    geometry, seen = manifest.geometry, Condition(kind="any", where="any")
    layers = [layer for n in range(geometry.language.layers) for layer in block_layers(geometry.language, n)]
    header = Header(
        lladav="1",
        bundle=manifest.sha256,
        checkpoint=manifest.checkpoint.fingerprint,
        geometry=geometry,
        run=CalibrationRun(sources=(), count=1, asked=None),
        graphs={"denoiser": GraphRecord(conditions=(seen,), linears={layer.name: layer.name for layer in layers})},
        done=1,
    )
    statistics = Statistics.empty(header, {layer.name: layer.inputs for layer in layers})
    draws = np.random.default_rng(0)
    for name, inputs, *_ in layers:
        values = np.abs(draws.standard_normal((64, inputs), np.float32))
        statistics.arrays[f"{name}/absmax"][0] = values.max(axis=0)
        statistics.arrays[f"{name}/square_sum"][0] = np.square(values).sum(axis=0)
        statistics.arrays[f"{name}/histogram"][0] = np.bincount(bin_numbers(values).ravel(), minlength=BINS)
    statistics.write(path)


@pytest.mark.fullsize
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("form", ["w8", "w4", "w8a8", None])
def test_real_geometry(tmp_path: Path, form: QuantizedForm | None) -> None:
    layers = layers_that_fit(form)
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    checkpoint.mkdir()
    make_full_size.write_checkpoint(checkpoint, layers, make_full_size.VISION_LAYERS, lambda _: None)
    integers = ("--quantize", form) if form else ()
    if form == "w8a8":
        # Statistics name the checkpoint by a sum over all its weights, which an export takes.
        export(checkpoint, bundle, ExportConfig(dtype="fp16", quantize="w8", verify=False))
        write_statistics(tmp_path / "statistics.npz", Manifest.read(bundle))
        shutil.rmtree(bundle)
        integers += ("--statistics", str(tmp_path / "statistics.npz"))
    exported = measured("export", str(checkpoint), str(bundle), "--dtype", "fp16", "--no-verify", *integers)
    shutil.rmtree(checkpoint)
    built = measured("build", str(bundle), "--target", "rtx-40")

    manifest = Bundle.open(bundle).manifest
    sizes = {entry.path: entry.bytes for entry in manifest.files}
    records = {record.graph: record for record in read_records(bundle)}
    print(f"\n{layers} layers in {manifest.numbers}, bundle of {sum(sizes.values()) / 1e9:.2f} GB")
    for verb, cost in (("exported", exported), ("built", built)):
        print(f"{verb} in {cost.seconds:.0f} s with {cost.anonymous / 1e9:.2f} GB of memory beside the file cache")
    for name, record in records.items():
        weights = sizes[manifest.graphs[name].weights]
        print(f"{name}: {record.plan.bytes / 1e9:.3f} GB of {weights / 1e9:.3f}, activations {record.activations}")
        # As wide as in the file: integers stay integers.
        assert record.plan.bytes < 1.1 * weights
        if form:
            assert record.integers is not None
            assert (record.integers.widened, record.integers.conversions) == ((), ())
    assert exported.anonymous < MOST_TO_EXPORT
    assert fused_attentions(bundle / records["denoiser"].plan.path) == 2 * layers
    assert fused_attentions(bundle / records["vision_encoder"].plan.path) == make_full_size.VISION_LAYERS
    shutil.rmtree(bundle)
