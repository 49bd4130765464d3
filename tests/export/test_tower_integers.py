"""Integers in the vision tower and the connector: what spoils them, and what is done about it without statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import IMAGE_SIZE, Tensors, write_tiny_checkpoint
from typer.testing import CliRunner

from lladav.bundle import Bundle
from lladav.cli.app import app
from lladav.export import ExportConfig, export
from lladav.export import smoothing as module
from lladav.export.agreement_layers import layer_errors
from lladav.export.migration import Migration
from lladav.export.progress import Progress
from lladav.manifest import TOWER, QuantizedForm

LAYER = f"{TOWER}.encoder.layers.0"


def plant_column(tensors: Tensors, _: object) -> None:
    """A channel that hardly varies, and whose weights are as much larger: the other weights are below half a step."""
    for part, value in (("weight", 0.001), ("bias", 0)):
        tensors[f"{LAYER}.layer_norm2.{part}"][3] = value
    tensors[f"{LAYER}.mlp.fc1.weight"][:, 3] *= 1000


def plant_constants(tensors: Tensors, _: object) -> None:
    """Two channels that hardly vary nearly cancel, and leave features below zero, where GELU cuts most of them off."""
    for part, value in (("weight", 0.01), ("bias", 1)):
        tensors[f"{LAYER}.layer_norm2.{part}"][3:5] = value
    weights = tensors[f"{LAYER}.mlp.fc1.weight"]
    weights *= 10
    weights[:, 3:5] = 0
    size = np.linalg.norm(weights, axis=1)
    weights[:, 3], weights[:, 4] = -12 * size, 10 * size
    tensors[f"{LAYER}.mlp.fc2.bias"][:] = 0


def plant_in_connector(tensors: Tensors, _: object) -> None:
    """A feature that hardly leaves GELU, and whose weights behind it are as much larger: no norm is before it."""
    tensors["model.mm_projector.0.weight"][3] /= 1000
    tensors["model.mm_projector.0.bias"][3] = 0
    tensors["model.mm_projector.2.weight"][:, 3] *= 1000


def exported(folder: Path, edit: Any, **options: Any) -> tuple[Bundle, Bundle]:
    """Bundles of a changed checkpoint, in floats and in integers."""
    checkpoint = write_tiny_checkpoint(folder / "checkpoint", edit=edit)
    plain = export(checkpoint, folder / "plain", ExportConfig(dtype="fp32", verify=False))
    return plain, export(checkpoint, folder / "integers", ExportConfig(dtype="fp32", verify=False, **options))


def error_of(layer: str, plain: Bundle, integers: Bundle) -> float:
    """Of a layer's output for one crop, relative to it, with the errors of its block."""
    pixels = np.random.default_rng(0).normal(0, 1, (1, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    found = layer_errors(plain, integers, {"vision_encoder": [{"pixel_values": pixels}]}, Progress())
    return next(one.error for one in found if one.layer == layer)


@pytest.mark.parametrize("form", ["w8", "w4"])
def test_large_column_moves_into_the_norm(tmp_path: Path, form: QuantizedForm, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, integers = exported(tmp_path, plant_column, quantize=form)
    assert integers.manifest.quantization is not None
    assert not integers.manifest.quantization.kept
    factors = Migration.read(integers.path, integers.manifest.geometry).sources[f"{LAYER}.layer_norm2"]
    assert factors.argmin() == 3
    assert factors[3] < factors.mean() / 20
    monkeypatch.setattr(module, "best_factors", module.no_factors)
    monkeypatch.setitem(module.WORST_ERRORS, "int8", 9.0)
    _, unmoved = exported(tmp_path / "unmoved", plant_column, quantize=form)
    behind = f"{LAYER}.mlp.fc2"
    assert error_of(behind, plain, integers) < 0.03 < 0.1 < error_of(behind, plain, unmoved)


@pytest.mark.parametrize("observed", [False, True])
def test_error_is_judged_where_it_shows(
    tmp_path: Path, calibrated: Callable[[Path], Path], observed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the layer's own output it is small beside the constants, and behind GELU it is not."""
    most = module.WORST_ERRORS["int8"]
    monkeypatch.setattr(module, "best_factors", module.no_factors)
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", edit=plant_constants)
    plain = export(checkpoint, tmp_path / "plain", ExportConfig(dtype="fp32", verify=False))
    seen = calibrated(plain.path) if observed else None
    options = ExportConfig(dtype="fp32", quantize="w8", statistics=seen, verify=False)
    judged = export(checkpoint, tmp_path / "judged", options)
    monkeypatch.setitem(module.WORST_ERRORS, "int8", 9.0)
    unjudged = export(checkpoint, tmp_path / "unjudged", options)
    first, second = f"{LAYER}.mlp.fc1", f"{LAYER}.mlp.fc2"
    assert judged.manifest.quantization is not None
    assert judged.manifest.quantization.kept == (first,)
    assert error_of(first, plain, unjudged) < most < error_of(second, plain, unjudged)


def test_layer_that_no_factor_mends_stays_in_floats(tmp_path: Path) -> None:
    plain, integers = exported(tmp_path, plant_in_connector, quantize="w8")
    assert integers.manifest.quantization is not None
    layer = "model.mm_projector.2"
    assert integers.manifest.quantization.kept == (layer,)
    assert error_of(layer, plain, integers) < 0.03
    (tmp_path / "prompts.txt").write_text("What?\n", "utf-8")
    bundles = ("--quantized", str(integers.path), "--reference", str(plain.path))
    for command in (("inspect", str(integers.path)), ("verify", *bundles, "--prompts", str(tmp_path / "prompts.txt"))):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0
        said = " ".join((result.stdout + result.stderr).split())
        assert f"no integers: {layer}" in said or f"no integers 1 linear layers: {layer}" in said
