"""The head in parts: the same logits, from products that every target builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from benchmarks.make_full_size import real_geometry
from lladav.bundle import Bundle
from lladav.export.checkpoint import Checkpoint
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.export.graph_form import LinearForm, head_parts
from lladav.export.quantize import round_to_nearest
from lladav.export.stored_integers import StoredIntegers
from lladav.runtime.sessions import open_session

ROWS = 292


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("head")
    configs = {n: ExportConfig(dtype="fp32", head_parts=n, verify=False) for n in (1, 3)}
    return [export(tiny_checkpoint, folder / str(n), config) for n, config in configs.items()]


def model(bundle: Bundle, graph: str) -> onnx.ModelProto:
    return onnx.load(str(bundle.file(f"{graph}.onnx")), load_external_data=False)


def head(bundle: Bundle, graph: str) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model(bundle, graph).graph.initializer if t.name.startswith("lm_head")}


@pytest.mark.parametrize("graph", ["denoiser", "denoiser_cpu"])
def test_logits_are_the_same_to_the_bit(bundles: list[Bundle], graph: str) -> None:
    logits = []
    for bundle in bundles:
        session = open_session(bundle, graph, 1)
        feeds = {
            "inputs_embeds": np.random.default_rng(0).normal(0, 1, (2, 9, 32)).astype(np.float32),
            "position_ids": np.tile(np.arange(9), (2, 1)),
            "attention_bias": np.zeros((2, 1, 1, 9), np.float32),
            "rows": np.array([8, 2]),
            **({"kept": np.arange(0)} if graph == "denoiser" else {"keep": np.array([0])}),
        }
        feeds |= {
            value.name: np.zeros((2, 4, 0, 8), np.float32)
            for value in session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        logits += session.run(["logits"], feeds)
    assert logits[0].shape == (2, 2, ROWS)
    np.testing.assert_array_equal(*logits)


def test_parts_begin_at_multiples_of_64(bundles: list[Bundle]) -> None:
    whole, split = bundles
    assert [bundle.manifest.head_parts for bundle in bundles] == [1, 3]
    assert head(whole, "denoiser") == {"lm_head.weight": (32, ROWS)}
    expected = {"lm_head.weight.0": (32, 128), "lm_head.weight.1": (32, 128), "lm_head.weight.2": (32, ROWS - 256)}
    assert head(split, "denoiser") == head(split, "denoiser_cpu") == expected
    assert whole.manifest.checkpoint == split.manifest.checkpoint


def test_split_export_passes_verification(bundles: list[Bundle], tiny_checkpoint: Path) -> None:
    pytest.importorskip("torch")
    from lladav.export.verify import verify

    assert verify(bundles[1].path, tiny_checkpoint).passed


@pytest.mark.parametrize("parts", [1, 3])
def test_head_in_8_bits(tiny_checkpoint: Path, tmp_path: Path, parts: int) -> None:
    """Its parts hold the nearest integers of the checkpoint's rows, and graphs compute with them."""
    pytest.importorskip("torch")
    from lladav.export.verify import verify

    config = ExportConfig(dtype="fp32", quantize="w8", quantize_head=True, head_parts=parts, verify=False)
    bundle = export(tiny_checkpoint, tmp_path / "bundle", config)
    assert bundle.manifest.numbers == "fp32, linear layers in w8, head in int8"
    rows = StoredIntegers(bundle).rows("lm_head")
    weights = Checkpoint.open(tiny_checkpoint).read_rows("lm_head.weight", 0, ROWS)
    np.testing.assert_array_equal(rows.codes, round_to_nearest(weights, LinearForm("int8"), np.float32).codes)
    some = StoredIntegers(bundle).rows("lm_head", 100, 200)
    np.testing.assert_array_equal(some.codes, rows.codes[100:200])
    np.testing.assert_array_equal(some.scales, rows.scales[100:200])
    codes = [t for t in model(bundle, "denoiser").graph.initializer if t.name.startswith("lm_head.weight")]
    assert sum(np.prod(t.dims) for t in codes if t.data_type == TensorProto.INT8) == weights.size
    report = verify(bundle.path, tiny_checkpoint)
    assert report.passed
    (layer,) = (row for row in report.rows if row.what == "worst layer by itself" and row.component == "denoiser")
    assert layer.tolerance is not None
    assert layer.tolerance < 1e-3


def test_real_head_is_split_by_itself() -> None:
    real = real_geometry().language
    assert head_parts(real, width=2) == 8
    assert head_parts(real, width=2, quantized=True) == 16
    assert head_parts(real.model_copy(update={"vocab_rows": 2291, "hidden_size": 256}), width=4) == 1
