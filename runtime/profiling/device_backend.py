"""What a GPU backend tells of itself: memory by category, and time by layer from the profilers of engines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lladav.errors import LladavError
from lladav.runtime.gpu.backend import GpuBackend, GpuTileEncoder
from lladav.runtime.gpu.window import GpuDenoiser
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling.device_memory import device_memory
from lladav.runtime.profiling.layers import PASSES, Node, engine_nodes
from lladav.runtime.profiling.memory import DeviceMemory, nvmap
from lladav.runtime.results import PassKind
from lladav.runtime.window import Size

_KINDS: tuple[PassKind, ...] = ("refresh", "step")


def memory_of_device(pipeline: Pipeline, notes: list[str]) -> DeviceMemory:
    """Of the GPU, so far; `notes` gets what could not be measured."""
    assert isinstance(pipeline.backend, GpuBackend), "there are two kinds of backend"
    return device_memory(pipeline.backend.usage(), nvmap(), notes)


def layers_of_engines(pipeline: Pipeline, size: Size, tiles: int, notes: list[str]) -> Sequence[Node]:
    """Layers of the passes that an answer had, each pass run a few times more; or none, with a note.

    Args:
        pipeline: that has answered.
        size: of the window: sequences, prompt bucket, canvas bucket.
        tiles: crops of a pass of the vision encoder; 0 leaves it out.
        notes: gets why there are none.
    """
    try:
        nodes = _layers(pipeline, size, tiles)
    except LladavError as error:
        notes.append(f"layers were not looked at: {error.what}")
        return ()
    if not nodes:
        notes.append(f"layers were not looked at: {pipeline.backend.name} has no profiler here")
    return nodes


def _layers(pipeline: Pipeline, size: Size, tiles: int) -> list[Node]:
    assert isinstance(pipeline.denoiser, GpuDenoiser), "there are two kinds of backend"
    batch, prompt, canvas = size
    window = pipeline.denoiser.window([prompt] * batch, canvas, canvas)
    window.give_rows(window.canvas_start + np.arange(canvas))
    runs = {kind: window.time_layers(kind, PASSES) for kind in _KINDS}
    nodes = [node for kind, times in runs.items() for node in engine_nodes(kind, times)]
    if tiles:
        encoder = pipeline.backend.tile_encoder()
        assert isinstance(encoder, GpuTileEncoder), "there are two kinds of backend"
        for graph, times in encoder.time_layers(tiles, PASSES).items():
            nodes += engine_nodes(graph, times)
    return nodes
