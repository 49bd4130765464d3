"""Linear layers whose weights are integers, as nodes of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from lladav.export.graph_form import INPUT_ZEROS, LinearForm
from lladav.export.quantize import LEVELS, scales_for
from lladav.export.stored_weight import ELEMENT_TYPES

if TYPE_CHECKING:
    from lladav.export.onnx_graph import GraphBuilder

# A row of zeros is divided by it.
_SMALLEST_ROW = 1e-30


class IntegerLinears:
    """Adds products to a graph; layers with one input share what it is rounded to.

    Args:
        b: the graph.
    """

    def __init__(self, b: GraphBuilder) -> None:
        self._b = b
        self._rounded: dict[tuple[str, float], str] = {}
        self._rounded_rows: dict[str, tuple[str, str]] = {}

    def product(
        self,
        x: str,
        source: str,
        shape: tuple[int, int],
        form: LinearForm,
        *,
        name: str,
        shrunk: float = 1.0,
        start: int = 0,
        part: str = "",
    ) -> str:
        """`x @ W` in the compute type; see `GraphBuilder.linear`."""
        b = self._b
        weight = self._weight(source, shape, form, name, start, part)
        if form.input_range is not None:
            return b.op("MatMul", self._in_8_bits(x, form.input_range / shrunk), weight, name=name)
        if not self._rounds_rows(form):
            return b.op("MatMul", x, weight, name=name)
        unit_rows, sizes = self._rows_in_8_bits(x)
        return b.op("Mul", b.op("MatMul", unit_rows, weight, name=name), sizes, name=f"{name}.rows")

    def _rounds_rows(self, form: LinearForm) -> bool:
        return self._b.form.rounds_rows and (form.weights == "int8" or form.widened)

    def _weight(self, source: str, shape: tuple[int, int], form: LinearForm, name: str, start: int, part: str) -> str:
        """A layer's weights `[in, out]` from integers and scales."""
        b, (outputs, inputs), tensor, label = self._b, shape, f"{source}.weight", f"{name}.weight"
        codes = b.weight(tensor, shape, form.weights, transposed=True, start=start, part=part, form=form)
        if form.block is None:
            scales = b.weight(tensor, (outputs,), start=start, part=f"_scale{part}")
            return b.op("DequantizeLinear", codes, scales, axis=1, name=label)
        scales = b.weight(tensor, (outputs, inputs // form.block), transposed=True, part="_scale")
        if not self._rounds_rows(form):
            return b.op("DequantizeLinear", codes, scales, axis=0, block_size=form.block, name=label)
        return b.op("DequantizeLinear", *self._widened(codes, scales, form.block), axis=1, name=label)

    def _widened(self, codes: str, scales: str, block: int) -> tuple[str, str]:
        """4-bit weights as 8-bit ones with a scale per output feature, of constants: made when the graph is loaded."""
        b = self._b
        largest = b.op("ReduceMax", scales, b.constant([0], "int64"), keepdims=0, name="largest_scale")
        wider = b.constant(LEVELS["int4"][0] / -LEVELS["int8"][1], "float32")
        wide_scales = b.op("Mul", largest, wider, name="wide_scales")
        options = {"axis": 0, "block_size": block, "output_dtype": ELEMENT_TYPES["int8"]}
        steps = b.op("Div", wide_scales, scales, name="steps")
        return b.op("QuantizeLinear", b.cast(codes, "float32", "int4"), steps, name="wide", **options), wide_scales

    def _rows_in_8_bits(self, x: str) -> tuple[str, str]:
        """A layer's input with each row divided by its largest magnitude, rounded; and these magnitudes."""
        if x not in self._rounded_rows:
            b = self._b
            largest = b.op("ReduceMax", b.op("Abs", x, name="magnitudes"), b.constant([-1], "int64"), name="largest")
            sizes = b.op("Max", largest, b.constant(_SMALLEST_ROW, "float32"), name="sizes")
            self._rounded_rows[x] = self._in_8_bits(b.op("Div", x, sizes, name="unit_rows"), 1.0), sizes
        return self._rounded_rows[x]

    def _in_8_bits(self, x: str, largest: float) -> str:
        """A layer's input, with a pair of nodes that lets an engine multiply integers."""
        if (x, largest) not in self._rounded:
            b = self._b
            _, highest = LEVELS["int8"]
            step = scales_for(largest / highest, helper.tensor_dtype_to_np_dtype(ELEMENT_TYPES[b.compute]))
            scale = b.constant(step.astype(np.float32), b.compute)
            zero = b.constant(INPUT_ZEROS[b.form.input_codes], b.form.input_codes)
            codes = b.op("QuantizeLinear", x, scale, zero, name="int8")
            self._rounded[x, largest] = b.op("DequantizeLinear", codes, scale, zero, name="rounded")
        return self._rounded[x, largest]
