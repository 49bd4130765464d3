"""A small builder for ONNX graphs whose weights live in an external file.

Graphs are written out rather than traced from PyTorch: tracing costs 8 s and 0.85 GB per
layer of the real model and loses the weights' names, a written graph of all layers takes
a second and no weight memory (docs/decisions.md). A graph refers to weights by name, offset
and size; their bytes are streamed later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lladav.export.graph_form import GraphForm, LinearForm
from lladav.export.integer_linears import IntegerLinears
from lladav.export.stored_weight import ELEMENT_TYPES, StoredType, Weight
from lladav.manifest import GraphSpec, TensorSpec, TensorType

# IR 9 is what opset 20 came with, and the newest that TensorRT 10.3 reads.
OPSET, IR_VERSION = 20, 9
# The first with int4.
OPSET_INT4, IR_VERSION_INT4 = 21, 10
# Weights start on pages, so that a runtime may map them instead of copying.
ALIGNMENT = 4096

_CONSTANTS: dict[StoredType, type[np.generic]] = {"int64": np.int64, "int8": np.int8, "uint8": np.uint8}


class GraphBuilder:
    """Collects nodes in order; values are named after the nodes that make them.

    Args:
        name: of the graph and its file.
        form: numbers of the weights of matrix products and of what they multiply.
        weights_of: another graph, whose weights file this one reads instead of having its own.
    """

    def __init__(self, name: str, form: GraphForm, weights_of: GraphBuilder | None = None) -> None:
        self.name = name
        self.form = form
        self.compute = form.compute
        self.weights: list[Weight] = []
        self._lender = weights_of
        self._lent = {weight.name: weight for weight in weights_of.weights} if weights_of else {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[TensorSpec] = []
        self._outputs: list[TensorSpec] = []
        self._scope: list[str] = []
        self._names: dict[str, int] = {}
        self._integers = IntegerLinears(self)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of nodes made inside, so that profiles read like the model."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def _unique(self, name: str) -> str:
        full = "/".join([*self._scope, name])
        count = self._names.get(full, 0)
        self._names[full] = count + 1
        return full if count == 0 else f"{full}_{count}"

    def input(self, name: str, dtype: TensorType, shape: Sequence[int | str]) -> str:
        self._inputs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(shape)))
        return name

    def output(self, value: str, name: str, dtype: TensorType, shape: Sequence[int | str]) -> None:
        """Declares `value` as the graph output `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"output/{name}"))
        self._outputs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(shape)))

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        label = self._unique(name or kind)
        self._nodes.append(helper.make_node(kind, list(inputs), [label], name=label, **attributes))
        return label

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Parts of one size."""
        return self._split([value], parts, axis, num_outputs=parts)

    def split_at(self, value: str, sizes: str, parts: int, axis: int) -> list[str]:
        """Parts whose sizes are the value `sizes`, int64 `[parts]`."""
        return self._split([value, sizes], parts, axis)

    def _split(self, inputs: list[str], parts: int, axis: int, **attributes: Any) -> list[str]:
        label = self._unique("Split")
        outputs = [f"{label}.{i}" for i in range(parts)]
        self._nodes.append(helper.make_node("Split", inputs, outputs, name=label, axis=axis, **attributes))
        return outputs

    def choose(
        self, condition: str, then: Callable[[], str], otherwise: Callable[[], str], dtype: TensorType, *, name: str
    ) -> str:
        """An `If` node: at run time only one of the two is computed.

        Args:
            condition: value of one bool.
            then: adds the nodes for true and returns their result.
            otherwise: likewise for false.
            dtype: of both results.
            name: of the node.
        """
        branches = {"then_branch": self._branch(then, dtype), "else_branch": self._branch(otherwise, dtype)}
        return self.op("If", condition, name=name, **branches)

    def _branch(self, body: Callable[[], str], dtype: TensorType) -> onnx.GraphProto:
        outside, self._nodes = self._nodes, []
        result = body()
        inside, self._nodes = self._nodes, outside
        output = helper.make_tensor_value_info(result, ELEMENT_TYPES[dtype], None)
        return helper.make_graph(inside, self._unique("branch"), [], [output])

    def constant(self, value: float | Sequence[int] | np.ndarray, dtype: StoredType) -> str:
        """A small constant kept inside the graph; equal ones are shared."""
        array = np.asarray(value, dtype=_CONSTANTS.get(dtype, np.float32))
        key = f"const/{dtype}/{array.shape}/{array.tobytes().hex()}" if array.size <= 16 else self._unique("const")
        if key not in self._constants:
            name = f"const.{len(self._constants)}"
            tensor = numpy_helper.from_array(array, name)
            if dtype == "float16":
                tensor = numpy_helper.from_array(array.astype(np.float16), name)
            elif dtype == "bfloat16":
                tensor = helper.make_tensor(name, TensorProto.BFLOAT16, array.shape, array.ravel())
            self._constants[key] = tensor
        return self._constants[key].name

    def cast(self, value: str, dtype: TensorType, since: StoredType) -> str:
        """Casts from `since` to `dtype`; adds nothing where they are equal."""
        return value if dtype == since else self.op("Cast", value, to=ELEMENT_TYPES[dtype])

    def weight(
        self,
        source: str,
        shape: Sequence[int],
        dtype: StoredType | None = None,
        *,
        transposed: bool = False,
        start: int = 0,
        part: str = "",
        form: LinearForm | None = None,
    ) -> str:
        """Refers to rows of the checkpoint's tensor `source`.

        Args:
            source: name in the checkpoint.
            shape: of these rows.
            dtype: as stored; the compute type when None.
            transposed: store `[out, in]` as `[in, out]`.
            start: the first of the rows.
            part: what is added to the name where a tensor is used in parts.
            form: of integers.
        """
        name = f"{source}{part}"
        if self._lender is not None:
            lent = self._lent[name]
            self.weights.append(lent)
            return name if dtype is not None else self.cast(name, self.compute, lent.dtype)
        end = self.weights[-1].offset + self.weights[-1].bytes if self.weights else 0
        stored = tuple(reversed(shape)) if transposed else tuple(shape)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        kind = dtype or self.compute
        self.weights.append(Weight(name, source, stored, kind, transposed, start, start + shape[0], offset, form))
        return name

    def linear(
        self,
        x: str,
        source: str,
        shape: tuple[int, int],
        *,
        name: str,
        bias: bool = False,
        shrunk: float = 1.0,
        start: int = 0,
        part: str = "",
    ) -> str:
        """`x @ W (+ b)` in the compute type.

        Args:
            x: `[..., in]` in the compute type.
            source: name of the layer in the checkpoint.
            shape: `[out, in]` as there.
            name: of the product.
            bias: whether there is one.
            shrunk: how many times smaller `x` is than the layer's input.
            start, part: see `weight`, where `shape` is of some of the layer's rows.
        """
        form = self.form.linears.get(source)
        if form is None:
            weight = self.weight(f"{source}.weight", shape, transposed=True, start=start, part=part)
            y = self.op("MatMul", x, weight, name=name)
        else:
            y = self._integers.product(x, source, shape, form, name=name, shrunk=shrunk, start=start, part=part)
        if bias:
            y = self.op("Add", y, self.weight(f"{source}.bias", shape[:1]), name=f"{name}.bias")
        return y

    @property
    def owns_weights(self) -> bool:
        """Whether it has a weights file of its own."""
        return self._lender is None

    @property
    def weights_file(self) -> str:
        return f"{self.name}.weights" if self._lender is None else self._lender.weights_file

    @property
    def weights_bytes(self) -> int:
        return self.weights[-1].offset + self.weights[-1].bytes if self.weights else 0

    def spec(self) -> GraphSpec:
        return GraphSpec(
            file=f"{self.name}.onnx",
            weights=self.weights_file,
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
        )

    def model(self) -> onnx.ModelProto:
        """The checked ONNX model; its weights are references into `weights_file`."""
        initializers = list(self._constants.values())
        for weight in self.weights:
            tensor = onnx.TensorProto(name=weight.name, dims=weight.shape, data_type=ELEMENT_TYPES[weight.dtype])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", self.weights_file), ("offset", weight.offset), ("length", weight.bytes)):
                tensor.external_data.add(key=key, value=str(value))
            initializers.append(tensor)

        def values(specs: list[TensorSpec]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(s.name, ELEMENT_TYPES[s.dtype], list(s.shape)) for s in specs]

        graph = helper.make_graph(
            self._nodes, self.name, values(self._inputs), values(self._outputs), initializer=initializers
        )
        int4 = any(weight.dtype == "int4" for weight in self.weights)
        opset, ir_version = (OPSET_INT4, IR_VERSION_INT4) if int4 else (OPSET, IR_VERSION)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, producer_name="lladav"
        )

    def write(self, folder: Path) -> None:
        (folder / f"{self.name}.onnx").write_bytes(self.model().SerializeToString())
