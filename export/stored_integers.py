"""What a quantised bundle's integers stand for, read from its graphs and files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from lladav.bundle import Bundle
from lladav.export.denoiser_graph import input_headroom
from lladav.export.graph_pieces import layer_of, map_weight
from lladav.export.quantize import QuantizedRows
from lladav.manifest import COMPUTE_TYPES, RoundingName

Floats = npt.NDArray[np.float32]


class _Linear(NamedTuple):
    """One layer in integers.

    Attributes:
        graph: whose it is.
        parts: codes and scales; of a head in parts more than one pair.
        input_step: between neighbouring values of its input; None where that is no integer.
    """

    graph: str
    parts: tuple[tuple[onnx.TensorProto, onnx.TensorProto], ...]
    input_step: float | None


class StoredIntegers:
    """The linear layers of a bundle whose weights are integers, by name in the checkpoint."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._linears: dict[str, _Linear] = {}
        for graph in ("denoiser", "vision_encoder", "connector"):
            if graph in bundle.manifest.graphs:
                self._read(graph)

    def _read(self, graph: str) -> None:
        model = onnx.load(str(self._bundle.file(self._bundle.manifest.graphs[graph].file)), load_external_data=False)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        makers = {node.output[0]: node for node in model.graph.node}
        compute = COMPUTE_TYPES[self._bundle.manifest.precision]
        for product in (node for node in model.graph.node if node.op_type == "MatMul"):
            weight = makers.get(product.input[1])
            if weight is None or weight.op_type != "DequantizeLinear":
                continue
            name = layer_of(weight.input[0])
            given, step = makers.get(product.input[0]), None
            if given is not None and given.op_type == "DequantizeLinear":
                scale = numpy_helper.to_array(tensors[given.input[1]]).astype(np.float32)
                step = float(scale) * input_headroom(name, compute)
            before = self._linears[name].parts if name in self._linears else ()
            part = (tensors[weight.input[0]], tensors[weight.input[1]])
            self._linears[name] = _Linear(graph, (*before, part), step)

    def __contains__(self, linear: str) -> bool:
        return linear in self._linears

    def __iter__(self) -> Iterator[str]:
        return iter(self._linears)

    def graph(self, linear: str) -> str:
        """The graph that has the layer."""
        return self._linears[linear].graph

    def rows(self, linear: str, start: int = 0, stop: int | None = None) -> QuantizedRows:
        """Rows of a layer's weights `[out, in]` as codes and scales."""
        codes, scales, first = [], [], 0
        for part in self._linears[linear].parts:
            integers, steps = (map_weight(self._bundle.path, tensor).T for tensor in part)
            chosen = slice(max(start - first, 0), None if stop is None else max(stop - first, 0))
            codes.append(integers[chosen])
            scales.append(steps.reshape(len(integers), -1)[chosen])
            first += len(integers)
        return QuantizedRows(np.concatenate(codes), np.concatenate(scales))

    def rounding(self, linear: str) -> RoundingName:
        """How a layer's integers were chosen."""
        quantization = self._bundle.manifest.quantization
        (codes, _), *_ = self._linears[linear].parts
        four_bits = codes.data_type == onnx.TensorProto.INT4
        return quantization.rounding if quantization is not None and four_bits else "nearest"

    def input_step(self, linear: str) -> float | None:
        """Distance of neighbouring values of a layer's input; None where that is no integer."""
        return self._linears[linear].input_step
