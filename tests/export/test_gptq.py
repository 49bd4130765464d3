"""GPTQ: what holds for every weight and every input."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lladav.bundle import Bundle
from lladav.export import ExportConfig, export
from lladav.export.checkpoint import Checkpoint
from lladav.export.coverage import linear_layers
from lladav.export.gptq import Compensation
from lladav.export.graph_form import LinearForm
from lladav.export.migration import MigratedCheckpoint, Migration
from lladav.export.quantize import LEVELS, QuantizedRows, dequantized, round_to_nearest
from lladav.export.stored_integers import StoredIntegers
from lladav.export.verify_integers import compare_integers
from lladav.manifest import LANGUAGE_LAYERS, Quantization

FORM = LinearForm("int4", 8)
BLOCK = 16

seeds = st.integers(0, 2**32 - 1)


def weights(draw: np.random.Generator, rows: int = 24, columns: int = 32) -> np.ndarray:
    sizes = np.exp(draw.standard_normal((rows, 1)))
    return (draw.standard_normal((rows, columns)) * sizes).astype(np.float32)


def inputs(draw: np.random.Generator, rows: int = 200, columns: int = 32) -> np.ndarray:
    """Correlated ones, of sizes that differ by channel."""
    mixed = draw.standard_normal((rows, 4)) @ draw.standard_normal((4, columns))
    sizes = np.exp(draw.standard_normal(columns))
    return ((mixed + 0.5 * draw.standard_normal((rows, columns))) * sizes).astype(np.float32)


def moments(x: np.ndarray, block: int = BLOCK) -> np.ndarray:
    blocks = x.reshape(len(x), -1, block).transpose(1, 0, 2)
    return blocks.transpose(0, 2, 1) @ blocks


def output_error(rows: np.ndarray, found: QuantizedRows, x: np.ndarray) -> float:
    return float(np.linalg.norm(x @ (dequantized(found) - rows).T))


@given(seeds, st.sampled_from((np.float32, np.float16, ml_dtypes.bfloat16)))
@settings(deadline=None, max_examples=20)
def test_every_code_is_next_to_its_weight(seed: int, dtype: type) -> None:
    draw = np.random.default_rng(seed)
    rows = weights(draw)
    found = Compensation.of(moments(inputs(draw))).round(rows, FORM, dtype)
    lowest, highest = LEVELS["int4"]
    assert found.codes.dtype == np.int8
    assert lowest <= found.codes.min() <= found.codes.max() <= highest
    np.testing.assert_array_equal(found.scales, round_to_nearest(rows, FORM, dtype).scales)
    steps = np.repeat(found.scales.astype(np.float32), FORM.block or 1, axis=1)
    assert (np.abs(dequantized(found) - rows) <= steps * (1 + 2.0**-15)).all()


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_outputs_are_nearer_than_with_rounding_to_nearest(seed: int) -> None:
    """Of the inputs that were seen, where these are correlated."""
    draw = np.random.default_rng(seed)
    rows, x = weights(draw), inputs(draw)
    found = Compensation.of(moments(x, 32)).round(rows, FORM, np.float32)
    nearest = round_to_nearest(rows, FORM, np.float32)
    assert output_error(rows, found, x) < output_error(rows, nearest, x)


@given(seeds, st.floats(1e-6, 1e6))
@settings(deadline=None, max_examples=20)
def test_inputs_without_correlation_leave_rounding_to_nearest(seed: int, size: float) -> None:
    draw = np.random.default_rng(seed)
    rows = weights(draw)
    diagonal = size * np.exp(draw.standard_normal((2, BLOCK)))
    found = Compensation.of(np.eye(BLOCK) * diagonal[:, None]).round(rows, FORM, np.float32)
    nearest = round_to_nearest(rows, FORM, np.float32)
    steps = np.repeat(nearest.scales, FORM.block or 1, axis=1)
    half_way = np.abs(np.abs(dequantized(nearest) - rows) / steps - 0.5) < 1e-5
    assert ((found.codes == nearest.codes) | half_way).all()


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_blocks_are_rounded_as_if_by_themselves(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows, seen = weights(draw), moments(inputs(draw))
    together = Compensation.of(seen).round(rows, FORM, np.float32)
    apart = [
        Compensation.of(seen[i : i + 1]).round(rows[:, BLOCK * i : BLOCK * (i + 1)], FORM, np.float32) for i in (0, 1)
    ]
    np.testing.assert_array_equal(together.codes, np.concatenate([part.codes for part in apart], axis=1))


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_whole_moments_without_correlation_of_blocks_are_blocks(seed: int) -> None:
    """But for damping, which is by the mean of a block: so blocks have one here."""
    draw = np.random.default_rng(seed)
    rows, seen = weights(draw), moments(inputs(draw))
    seen = seen / np.einsum("nii->n", seen)[:, None, None]
    whole = np.zeros((1, 2 * BLOCK, 2 * BLOCK), np.float32)
    for i, block in enumerate(seen):
        whole[0, BLOCK * i : BLOCK * (i + 1), BLOCK * i : BLOCK * (i + 1)] = block
    found = Compensation.of(whole).round(rows, FORM, np.float32)
    blocks = Compensation.of(seen.astype(np.float32)).round(rows, FORM, np.float32)
    # Sums of other orders decide where a value is half-way.
    assert np.mean(found.codes != blocks.codes) < 0.01


@given(seeds, st.integers(1, 40))
@settings(deadline=None, max_examples=20)
def test_rows_do_not_see_each_other(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    rows, compensation = weights(draw, 40), Compensation.of(moments(inputs(draw)))
    whole = compensation.round(rows, FORM, np.float32)
    part = compensation.round(rows[:count], FORM, np.float32)
    assert np.mean(part.codes != whole.codes[:count]) < 0.01


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_moved_sizes_are_those_of_inputs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows, x = weights(draw), inputs(draw)
    factors = np.exp2(draw.integers(-3, 4, 32)).astype(np.float32)
    told = Compensation.of(moments(x), factors)
    seen = Compensation.of(moments(x / factors))
    np.testing.assert_array_equal(told.order, seen.order)
    np.testing.assert_allclose(told.carried, seen.carried, atol=1e-3)
    assert np.mean(told.round(rows, FORM, np.float32).codes != seen.round(rows, FORM, np.float32).codes) < 0.02


@pytest.mark.parametrize("unseen", [slice(0, 16), slice(3, 5), slice(0, 32)])
def test_inputs_that_were_always_zero_are_rounded_to_nearest(unseen: slice) -> None:
    draw = np.random.default_rng(0)
    rows, x = weights(draw), inputs(draw)
    x[:, unseen] = 0
    found = Compensation.of(moments(x)).round(rows, FORM, np.float32)
    nearest = round_to_nearest(rows, FORM, np.float32)
    np.testing.assert_array_equal(found.codes[:, unseen], nearest.codes[:, unseen])


def test_rows_of_zeros_stay_zeros() -> None:
    draw = np.random.default_rng(0)
    rows = weights(draw)
    rows[3] = 0
    assert not Compensation.of(moments(inputs(draw))).round(rows, FORM, np.float16).codes[3].any()


@pytest.fixture(scope="module")
def exported(seen: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model in `w4`, with statistics."""
    config = ExportConfig(dtype="fp32", quantize="w4", statistics=seen, verify=False)
    return export(tiny_checkpoint, tmp_path_factory.mktemp("gptq") / "bundle", config)


