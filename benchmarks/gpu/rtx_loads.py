"""Whether TensorRT-RTX plans load and run on this GPU, in the library's own words.

Its documentation names compute capabilities 7.5, 8.6, 8.9, 12.0 and 12.1. One graph of a bundle, the connector, is
built for each that the library knows, for the GPU that is there, and as the library's default; nothing of our
runtime is between the plan and the library but the memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.finding import CannotRunError, Finding, Table
from benchmarks.gpu.rig import Rig
from lladav.bundle import Bundle
from lladav.engines.library import known_capabilities, load_library, log_of
from lladav.engines.profiles import graph_profiles, input_shapes
from lladav.errors import LladavError
from lladav.runtime.gpu.device import Device
from lladav.runtime.sessions import open_session

GRAPH = "connector"
DEFAULT, CURRENT = "the library's default", "this GPU"


def rtx_loads(rig: Rig, bundle: Bundle) -> Finding:
    """Builds, loads and runs a plan per compute capability."""
    device = rig.device
    try:
        trt = load_library("tensorrt_rtx")
    except LladavError as error:
        raise CannotRunError(str(error)) from error
    answers = {wanted: probe(trt, bundle, wanted, device) for wanted in (DEFAULT, CURRENT, *known_capabilities(trt))}
    title = f"TensorRT-RTX {trt.__version__} on {device.name}, compute capability {device.compute_capability}"
    table = Table(title, ("plan built for", "the library's answer"), tuple(answers.items()))
    return Finding({"version": trt.__version__, "answers": answers}, (table,))


def probe(trt: Any, bundle: Bundle, wanted: str, device: Device) -> str:
    """What becomes of a plan for one compute capability."""
    log = log_of(trt)
    log.messages.clear()
    plan = _built(trt, bundle, wanted)
    if plan is None:
        return f"does not build: {log.errors()}"
    runtime = trt.Runtime(log)
    validity, _ = runtime.get_engine_validity(plan)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return f"does not load ({validity.name}): {log.errors()}"
    return f"{validity.name}, loads; {_run(engine, bundle, device) or log.errors()}"


def _built(trt: Any, bundle: Bundle, wanted: str) -> Any:
    builder = trt.Builder(log_of(trt))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log_of(trt))
    spec = bundle.manifest.graphs[GRAPH]
    if not parser.parse_from_file(str(bundle.file(spec.file))):
        return None
    config = builder.create_builder_config()
    for profile in graph_profiles(bundle.manifest)[GRAPH]:
        shapes = builder.create_optimization_profile()
        for tensor in spec.inputs:
            shapes.set_shape(tensor.name, *input_shapes(tensor, profile))
        config.add_optimization_profile(shapes)
    if wanted != DEFAULT:
        name = "CURRENT" if wanted == CURRENT else f"SM{wanted.replace('.', '')}"
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    return builder.build_serialized_network(network, config)


def _run(engine: Any, bundle: Bundle, device: Device) -> str:
    """One crop through the engine, beside ONNX Runtime on the CPU; empty where the library refuses."""
    spec, vision = bundle.manifest.graphs[GRAPH], bundle.manifest.geometry.vision
    assert vision is not None
    features = np.random.default_rng(0).standard_normal((1, vision.tokens, vision.hidden_size), np.float32)
    (expected,) = open_session(bundle, GRAPH, None).run(None, {spec.inputs[0].name: features})
    source, target = device.allocate(features.nbytes), device.allocate(expected.nbytes)
    context = engine.create_execution_context()
    context.set_input_shape(spec.inputs[0].name, features.shape)
    context.set_tensor_address(spec.inputs[0].name, source)
    context.set_tensor_address(spec.outputs[0].name, target)
    device.upload(source, features)
    found = np.empty_like(expected)
    if not context.execute_async_v3(device.stream):
        return ""
    device.download(found, target)
    device.synchronize()
    device.free(source)
    device.free(target)
    return f"runs; largest difference from ONNX Runtime {np.abs(found - expected).max():.1e}"
