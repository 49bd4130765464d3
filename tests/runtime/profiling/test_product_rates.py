"""Products as the probe multiplies them, and what is read from its curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.linear_layers import ProductForm
from lladav.products import Product
from lladav.runtime.profiling.product_graph import attention_products, plain_product, weights_product
from lladav.runtime.profiling.product_rates import FORMS, RatePoint, seconds
from lladav.runtime.sessions import session_options

CURVE = (RatePoint(1, 1e9), RatePoint(8, 4e9), RatePoint(64, 8e9))


def run(text: bytes, **values: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(onnx.load_from_string(text), full_check=True)
    session = ort.InferenceSession(text, session_options(1), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, values)[0])


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_plain_product() -> None:
    a, b = drawn(2, 300), drawn(300, 5)
    np.testing.assert_allclose(run(plain_product(), a=a, b=b), a @ b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "attention"])
def test_products_by_weights(form: ProductForm) -> None:
    """All weights are 1, and integers lose nothing of small ones."""
    a = np.random.default_rng(0).integers(-3, 4, (5, 256)).astype(np.float32)
    found = run(weights_product(form, 256, 384), a=a)
    np.testing.assert_allclose(found, np.repeat(a.sum(1, keepdims=True), 384, axis=1), rtol=0.02, atol=1.0)


def test_products_of_attention() -> None:
    q, k, v = drawn(1, 2, 3, 16), drawn(1, 2, 7, 16), drawn(1, 2, 7, 16)
    np.testing.assert_allclose(
        run(attention_products(), q=q, k=k, v=v), q @ k.transpose(0, 1, 3, 2) @ v, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("form", "operators"),
    [
        *(("float", ["MatMul"]), ("int8", ["MatMulNBits"]), ("int4", ["MatMulNBits"])),
        ("w8a8", ["QuantizeLinear", "MatMulIntegerToFloat"]),
    ],
)
def test_the_library_multiplies_as_in_bundles(form: ProductForm, operators: list[str], tmp_path: Path) -> None:
    options = session_options(1)
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    ort.InferenceSession(weights_product(form, 256, 384), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    assert [node.op_type for node in nodes] == operators


@pytest.mark.parametrize(
    ("rows", "rate"),
    # Between 8 rows in 2e-9 s per column and 64 in 8e-9, 36 take 5e-9.
    [(1, 1e9), (8, 4e9), (64, 8e9), (640, 8e9), (36, 36 / 5e-9)],
)
def test_rates_between_points(rows: int, rate: float) -> None:
    assert seconds(CURVE, Product("float", rows, 1000 * rows)) == pytest.approx(1000 * rows / rate)


@given(rows=st.integers(1, 200), operations=st.integers(1, 10**12))
def test_more_rows_take_longer_and_are_faster(rows: int, operations: int) -> None:
    one, more = (seconds(CURVE, Product("float", n, operations * n)) for n in (rows, rows + 1))
    assert one < more
    assert more / (rows + 1) <= one / rows * (1 + 1e-9)
