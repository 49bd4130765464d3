"""Sizes that move from activations into weights: the model stays the same, and integers lose less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import HEADS, LAYERS, Tensors, write_tiny_checkpoint
from typer.testing import CliRunner

from lladav.bundle import Bundle
from lladav.calib import CalibrationConfig, calibrate
from lladav.cli.app import app
from lladav.errors import CalibrationError
from lladav.export import ExportConfig, export
from lladav.export.checkpoint import Checkpoint
from lladav.export.graph_form import LinearForm
from lladav.export.migration import FILE, MigratedCheckpoint, Migration, borders
from lladav.export.model_config import read_geometry
from lladav.export.quantize import dequantized, round_to_nearest
from lladav.export.smoothing import WORST_ERRORS, LinearSample, best_factors, ordinary_power
from lladav.export.weights import WeightStream
from lladav.manifest import QuantizedForm
from lladav.statistics import BINS, Activations, Statistics, bin_numbers

Floats = npt.NDArray[np.float32]
INT8, INT4 = LinearForm("int8", input_range=1.0), LinearForm("int4", 16)
SIZES = st.tuples(st.integers(1, 24), st.sampled_from([16, 48]), st.integers(0, 2**32 - 1))


def seen(inputs: Floats) -> Activations:
    """Statistics of `[rows, channels]`, as a calibration counts them."""
    counts = np.bincount(bin_numbers(np.abs(inputs)).ravel(), minlength=BINS)
    power = np.square(inputs, dtype=np.float64).mean(axis=0)
    return Activations(np.abs(inputs).max(axis=0), power, counts, len(inputs))


def drawn(rows: int, channels: int, seed: int, count: int = 256) -> tuple[Floats, Floats]:
    """Weights `[rows, channels]` and inputs `[count, channels]` whose channels differ in size."""
    draw = np.random.default_rng(seed)
    sizes = np.exp(draw.normal(0, 1, channels))
    weights = draw.normal(0, 1, (rows, channels))
    return weights.astype(np.float32), (sizes * draw.normal(0, 1, (count, channels))).astype(np.float32)


def computed(weights: Floats, inputs: Floats, factors: Floats, form: LinearForm) -> Floats:
    """What a layer computes whose weights, and for int8 inputs too, are integers."""
    rounded, given = dequantized(round_to_nearest(weights * factors, form, np.float32)), inputs / factors
    if form.input_range is not None:
        step = np.abs(given).max() / 127
        given = np.clip(np.rint(given / step), -128, 127) * step
    result: Floats = given @ rounded.T
    return result


def relative(got: Floats, expected: Floats) -> float:
    return float(np.sqrt(np.square(got - expected).sum() / np.square(expected).sum()))


@pytest.mark.parametrize("form", [INT8, INT4])
@given(SIZES)
def test_estimate_is_near_the_error(form: LinearForm, sizes: tuple[int, int, int]) -> None:
    rows, channels, seed = sizes
    weights, inputs = drawn(rows + 4, channels, seed)
    sample = LinearSample(weights, seen(inputs), form)
    factors = best_factors([sample])
    true = relative(computed(weights, inputs, factors, form), inputs @ weights.T)
    assert true / 2 < sample.relative_error(factors) < 3 * true


@pytest.mark.parametrize("form", [INT8, INT4])
@given(SIZES, st.integers(1, 3))
def test_factors_are_never_worse_than_none(form: LinearForm, sizes: tuple[int, int, int], layers: int) -> None:
    rows, channels, seed = sizes
    _, inputs = drawn(rows, channels, seed)
    samples = [LinearSample(drawn(rows, channels, seed + n)[0], seen(inputs), form) for n in range(layers)]
    factors = best_factors(samples)
    assert sum(s.error(factors) for s in samples) <= sum(s.error(np.ones_like(factors)) for s in samples)
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    assert abs(np.log(factors).mean()) < 1e-3


def test_large_channel_moves_into_the_weights() -> None:
    weights, inputs = drawn(32, 64, seed=0)
    inputs[:, 7] *= 100
    weights[:, 7] /= 100
    sample = LinearSample(weights, seen(inputs), INT8)
    factors, ones = best_factors([sample]), np.ones(64, np.float32)
    expected = inputs @ weights.T
    before, after = (relative(computed(weights, inputs, f, INT8), expected) for f in (ones, factors))
    assert before > 0.3
    assert after < 0.02
    assert sample.relative_error(factors) < WORST_ERRORS["int8"]


def test_huge_values_of_few_positions_are_not_taken_for_the_output() -> None:
    """Beside the mean output, which is theirs, the error would be small; the other positions are lost."""
    weights, inputs = drawn(32, 64, seed=1, count=4000)
    inputs[:2] *= 1000
    sample = LinearSample(weights, seen(inputs), INT8)
    factors = best_factors([sample])
    got, expected = computed(weights, inputs, factors, INT8), inputs @ weights.T
    assert relative(got, expected) < 0.1
    assert relative(got[2:], expected[2:]) > 0.3
    assert sample.relative_error(factors) > 3 * WORST_ERRORS["int8"]
    assert ordinary_power(sample.seen).sum() < 3 * np.square(inputs[2:]).mean(axis=0).sum()


def test_channel_that_was_never_seen() -> None:
    weights, inputs = drawn(8, 16, seed=2)
    inputs[:, 3] = weights[:, 5] = 0
    factors = best_factors([LinearSample(weights, seen(inputs), INT8)])
    assert np.isfinite(factors).all()
    assert (factors > 0).all()


def share_heads(tensors: Tensors, config: dict[str, Any]) -> None:
    """Half as many heads of keys and values."""
    config["num_key_value_heads"] = HEADS // 2
    for name, tensor in tensors.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")) and "vision" not in name:
            tensors[name] = tensor[: len(tensor) // 2]


@pytest.mark.parametrize("shared", [False, True])
def test_model_stays_the_same(tmp_path: Path, shared: bool) -> None:
    pytest.importorskip("torch")
    from lladav.export.streamed_reference import StreamedReference

    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path / "c", edit=share_heads if shared else None))
    geometry = read_geometry(checkpoint, 300)
    found = list(borders(geometry.language))
    assert len(found) == LAYERS * (3 if shared else 4)
    draw = np.random.default_rng(0)
    factors = {
        b.source: np.exp(draw.normal(0, 1, checkpoint.tensors[b.source].shape[0])).astype(np.float32) for b in found
    }
    migrated = MigratedCheckpoint.of(checkpoint, Migration.of(geometry.language, factors))
    embeds = draw.normal(0, 0.5, (1, 9, geometry.language.hidden_size)).astype(np.float32)
    theirs, ours = (
        [layer.hidden for layer in StreamedReference(source, geometry).language(embeds)]
        for source in (checkpoint, migrated)
    )
    for before, after in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())
    changed = {
        name
        for name in checkpoint.tensors
        if not np.array_equal(*(c.read_rows(name, 0, 1) for c in (checkpoint, migrated)))
    }
    linears = {f"{name}.weight" for border in found for name in border.linears}
    assert changed == linears | {border.source for border in found}


def test_fingerprint_is_the_checkpoint_s(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    name = "model.layers.0.mlp.up_proj.weight"
    halves = Migration({name: np.full(checkpoint.tensors[name].shape[0], 2, np.float32)})
    found = []
    for migration in (Migration(), halves):
        stream = WeightStream(checkpoint, lambda _: None, migration)
        found.append((np.concatenate(list(stream.blocks(name, 10**9))), stream.fingerprint()))
    (plain, fingerprint), (halved, same) = found
    np.testing.assert_array_equal(halved, plain / 2)
    assert same == fingerprint


@pytest.fixture(scope="module")
def statistics(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    """Of text alone, which is enough for the language model."""
    folder = tmp_path_factory.mktemp("statistics")
    (folder / "prompts.txt").write_text("What is this?\nWhere is it?\n", "utf-8")
    asked = CalibrationConfig(gen_length=8, steps=4, refresh_interval=2)
    return calibrate(tiny_bundle, folder / "seen.npz", prompts=folder / "prompts.txt", config=asked)


def exported(checkpoint: Path, folder: Path, form: QuantizedForm, statistics: Statistics, verify: bool) -> Bundle:
    statistics.write(folder / "seen.npz")
    config = ExportConfig(dtype="fp32", quantize=form, statistics=folder / "seen.npz", verify=verify)
    return export(checkpoint, folder / "bundle", config)


def test_export_says_which_layers_stay_in_floats(
    tiny_checkpoint: Path, tmp_path: Path, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WORST_ERRORS, "int8", 0.0)
    statistics.write(tmp_path / "seen.npz")
    options = ("--quantize", "w8a8", "--statistics", str(tmp_path / "seen.npz"), "--no-verify")
    result = CliRunner().invoke(app, ("export", str(tiny_checkpoint), str(tmp_path / "bundle"), *options))
    assert result.exit_code == 0
    assert f"{7 * LAYERS} linear layers are no integers: model.layers.0.self_attn.q_proj, " in result.stdout
    assert FILE not in {entry.path for entry in Bundle.open(tmp_path / "bundle").manifest.files}


@pytest.mark.parametrize("form", ["w8a8", "w4"])
def test_bundle_with_factors_computes_the_model(
    tiny_checkpoint: Path, tmp_path: Path, statistics: Statistics, form: QuantizedForm
) -> None:
    pytest.importorskip("torch")
    bundle = exported(tiny_checkpoint, tmp_path, form, statistics, verify=True)
    assert FILE in {entry.path for entry in bundle.manifest.files}
    assert bundle.manifest.quantization is not None
    assert not bundle.manifest.quantization.kept
    assert Migration.read(bundle.path, bundle.manifest.geometry.language).sources


def test_layer_with_massive_activations_stays_in_floats(
    tiny_checkpoint: Path, tmp_path: Path, statistics: Statistics
) -> None:
    """As they were reported of down projections of LLaDA: at few positions, in few channels."""
    pytest.importorskip("torch")
    layer = "model.layers.1.mlp.down_proj"
    arrays = dict(statistics.arrays)
    absmax, squares, counts = (arrays[f"{layer}/{kind}"].copy() for kind in ("absmax", "square_sum", "histogram"))
    huge = np.float32(1000) * absmax.max()
    squares, counts = 100 * squares, 100 * counts  # as after more questions
    squares[0, :2] += float(huge) ** 2
    absmax[0, :2] = huge
    counts[0, bin_numbers(np.array([huge]))] += 2
    arrays |= {f"{layer}/absmax": absmax, f"{layer}/square_sum": squares, f"{layer}/histogram": counts}
    bundle = exported(tiny_checkpoint, tmp_path, "w8a8", Statistics(statistics.header, arrays), verify=True)
    assert bundle.manifest.quantization is not None
    assert bundle.manifest.quantization.kept == (layer,)


def test_statistics_of_another_geometry_are_refused_at_once(
    tiny_checkpoint: Path, tmp_path: Path, statistics: Statistics
) -> None:
    geometry = statistics.header.geometry
    language = geometry.language.model_copy(update={"max_positions": 99})
    header = statistics.header.model_copy(update={"geometry": geometry.model_copy(update={"language": language})})
    with pytest.raises(CalibrationError, match="another geometry"):
        exported(tiny_checkpoint, tmp_path, "w4", Statistics(header, statistics.arrays), verify=False)
    assert not (tmp_path / "bundle").exists()
