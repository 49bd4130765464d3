"""Running a plan: with TensorRT 10.3 to 11.4 and with TensorRT-RTX, on memory that the caller gives.

All that is called is in every one of these versions, or asked for before; a test compares it with
their bindings. A pass has an execution context of its own, whose shapes and addresses never
change, so that it can be captured.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lladav.bundle import Bundle
from lladav.engines.layer_times import LayerTime, time_layers
from lladav.engines.layers import Layer, layers_of
from lladav.engines.library import load_library, log_of
from lladav.engines.plan_file import sole_writer, staged_stream
from lladav.engines.profiles import input_shapes
from lladav.errors import BackendError, EngineError
from lladav.manifest import GraphSpec, TensorSpec
from lladav.records import EngineRecord, Profile, Range, build_command

_REPORT = "run `lladav doctor`; if the machine is in order, report this with the message"


class Placed(Protocol):
    """A tensor in device memory, as `lladav.runtime.gpu.executable.Tensor` is."""

    @property
    def address(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def load_plan(record: EngineRecord, bundle: Bundle, stream: int) -> LoadedEngine:
    """Loads an engine into the memory of the GPU whose context is current.

    The file is mapped and read once, straight from the system's file cache, so that no copy of the
    weights stays on the host.

    Args:
        record: of the engine, which has passed `check_engines`.
        bundle: that it belongs to.
        stream: raw handle of the stream that passes are enqueued on.

    Raises:
        EngineError: the plan is truncated, its library is missing, or the library refuses it.
    """
    record.check_size(bundle.path)
    trt, file = load_library(record.library), bundle.path / record.plan.path
    again = build_command(bundle.path, record.target)
    log = log_of(trt)
    log.messages.clear()
    try:
        runtime = trt.Runtime(log)
    except Exception as error:  # where there is no GPU, TensorRT's factory returns nothing
        raise EngineError(f"{record.library} cannot run here: {log.errors() or error}", cure=_REPORT) from error
    with file.open("rb") as plan:
        with mmap.mmap(plan.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            engine = _deserialize(trt, runtime, contents)
        # The GPU of a board would have to share its memory with them.
        os.posix_fadvise(plan.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if engine is None:
        raise EngineError(
            f"{record.library} {trt.__version__} does not load {file}, built by {record.library_version} for compute "
            f"capability {record.compute_capability}: {log.errors() or 'no reason given'}",
            cure=again,
        )
    return LoadedEngine(trt, engine, record, bundle.manifest.graphs[record.graph], stream, file.with_suffix(".cache"))


def _deserialize(trt: Any, runtime: Any, contents: mmap.mmap) -> Any:
    """The engine, or None with the reason in the log."""
    if hasattr(runtime, "get_engine_validity"):
        validity, _ = runtime.get_engine_validity(contents)
        if validity == trt.EngineValidity.INVALID:
            log_of(trt).log(trt.ILogger.ERROR, "the engine is not valid on this machine")
            return None
    return runtime.deserialize_cuda_engine(contents)


class LoadedEngine:
    """One graph, loaded; an `Executable` of `lladav.runtime.gpu`.

    Args:
        trt: the library's module.
        engine: of the library.
        record: of the plan.
        spec: of the graph.
        stream: that passes are enqueued on.
        compiled: file that keeps what TensorRT-RTX compiles when it meets a size.

    Attributes:
        weights: bytes on the device, at most.
        scratch: bytes of activations that the largest pass needs.
    """

    def __init__(
        self, trt: Any, engine: Any, record: EngineRecord, spec: GraphSpec, stream: int, compiled: Path
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._record = record
        self._spec = spec
        self._stream = stream
        self._compiled = compiled
        self._cache: Any = None
        self._known = b""
        self._bound = self._kept = 0
        self._settings = self._context_settings()
        self.weights = record.plan.bytes
        self.scratch = int(engine.device_memory_size_v2)

    def bind(self, tensors: Mapping[str, Placed], *, profile: str, scratch: int = 0) -> EnginePass:
        """Fixes where a pass reads and writes; runs nothing.

        Args:
            tensors: every input and output of the graph by its name in the manifest.
            profile: name of one of the record's profiles.
            scratch: address of at least `self.scratch` bytes, shared by passes that never run at the same time.

        Raises:
            BackendError: a shape that the engine was not built for, or that the library refuses.
        """
        self._bound += 1
        context = self._context_for(tensors, profile, scratch)
        return EnginePass(
            context,
            self._stream,
            lambda: self._refusal(f"to run {profile}"),
            lambda runs: self._time_layers(tensors, profile, scratch, runs),
        )

    def _time_layers(
        self, tensors: Mapping[str, Placed], profile: str, scratch: int, runs: int
    ) -> tuple[tuple[LayerTime, ...], ...]:
        """See `EnginePass.time_layers`; of a pass that `bind` has bound."""
        context = self._context_for(tensors, profile, scratch)

        def enqueue() -> None:
            if not context.execute_async_v3(self._stream):
                raise self._refusal(f"to run {profile}")

        return time_layers(self._trt, self._engine, context, enqueue, runs)

    def _context_for(self, tensors: Mapping[str, Placed], profile: str, scratch: int) -> Any:
        """An execution context with shapes and addresses; arguments and errors as in `bind`."""
        log = log_of(self._trt)
        log.messages.clear()
        names = [known.name for known in self._record.profiles]
        sizes = self._record.profiles[names.index(profile)]
        for spec in self._spec.inputs:
            self._check_shape(spec, tensors[spec.name].shape, sizes)
        context = self._context(names.index(profile))
        for spec in self._spec.inputs:
            if not context.set_input_shape(spec.name, tensors[spec.name].shape):
                raise self._refusal(f"{spec.name} of shape {tensors[spec.name].shape} in {profile}")
        # Empty tensors are never touched, and still have to have an address.
        anywhere = max(tensor.address for tensor in tensors.values())
        for name, tensor in tensors.items():
            if not context.set_tensor_address(name, tensor.address or anywhere):
                raise self._refusal(f"the address of {name} in {profile}")
        if missing := context.infer_shapes():
            raise self._refusal(f"{profile} without {', '.join(missing)}")
        for spec in self._spec.outputs:
            if (shape := tuple(context.get_tensor_shape(spec.name))) != tensors[spec.name].shape:
                raise self._refusal(f"{spec.name} of shape {tensors[spec.name].shape}, which is {shape} in {profile}")
        context.set_device_memory(scratch, self.scratch)
        return context

    def layers(self) -> tuple[Layer, ...]:
        """What runs in all profiles, at the sizes that they were tuned for.

        Raises:
            BackendError: the library refuses a profile or a size.
        """
        found: list[Layer] = []
        for number, profile in enumerate(self._record.profiles):
            context = self._context(number)
            for spec in self._spec.inputs:
                shape = input_shapes(spec, profile)[Range._fields.index("tuned")]
                if not context.set_input_shape(spec.name, shape):
                    raise self._refusal(f"{spec.name} of shape {shape} in {profile.name}")
            found += layers_of(self._trt, self._engine, context)
        return tuple(found)

    def _context(self, profile: int) -> Any:
        """A new execution context, of one of the record's profiles."""
        name = self._record.profiles[profile].name
        context = self._engine.create_execution_context(self._settings)
        if context is None:
            raise self._refusal(f"to prepare {name}")
        if not context.set_optimization_profile_async(profile, self._stream):
            raise self._refusal(f"the profile {name}")
        return context

    def keep_compiled(self) -> None:
        """Keeps what the library compiled for the passes that ran, for the next process.

        Nothing is done where no pass was bound since the last time. TensorRT compiles nothing
        here. Where the bundle cannot be written, the next process compiles again.
        """
        if self._cache is None or self._bound == self._kept:
            return
        self._kept = self._bound
        contents = bytes(memoryview(self._cache.serialize()))
        if contents != self._known:
            with suppress(EngineError), sole_writer(self._compiled.parent), staged_stream(self._compiled) as file:
                file.write(contents)
                self._known = contents

    def _context_settings(self) -> Any:
        """How contexts are made: their activations are in memory of ours."""
        trt = self._trt
        ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "IRuntimeCache"):
            return ours
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(ours)
        # Compiled for a shape when it is first run, not in the background: a captured pass stays as it is.
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache = settings.create_runtime_cache()
        if self._compiled.is_file():
            # What was compiled by another version or for another GPU is refused, and compiled again.
            self._known = self._compiled.read_bytes()
            self._cache.deserialize(self._known)
        settings.set_runtime_cache(self._cache)
        return settings

    def _check_shape(self, spec: TensorSpec, shape: tuple[int, ...], profile: Profile) -> None:
        fits = len(shape) == len(spec.shape)
        for size, expected in zip(shape, spec.shape, strict=False):
            least, _, most = profile.sizes[expected] if isinstance(expected, str) else (expected, expected, expected)
            fits &= least <= size <= most
        if not fits:
            takes = [
                f"{profile.sizes[size].least} to {profile.sizes[size].most}" if isinstance(size, str) else str(size)
                for size in spec.shape
            ]
            raise BackendError(
                f"{spec.name} of shape {shape} is nothing that {self._record.plan.path} was built for: "
                f"{profile.name} takes ({', '.join(takes)})",
                cure="use sizes that are buckets of the bundle, or export again with others and build",
            )

    def _refusal(self, what: str) -> BackendError:
        reason = log_of(self._trt).errors() or "no reason given"
        return BackendError(
            f"{self._record.library} {self._trt.__version__} refuses {what} of {self._record.plan.path}: {reason}",
            cure=_REPORT,
        )


