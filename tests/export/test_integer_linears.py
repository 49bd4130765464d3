"""Products of integers in the CPU's graph: rows that are rounded by themselves, and weights of 4 bits made wider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.export.graph_form import GraphForm, LinearForm
from lladav.export.onnx_graph import GraphBuilder
from lladav.export.quantize import QuantizedRows, dequantized, packed, round_to_nearest, scales_for
from lladav.runtime.sessions import session_options

Floats = npt.NDArray[np.float32]

NAME, OUTPUTS, INPUTS = "layer", 24, 256
FORMS = {"int8": LinearForm("int8"), "int4": LinearForm("int4", 128, widened=True)}
WEIGHTS = np.random.default_rng(0).normal(0, 1, (OUTPUTS, INPUTS)).astype(np.float32) * np.geomspace(1, 30, INPUTS)


class Layer:
    """One linear layer in the form for ONNX Runtime on the CPU.

    Attributes:
        rows: integers and scales of its weights.
    """

    def __init__(self, form: LinearForm, folder: Path) -> None:
        self.rows: QuantizedRows = round_to_nearest(WEIGHTS.astype(np.float32), form, np.float32)
        b = GraphBuilder("graph", GraphForm("float32", linears={NAME: form}, input_codes="uint8", rounds_rows=True))
        x = b.input("x", "float32", ("rows", INPUTS))
        b.output(b.linear(x, NAME, (OUTPUTS, INPUTS), name="product"), "y", "float32", ("rows", OUTPUTS))
        codes, scales = b.weights
        stored = np.ascontiguousarray(self.rows.codes.T)
        data = bytearray(b.weights_bytes)
        for weight, array in ((codes, packed(stored) if form.weights == "int4" else stored), (scales, self.steps())):
            data[weight.offset : weight.offset + weight.bytes] = array.tobytes()
        (folder / b.weights_file).write_bytes(data)
        b.write(folder)
        self._session = ort.InferenceSession(
            str(folder / "graph.onnx"), session_options(threads=1), providers=["CPUExecutionProvider"]
        )

    def steps(self) -> Floats:
        """Scales as they lie in the file."""
        return np.ascontiguousarray(self.rows.scales.T.astype(np.float32))

    def __call__(self, x: Floats) -> Floats:
        (y,) = self._session.run(None, {"x": x})
        return np.asarray(y)


@pytest.fixture(scope="module", params=FORMS)
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Layer:
    return Layer(FORMS[request.param], tmp_path_factory.mktemp(request.param))


def used_weights(layer: Layer) -> Floats:
    """`[out, in]`: rows with a single 1 are exact in 8 bits."""
    return layer(np.eye(INPUTS, dtype=np.float32)).T


def test_wider_weights_are_half_a_step_from_those_of_4_bits(tmp_path: Path) -> None:
    layer = Layer(FORMS["int4"], tmp_path)
    steps = layer.rows.scales.max(axis=1, keepdims=True).astype(np.float32) * 8 / 127
    off = np.abs(used_weights(layer) - dequantized(layer.rows)) / steps
    assert 0.4 < off.max() < 0.5 + 1e-3


def test_weights_of_8_bits_are_used_as_they_are(tmp_path: Path) -> None:
    layer = Layer(FORMS["int8"], tmp_path)
    np.testing.assert_allclose(used_weights(layer), dequantized(layer.rows), rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-6, 1e6))
def test_rows_are_rounded_to_127ths_of_their_largest(layer: Layer, seed: int, size: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((3, INPUTS)) * size).astype(np.float32)
    largest = np.abs(x).max(axis=1, keepdims=True)
    rounded = np.rint(x / largest / scales_for(1 / 127, np.float32)) * (largest / 127)
    expected = rounded.astype(np.float64) @ used_weights(layer).T
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_a_row_does_not_depend_on_others(layer: Layer) -> None:
    x = np.random.default_rng(1).standard_normal((5, INPUTS)).astype(np.float32)
    alone = np.concatenate([layer(row[None]) for row in x])
    huge = x * np.array([[1], [1e6], [1], [0], [1]], np.float32)
    np.testing.assert_array_equal(layer(x), alone)
    np.testing.assert_array_equal(layer(huge)[[0, 2, 4]], alone[[0, 2, 4]])
    np.testing.assert_array_equal(layer(huge)[3], 0)
