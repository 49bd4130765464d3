"""One graph through a library's builder into a plan.

Types come from the graph alone: networks are strongly typed, which TensorRT 10 does when asked
and TensorRT 11 and TensorRT-RTX always. Weights stay in the file that the graph names; the parser
reads them from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from lladav.engines.integers import GraphIntegers, graph_integers
from lladav.engines.library import builds_ahead, log_of
from lladav.engines.plan_file import HashedStream, staged_stream
from lladav.engines.profiles import input_shapes
from lladav.engines.progress import Phases
from lladav.errors import EngineError
from lladav.manifest import GraphSpec
from lladav.records import Profile

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")


@dataclass(frozen=True)
class Order:
    """What is to be built.

    Attributes:
        name: of the graph.
        graph: its file.
        compute_capability: what to build for, where the library builds ahead of time.
    """

    name: str
    graph: Path
    spec: GraphSpec
    profiles: tuple[Profile, ...]
    compute_capability: str


@dataclass(frozen=True)
class Compiled:
    """What is known of a plan when it is built.

    Attributes:
        activations: bytes by profile, or nothing where the library did not say.
        integers: of the graph.
    """

    activations: tuple[int, ...]
    integers: GraphIntegers


def compile_plan(trt: Any, order: Order, out: HashedStream, timings: Path, advance: Callable[[int], None]) -> Compiled:
    """Builds one engine; an interrupt cancels the builder and is raised when it has stopped.

    Args:
        trt: the library's module.
        order: what to build.
        out: takes the plan.
        timings: the library's timing cache, read if it is there and written if there is one.
        advance: called with the percent done since the last call, from another thread.

    Raises:
        EngineError: the library does not know a node, or cannot build the graph.
    """
    cancelled, phases = Event(), Phases(advance)
    # Python handles an interrupt in its main thread only, which must not be inside the builder then.
    with ThreadPoolExecutor(max_workers=1) as pool:
        work = pool.submit(_build, trt, order, out, timings, _monitor(trt, phases, cancelled))
        try:
            compiled = work.result()
        except BaseException:
            cancelled.set()
            raise
    phases.complete()
    return compiled


def _build(trt: Any, order: Order, out: HashedStream, timings: Path, monitor: Any) -> Compiled:
    log = log_of(trt)
    log.messages.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, order, network, log)
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    # So that the library can say which nodes its layers are made of.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # Else TensorRT-RTX may allocate while a pass runs, which cannot be captured then.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for profile in order.profiles:
        shapes = builder.create_optimization_profile()
        for spec in order.spec.inputs:
            shapes.set_shape(spec.name, *input_shapes(spec, profile))
        if config.add_optimization_profile(shapes) < 0:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} refuses the sizes of {order.graph.name} for {profile.name}: "
                f"{profile.sizes}: {log.errors() or 'no reason given'}",
                cure="export again with other --prompt-buckets and --canvas-buckets",
            )
    cache = None
    if builds_ahead(trt):
        config.num_compute_capabilities = 1
        name = f"SM{order.compute_capability.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    else:
        cache = _timing_cache(config, timings)
    if not _serialize(trt, builder, network, config, out):
        raise EngineError(
            f"{trt.__name__} {trt.__version__} could not build {order.graph.name}: {log.errors() or 'no reason given'}",
            cure="run `lladav doctor`; if the machine is in order, report this with the message",
        )
    if cache is not None:
        with staged_stream(timings) as file:
            file.write(memoryview(cache.serialize()))
    said = tuple(int(found[1]) for _, message in log.messages if (found := _ACTIVATIONS.search(message)))
    return Compiled(said if len(said) == len(order.profiles) else (), graph_integers(network))


def _parse(trt: Any, order: Order, network: Any, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(order.graph)):
        return
    faults = [parser.get_error(i) for i in range(parser.num_errors)]
    nodes = "; ".join(f"node {f.node_name() or '?'} ({f.node_operator() or '?'}): {f.desc()}" for f in faults)
    raise EngineError(
        f"{trt.__name__} {trt.__version__} does not take {order.graph.name}: {nodes or log.errors()}",
        cure="export the checkpoint again with `lladav export CHECKPOINT BUNDLE`, which writes known nodes only",
    )


def _timing_cache(config: Any, file: Path) -> Any:
    """The cache in use, empty where the file is missing, damaged or of another version."""
    blob = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(blob)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _serialize(trt: Any, builder: Any, network: Any, config: Any, out: HashedStream) -> bool:
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            return False
        out.write(memoryview(plan))
        return True

    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # a class of a module that may be absent
        fault: OSError | None = None

        def write(self, data: bytes) -> int:
            # An exception must not unwind through the library.
            try:
                return out.write(data)
            except OSError as error:
                self.fault = error
                return 0

    writer = Writer()
    done = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.fault is not None:
        raise writer.fault
    return bool(done)


def _monitor(trt: Any, phases: Phases, cancelled: Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of a module that may be absent
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