class EnginePass:
    """A `BoundPass` of `lladav.runtime.gpu`; made by `LoadedEngine.bind`.

    Args:
        context: of the library, with all shapes and addresses.
        stream: that the pass is enqueued on.
        refusal: makes an error of what the library says.
        time_layers: see the method.
    """

    def __init__(
        self,
        context: Any,
        stream: int,
        refusal: Callable[[], BackendError],
        time_layers: Callable[[int], tuple[tuple[LayerTime, ...], ...]],
    ) -> None:
        self._context = context
        self._stream = stream
        self._refusal = refusal
        self._time_layers = time_layers
        # TensorRT's enqueueing can always be captured, with static shapes; TensorRT-RTX says it.
        asks = getattr(context, "is_stream_capturable", None)
        self.capturable = asks is None or bool(asks(stream))

    def enqueue(self) -> None:
        """Puts the pass on the stream.

        Raises:
            BackendError: the library refuses.
        """
        if not self._context.execute_async_v3(self._stream):
            raise self._refusal()

    def time_layers(self, runs: int) -> Sequence[Sequence[LayerTime]]:
        """Runs the pass in a context of its own, and has the library time its layers.

        A captured graph is launched as a whole, so that nothing in it could be timed.

        Args:
            runs: after one that warms up.

        Returns:
            Of each run all layers, in order.

        Raises:
            BackendError: the library refuses.
        """
        return self._time_layers(runs)
