"""What a GPU backend tells of itself: time by layer, from the profilers of engines."""

from __future__ import annotations

import numpy as np

from lladav.runtime.gpu.backend import GpuTileEncoder
from lladav.runtime.gpu.window import GpuDenoiser
from lladav.runtime.profiling.layers import PASSES, Node, engine_nodes
from lladav.runtime.results import PassKind
from lladav.runtime.window import Size

_KINDS: tuple[PassKind, ...] = ("refresh", "step")


def device_layers(denoiser: GpuDenoiser, encoder: GpuTileEncoder | None, size: Size, tiles: int) -> list[Node]:
    """Layers of the passes that an answer had, each pass run a few times more; none where nothing times them.

    Args:
        denoiser: that has answered.
        encoder: of pictures, if the answer had any.
        size: of the window: sequences, prompt bucket, canvas bucket.
        tiles: crops of a pass of the encoder.

    Raises:
        BackendError: the library refuses.
    """
    batch, prompt, canvas = size
    window = denoiser.window([prompt] * batch, canvas, canvas)
    window.give_rows(window.canvas_start + np.arange(canvas))
    runs = {kind: window.time_layers(kind, PASSES) for kind in _KINDS}
    nodes = [node for kind, times in runs.items() for node in engine_nodes(kind, times)]
    if encoder is not None:
        for graph, times in encoder.time_layers(tiles, PASSES).items():
            nodes += engine_nodes(graph, times)
    return nodes
