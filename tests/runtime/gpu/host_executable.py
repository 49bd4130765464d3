"""A graph of a bundle on ONNX Runtime's CPU provider, that reads and writes a `HostDevice`'s memory."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from host_device import HostDevice

from lladav.bundle import Bundle
from lladav.runtime.gpu.executable import Tensor
from lladav.runtime.sessions import NUMPY_TYPES


class HostLayerTime(NamedTuple):
    """Implements `lladav.runtime.gpu.executable.LayerTime`."""

    name: str
    nodes: frozenset[str]
    ms: float


class HostExecutable:
    """Implements `lladav.runtime.gpu.executable.Executable`.

    Attributes:
        layers: that a profiler of this library would tell of: name, nodes of the graph, share of the time.
    """

    scratch = 512
    layers: tuple[tuple[str, frozenset[str], float], ...] = (
        ("product", frozenset({"layers.0/mlp/up_proj", "layers.0/mlp/gate_proj"}), 0.75),
        ("fused", frozenset({"layers.0/mlp/Mul", "layers.1/self_attn/rms_norm"}), 0.25),
    )

    def __init__(self, device: HostDevice, bundle: Bundle, graph: str, *, capturable: bool = True) -> None:
        spec = bundle.manifest.graphs[graph]
        self._device = device
        self._capturable = capturable
        self._dtypes = {tensor.name: NUMPY_TYPES[tensor.dtype] for tensor in (*spec.inputs, *spec.outputs)}
        self._inputs = {tensor.name for tensor in spec.inputs}
        path: Path = bundle.file(spec.file)
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.weights = bundle.file(spec.weights).stat().st_size
        self.bound: list[tuple[str, dict[str, Tensor]]] = []

    def bind(self, tensors: Mapping[str, Tensor], *, profile: str, scratch: int = 0) -> HostPass:
        assert tensors.keys() == self._dtypes.keys()
        assert scratch
        self.bound.append((profile, dict(tensors)))
        return HostPass(self, tensors)

    def keep_compiled(self) -> None: ...


class HostPass:
    """Implements `lladav.runtime.gpu.executable.BoundPass`."""

    def __init__(self, graph: HostExecutable, tensors: Mapping[str, Tensor]) -> None:
        self.capturable = graph._capturable
        self._graph = graph
        self._binding = graph._session.io_binding()
        self._empty: list[np.ndarray] = []
        for name, tensor in tensors.items():
            kind = graph._dtypes[name]
            array = self._array(tensor, kind)
            bind = self._binding.bind_input if name in graph._inputs else self._binding.bind_output
            bind(name, "cpu", 0, kind, tensor.shape, array.ctypes.data)

    def _array(self, tensor: Tensor, kind: type) -> np.ndarray:
        if not tensor.address:
            assert 0 in tensor.shape
            self._empty.append(np.zeros(1, kind))
            return self._empty[-1]
        size = int(np.prod(tensor.shape)) * np.dtype(kind).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(tensor.address), kind)

    def time_layers(self, runs: int) -> list[list[HostLayerTime]]:
        """Shares of a run's time."""
        found = []
        for _ in range(runs):
            began = perf_counter()
            self.enqueue()
            self._graph._device.synchronize()
            ms = (perf_counter() - began) * 1e3
            found.append([HostLayerTime(name, nodes, ms * share) for name, nodes, share in self._graph.layers])
        return found

    def enqueue(self) -> None:
        self._graph._device._enqueue(lambda: self._graph._session.run_with_iobinding(self._binding))