def migrated(bundle: Bundle, checkpoint: Path) -> Checkpoint:
    """The checkpoint with the values that the bundle's integers are of."""
    return MigratedCheckpoint.of(Checkpoint.open(checkpoint), Migration.read(bundle.path, bundle.manifest.geometry))


def test_statistics_choose_integers_of_4_bits(exported: Bundle, tiny_checkpoint: Path) -> None:
    """A layer that gets 8 bits is rounded to nearest all the same."""
    assert exported.manifest.numbers == "fp32, linear layers in w4 by GPTQ"
    geometry = exported.manifest.geometry
    checkpoint = migrated(exported, tiny_checkpoint)
    integers = StoredIntegers(exported)
    for linear, (_, features) in linear_layers(geometry).items():
        rows = integers.rows(linear)
        exact = checkpoint.read_rows(f"{linear}.weight", 0, len(rows.codes)).astype(np.float32)
        off = np.abs(dequantized(rows) - exact).reshape(*rows.scales.shape, -1) / rows.scales[..., None]
        if linear.startswith(LANGUAGE_LAYERS) and features == 32:
            assert integers.rounding(linear) == "gptq"
            assert 0.5 < off.max() < 1.001
        else:
            assert integers.rounding(linear) == "nearest"
            assert off.max() < 0.501


def test_no_gptq_is_told_of_where_no_layer_has_4_bits(seen: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    kept = ("model.layers.*",)
    config = ExportConfig(dtype="fp32", quantize="w4", statistics=seen, keep_layers=kept, verify=False)
    bundle = export(tiny_checkpoint, tmp_path / "bundle", config)
    assert bundle.manifest.numbers == "fp32, linear layers in w4"


def test_integers_are_held_to_a_step(exported: Bundle, tiny_checkpoint: Path) -> None:
    checkpoint = migrated(exported, tiny_checkpoint)
    found = {row.component: row for row in compare_integers(StoredIntegers(exported), checkpoint)}
    assert 0.5 < (found["denoiser"].max_abs_error or 0) <= (found["denoiser"].tolerance or 0) < 1.001
    assert (found["connector"].tolerance or 0) < 0.501
    assert all(row.passed for row in found.values())
    nearest = exported.manifest.model_copy(
        update={"quantization": Quantization(form="w4", block=128, rounding="nearest")}
    )
    rows = compare_integers(StoredIntegers(Bundle(exported.path, nearest)), checkpoint)
    assert [row.component for row in rows if not row.passed] == ["denoiser"]


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0])
def test_scale_that_is_no_number_is_found(
    exported: Bundle, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    integers, harmed = StoredIntegers(exported), "model.layers.0.mlp.up_proj"
    stored = StoredIntegers.rows

    def rows(self: StoredIntegers, linear: str) -> QuantizedRows:
        codes, scales = stored(self, linear)
        if linear == harmed:
            scales = scales.copy()
            scales[3, 0] = scale
        return QuantizedRows(codes, scales)

    monkeypatch.setattr(StoredIntegers, "rows", rows)
    failed = [row for row in compare_integers(integers, migrated(exported, tiny_checkpoint)) if not row.passed]
    assert [(row.component, row.max_abs_error, row.note) for row in failed] == [("denoiser", np.inf, harmed)]
