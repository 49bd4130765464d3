"""Sizes that move from activations into weights: the model stays the same, and integers lose less."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import HEADS, IMAGE_SIZE, LAYERS, VISION_LAYERS, sharing_heads, write_tiny_checkpoint
from typer.testing import CliRunner

from lladav.bundle import Bundle
from lladav.cli.app import app
from lladav.errors import CalibrationError
from lladav.export import ExportConfig, export
from lladav.export.checkpoint import Checkpoint
from lladav.export.gelu import Passed
from lladav.export.graph_form import LinearForm
from lladav.export.linear_sample import InputSizes, LinearSample, ordinary_power
from lladav.export.migration import FILE, MigratedCheckpoint, Migration, borders
from lladav.export.model_config import read_geometry
from lladav.export.quantize import dequantized, round_to_nearest
from lladav.export.smoothing import WORST_ERRORS, best_factors
from lladav.export.weights import WeightStream
from lladav.manifest import LANGUAGE_LAYERS, QuantizedForm
from lladav.reductions import BINS, bin_numbers
from lladav.statistics import Activations, Statistics

Floats = npt.NDArray[np.float32]
Calibrate = Callable[..., Path]
INT8, INT4 = LinearForm("int8", input_range=1.0), LinearForm("int4", 16)
SIZES = st.tuples(st.integers(1, 24), st.sampled_from([16, 48]), st.integers(0, 2**32 - 1))


def observed(inputs: Floats) -> Activations:
    """Statistics of `[rows, channels]`, as a calibration counts them."""
    counts = np.bincount(bin_numbers(np.abs(inputs)).ravel(), minlength=BINS)
    power = np.square(inputs, dtype=np.float64).mean(axis=0)
    return Activations(np.abs(inputs).max(axis=0), power, counts, len(inputs))


def sample_of(weights: Floats, inputs: Floats, form: LinearForm) -> LinearSample:
    """A layer that was seen with these inputs."""
    return LinearSample(weights, InputSizes.of(observed(inputs)), form)


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
    sample = sample_of(weights, inputs, form)
    factors = best_factors([sample])
    true = relative(computed(weights, inputs, factors, form), inputs @ weights.T)
    assert true / 2 < sample.relative_error(factors) < 3 * true


@pytest.mark.parametrize("form", [INT8, INT4])
@given(SIZES, st.integers(1, 3))
def test_factors_are_never_worse_than_none(form: LinearForm, sizes: tuple[int, int, int], layers: int) -> None:
    rows, channels, seed = sizes
    _, inputs = drawn(rows, channels, seed)
    samples = [sample_of(drawn(rows, channels, seed + n)[0], inputs, form) for n in range(layers)]
    factors = best_factors(samples)
    assert sum(s.error(factors) for s in samples) <= sum(s.error(np.ones_like(factors)) for s in samples)
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    assert abs(np.log(factors).mean()) < 1e-3


def test_large_channel_moves_into_the_weights() -> None:
    weights, inputs = drawn(32, 64, seed=0)
    inputs[:, 7] *= 100
    weights[:, 7] /= 100
    sample = sample_of(weights, inputs, INT8)
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
    sample = sample_of(weights, inputs, INT8)
    factors = best_factors([sample])
    got, expected = computed(weights, inputs, factors, INT8), inputs @ weights.T
    assert relative(got, expected) < 0.1
    assert relative(got[2:], expected[2:]) > 0.3
    assert sample.relative_error(factors) > 3 * WORST_ERRORS["int8"]
    assert ordinary_power(observed(inputs)).sum() < 3 * np.square(inputs[2:]).mean(axis=0).sum()


@given(st.floats(-8, 8), st.floats(0.01, 2))
def test_deviation_is_told_from_the_mean(mean: float, deviation: float) -> None:
    inputs = np.random.default_rng(0).normal(mean, deviation, (4000, 4)).astype(np.float32)
    np.testing.assert_allclose(InputSizes.of(observed(inputs)).deviation, deviation, rtol=0.5)


def test_channel_that_was_never_seen() -> None:
    weights, inputs = drawn(8, 16, seed=2)
    inputs[:, 3] = weights[:, 5] = 0
    factors = best_factors([sample_of(weights, inputs, INT8)])
    assert np.isfinite(factors).all()
    assert (factors > 0).all()


def test_error_counts_as_it_shows_behind_the_nonlinearity() -> None:
    """A constant takes all features but one far below zero, where GELU cuts them off with their errors."""
    weights, inputs = drawn(16, 32, seed=3)
    sample, ones = sample_of(weights, inputs, LinearForm("int8")), np.ones(32, np.float32)
    slope, power = np.zeros(16), np.zeros(16)
    slope[4], power[4] = 1, np.square(inputs @ weights[4], dtype=np.float64).mean()
    alone = sample_of(weights[4:5], inputs, LinearForm("int8"))
    behind = replace(sample, passed=Passed(power, slope))
    assert behind.error(ones) == pytest.approx(alone.error(ones), rel=1e-4)
    true = relative(computed(weights[4:5], inputs, ones, LinearForm("int8")), inputs @ weights[4:5].T)
    assert true / 2 < behind.relative_error(ones) < 2 * true


@pytest.mark.parametrize(("slope", "expected"), [(1, np.inf), (0, 0)])
def test_error_where_there_is_no_output(slope: float, expected: float) -> None:
    weights, inputs = drawn(16, 32, seed=3)
    passed = Passed(np.zeros(16), np.full(16, slope))
    sample = replace(sample_of(weights, inputs, LinearForm("int8")), passed=passed)
    assert sample.relative_error(np.ones(32, np.float32)) == expected


def test_nothing_leaves_float16() -> None:
    weights, _ = drawn(8, 16, seed=4)
    weights[:, 0] *= 1e5
    largest = np.full(16, 50, np.float32)
    factors = best_factors([LinearSample(weights, InputSizes(np.ones(16), largest), LinearForm("int8"))])
    assert factors.max() / factors.min() > 100
    assert (largest / factors).max() < 2.0**15


@pytest.mark.parametrize("kv_heads", [HEADS, HEADS // 2])
def test_model_stays_the_same(tmp_path: Path, kv_heads: int) -> None:
    pytest.importorskip("torch")
    from lladav.export.streamed_reference import StreamedReference

    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path / "c", edit=sharing_heads(kv_heads)))
    geometry = read_geometry(checkpoint, 300)
    found = list(borders(geometry))
    assert len(found) == LAYERS * (4 if kv_heads == HEADS else 3) + 3 * VISION_LAYERS
    draw = np.random.default_rng(0)
    factors = {
        b.source: np.exp(draw.normal(0, 1, checkpoint.tensors[f"{b.source}.weight"].shape[0])).astype(np.float32)
        for b in found
    }
    migrated = MigratedCheckpoint.of(checkpoint, Migration.of(geometry, factors))
    embeds = draw.normal(0, 0.5, (1, 9, geometry.language.hidden_size)).astype(np.float32)
    pixels = draw.normal(0, 1, (1, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    theirs, ours = (
        [
            *(layer.hidden for layer in reference.language(embeds)),
            *(features for _, features in reference.vision(pixels)),
        ]
        for reference in (StreamedReference(source, geometry) for source in (checkpoint, migrated))
    )
    for before, after in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())
    changed = {
        name
        for name in checkpoint.tensors
        if not np.array_equal(*(c.read_rows(name, 0, 1) for c in (checkpoint, migrated)))
    }
    tensors = {f"{name}.weight" for border in found for name in (border.source, *border.linears)}
    assert changed == tensors | ({f"{border.source}.bias" for border in found} & checkpoint.tensors.keys())


def test_fingerprint_is_the_checkpoint_s(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    layer = "model.layers.0.mlp.up_proj"
    name = f"{layer}.weight"
    halves = Migration({layer: np.full(checkpoint.tensors[name].shape[0], 2, np.float32)})
    found = []
    for migration in (Migration(), halves):
        stream = WeightStream(checkpoint, lambda _: None, migration)
        found.append((np.concatenate(list(stream.blocks(name, 10**9))), stream.fingerprint()))
    (plain, fingerprint), (halved, same) = found
    np.testing.assert_array_equal(halved, plain / 2)
    assert same == fingerprint


@pytest.fixture(scope="module")
def statistics(seen: Path) -> Statistics:
    return Statistics.open(seen)


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
    count = 7 * LAYERS + 6 * VISION_LAYERS + 2
    assert f"{count} linear layers are no integers: " in result.stdout
    warning = rf"warning: {count} of {count} linear layers kept in floats: .* by up to 0\.(\d+) of .* \((\S+)\)"
    said = re.search(warning, result.stderr)
    assert said
    assert int(said[1]) > 0
    assert said[2] in result.stdout
    assert FILE not in {entry.path for entry in Bundle.open(tmp_path / "bundle").manifest.files}


@pytest.mark.parametrize("form", ["w8a8", "w4", "w8"])
def test_bundle_with_factors_computes_the_model(
    tiny_checkpoint: Path, tmp_path: Path, statistics: Statistics, form: QuantizedForm
) -> None:
    pytest.importorskip("torch")
    bundle = exported(tiny_checkpoint, tmp_path, form, statistics, verify=True)
    assert FILE in {entry.path for entry in bundle.manifest.files}
    assert bundle.manifest.quantization is not None
    assert not bundle.manifest.quantization.kept
    moved = Migration.read(bundle.path, bundle.manifest.geometry).sources
    assert {name.startswith(LANGUAGE_LAYERS) for name in moved} == {True, False}


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


@pytest.mark.parametrize(
    ("shown", "said"),
    [({"pictures": False}, "text alone: calibrate with --images"), ({"steps": 1}, "all masks: calibrate with more")],
)
@pytest.mark.parametrize("form", ["w8a8", "w4"])
def test_statistics_that_saw_too_little_move_nothing(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    calibrated: Calibrate,
    tmp_path: Path,
    form: QuantizedForm,
    shown: dict[str, Any],
    said: str,
) -> None:
    """Factors would make what was not seen as much larger as what was seen smaller; ranges harm nothing."""
    options = ("--quantize", form, "--statistics", str(calibrated(tiny_bundle, **shown)), "--no-verify")
    result = CliRunner().invoke(app, ("export", str(tiny_checkpoint), str(tmp_path / "bundle"), *options))
    assert result.exit_code == 0
    assert result.stderr.count("warning: nothing of the language model is searched") == 1
    assert said in result.stderr
    assert ("rounded to nearest, not by GPTQ" in result.stderr) == (form == "w4")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.quantization is not None
    assert bundle.manifest.quantization.rounding == "nearest"
    moved = Migration.read(bundle.path, bundle.manifest.geometry).sources
    assert moved
    assert not any(name.startswith(LANGUAGE_LAYERS) for name in moved)


def test_export_that_fails_warns_too(
    tiny_checkpoint: Path, tiny_bundle: Path, calibrated: Calibrate, tmp_path: Path
) -> None:
    """By statistics of another checkpoint, which is known when all weights were read."""
    seen = Statistics.open(calibrated(tiny_bundle, steps=1))
    statistics = tmp_path / "others.npz"
    Statistics(seen.header.model_copy(update={"checkpoint": "0" * 64}), seen.arrays).write(statistics)
    options = ("--quantize", "w8a8", "--statistics", str(statistics), "--no-verify")
    result = CliRunner().invoke(app, ("export", str(tiny_checkpoint), str(tmp_path / "bundle"), *options))
    assert result.exit_code != 0
    assert "are of the checkpoint 000000000000" in result.stderr
    assert result.stderr.count("warning: nothing of the language model is searched") == 1


def test_statistics_of_another_geometry_are_refused_at_once(
    tiny_checkpoint: Path, tmp_path: Path, statistics: Statistics
) -> None:
    geometry = statistics.header.geometry
    language = geometry.language.model_copy(update={"max_positions": 99})
    header = statistics.header.model_copy(update={"geometry": geometry.model_copy(update={"language": language})})
    with pytest.raises(CalibrationError, match="another geometry"):
        exported(tiny_checkpoint, tmp_path, "w4", Statistics(header, statistics.arrays), verify=False)
    assert not (tmp_path / "bundle").exists()
