"""LLaDA-V's real geometry with random weights, built ahead of time."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
from test_builder import fused_attentions

from benchmarks import make_full_size
from lladav.bundle import Bundle
from lladav.engines import read_records
from lladav.export import ExportConfig, export
from lladav.inspect import count_parameters
from lladav.machine import examine
from lladav.manifest import Manifest

# Of the process, per byte of the denoiser's weights, and beside the weights, which are mapped (docs/decisions.md).
MEMORY_PER_WEIGHT = 1.75


def layers_that_fit() -> int:
    """As many of the language model's layers as this machine's free memory builds in fp16."""
    memory = examine().memory
    assert memory is not None
    for layers in range(make_full_size.LAYERS, 0, -1):
        geometry = make_full_size.real_geometry(layers, 1)
        table = geometry.language.vocab_rows * geometry.language.hidden_size
        weights = 2 * (count_parameters(geometry)["language_model"] - table)
        if weights * MEMORY_PER_WEIGHT < memory.available:
            return layers
    pytest.skip(f"{memory.available / 1e9:.1f} GB of free memory build no layer")


@pytest.mark.fullsize
@pytest.mark.usefixtures("rtx")
def test_real_geometry(tmp_path: Path) -> None:
    layers = layers_that_fit()
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    checkpoint.mkdir()
    make_full_size.write_checkpoint(checkpoint, layers, make_full_size.VISION_LAYERS, lambda _: None)
    export(checkpoint, bundle, ExportConfig(dtype="fp16", verify=False))
    shutil.rmtree(checkpoint)

    began = perf_counter()
    subprocess.run([sys.executable, "-m", "lladav", "build", str(bundle), "--target", "rtx-40"], check=True)
    seconds = perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    records = {record.graph: record for record in read_records(bundle)}
    graphs = Manifest.read(bundle).graphs
    sizes = {entry.path: entry.bytes for entry in Bundle.open(bundle).manifest.files}
    print(f"\n{layers} layers, {seconds:.0f} s, {peak / 1e9:.1f} GB with mapped weights")
    for name, record in records.items():
        print(f"{name}: {record.plan.bytes / 1e9:.3f} GB, activations {record.activations}")
        assert record.plan.bytes < 1.1 * sizes[graphs[name].weights]
    assert fused_attentions(bundle / records["denoiser"].plan.path) == 2 * layers
    assert fused_attentions(bundle / records["vision_encoder"].plan.path) == make_full_size.VISION_LAYERS
