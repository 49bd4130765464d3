"""Keys and values that a graph of the denoiser takes of an earlier pass, and those that it returns."""

from __future__ import annotations

from collections.abc import Callable

from lladav.export.attention_graph import Kept, KeyValues, Past
from lladav.export.onnx_graph import GraphBuilder
from lladav.geometry import LanguageGeometry
from lladav.manifest import TensorType
from lladav.prompt_kv import PAST, PRESENT, kept_arrays

LARGEST_CODE = 127
# A vector of zeros has to be divided by something.
LEAST_SCALE = 1e-12


class PromptKVTensors:
    """Inputs and outputs of one graph, as floats or, where its form says so, as int8 with scales.

    Args:
        b: the graph, which gets the inputs.
        g: sizes.
        floats: type of keys and values inside the graph.
    """

    def __init__(self, b: GraphBuilder, g: LanguageGeometry, floats: TensorType) -> None:
        self._b = b
        self._floats = floats
        self._arrays = tuple(kept_arrays(g, floats, b.form.prompt_kv))
        self._past = {
            array.name: b.input(f"{PAST}{array.name}", array.dtype, ("batch", array.heads, "past", array.width))
            for array in self._arrays
        }
        self._present: dict[str, str] = {}

    def past(self, layer: int) -> Past:
        """What a layer's attention reads beside its window."""

        def kept(part: str) -> Kept:
            return Kept(self._past[f"{layer}.{part}"], self._past.get(f"{layer}.{part}_scale"))

        return Past(kept("key"), kept("value"))

    def keep(self, layer: int, window: KeyValues, chosen: Callable[[str], str]) -> None:
        """Returns a layer's keys and values.

        Args:
            layer: its number.
            window: all of them.
            chosen: reduces either to the positions that are wanted.
        """
        for part, vectors in window._asdict().items():
            kept = Kept(chosen(vectors)) if self._b.form.prompt_kv is None else self._rounded(chosen(vectors))
            self._present[f"{layer}.{part}"] = kept.values
            if kept.scale is not None:
                self._present[f"{layer}.{part}_scale"] = kept.scale

    def declare_outputs(self, positions: str) -> None:
        """Makes what was kept outputs of the graph.

        Args:
            positions: what their number is called in shapes.
        """
        for array in self._arrays:
            shape = ("batch", array.heads, positions, array.width)
            self._b.output(self._present[array.name], f"{PRESENT}{array.name}", array.dtype, shape)

    def _rounded(self, vectors: str) -> Kept:
        """Of every vector, codes from -127 to 127 and what 1 stands for; there may be no vector."""
        b = self._b
        vectors = b.cast(vectors, "float32", self._floats)
        largest = b.op("ReduceMax", b.op("Abs", vectors), b.constant([3], "int64"), keepdims=1, name="largest")
        step = b.op("Mul", largest, b.constant(1 / LARGEST_CODE, "float32"))
        scale = b.op("Max", step, b.constant(LEAST_SCALE, "float32"), name="scale")
        one, zero = b.constant(1.0, "float32"), b.constant(0, "int8")
        return Kept(b.op("QuantizeLinear", b.op("Div", vectors, scale), one, zero, name="codes"), scale)
