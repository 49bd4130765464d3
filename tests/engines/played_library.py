"""TensorRT as far as running goes, played: it remembers what it was asked, and refuses what it is told to refuse."""

from __future__ import annotations

import json
import mmap
from types import SimpleNamespace
from typing import Any

SCRATCH = 1 << 20
"""Bytes of device memory that a context asks for."""


class Context:
    """An execution context; `refusing` names the call that fails."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.profiler: Any = None
        self.calls: list[tuple[Any, ...]] = []
        library.contexts.append(self)

    def _does(self, *call: Any) -> bool:
        self.calls.append(call)
        return call[0] != self.library.refusing

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return self._does("set_optimization_profile_async", index, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self._does("set_input_shape", name, shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        return self._does("set_tensor_address", name, address)

    def infer_shapes(self) -> list[str]:
        return ["rows"] if self.library.refusing == "infer_shapes" else []

    def get_tensor_shape(self, name: str) -> list[int]:
        return [0] if self.library.refusing == "get_tensor_shape" else list(self.library.outputs[name])

    def set_device_memory(self, address: int, size: int) -> None:
        self._does("set_device_memory", address, size)

    def execute_async_v3(self, stream: int) -> bool:
        if self.profiler is not None:
            for number, layer in enumerate(self.library.layers, start=1):
                self.profiler.report_layer_time(layer, number / 2)
        return self._does("execute_async_v3", stream)


class CapturableContext(Context):
    def is_stream_capturable(self, stream: int) -> bool:
        return self._does("is_stream_capturable", stream)


class Cache:
    """A runtime cache that knows one more kernel after every run."""

    def __init__(self) -> None:
        self.contents = b""

    def deserialize(self, contents: bytes) -> bool:
        self.contents = contents
        return True

    def serialize(self) -> bytes:
        return self.contents + b"kernel "


class Library:
    """TensorRT 10.3, as far as running goes; with `rtx`, TensorRT-RTX.

    Attributes:
        refusing: name of the call that fails.
        outputs: shapes that the engine computes.
        layers: of the engine, each with the nodes of the graph that it computes.
        read: the plan that was loaded.
    """

    __version__ = "10.3.0"
    EngineValidity = SimpleNamespace(VALID=0, INVALID=2)
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    LayerInformationFormat = SimpleNamespace(JSON="json")

    class ILogger:
        ERROR, INFO = 1, 3

    class IProfiler: ...

    def __init__(self, *, rtx: bool = False) -> None:
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.refusing = ""
        self.contexts: list[Context] = []
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.layers: dict[str, list[str]] = {}
        self.read = b""
        self.settings: Any = None
        self._rtx = rtx
        if rtx:
            self.IRuntimeCache = Cache

    def Runtime(self, log: Any) -> Any:  # noqa: N802 - the library's name
        if self.refusing == "Runtime":
            raise TypeError("factory function returned nullptr")

        def deserialize(contents: mmap.mmap) -> Any:
            self.read = contents[:]
            if self.refusing == "deserialize_cuda_engine":
                log.log(Library.ILogger.ERROR, "Serialization assertion failed")
                return None
            return SimpleNamespace(
                device_memory_size_v2=SCRATCH,
                create_execution_context=self._context,
                create_engine_inspector=lambda: SimpleNamespace(get_engine_information=self._information),
                create_runtime_config=self._config,
            )

        runtime = SimpleNamespace(deserialize_cuda_engine=deserialize)
        if self._rtx:
            invalid = self.refusing == "get_engine_validity"
            runtime.get_engine_validity = lambda _: (Library.EngineValidity.INVALID if invalid else 0, 0)
        return runtime

    def _context(self, settings: Any) -> Context | None:
        self.settings = settings
        if self.refusing == "create_execution_context":
            return None
        return CapturableContext(self) if self._rtx else Context(self)

    def _information(self, _: str) -> str:
        layers = [
            {"Name": name, "LayerType": "kgen", "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)}
            for name, nodes in self.layers.items()
        ]
        return json.dumps({"Layers": layers})

    def _config(self) -> Any:
        config = SimpleNamespace(create_runtime_cache=Cache)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config
