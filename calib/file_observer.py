"""Runs graphs on inputs that were saved by this or another tool, with the activations on view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.calib.collector import Collector
from lladav.calib.graph_inputs import graph_of, load_inputs
from lladav.calib.observed_graph import ObservedGraph
from lladav.runtime.sessions import PADDED
from lladav.statistics_header import Condition

Array = npt.NDArray[Any]

_CROP = Condition(kind="any")
_REFRESH, _STEP = (Condition(kind=kind, where="any") for kind in ("refresh", "step"))


class FileObserver:
    """See `calibrate.Observer`. Of a window nothing is known but which positions are padding.

    Args:
        bundle: an open bundle.
        files: one batch each.

    Raises:
        CalibrationError: a file that is not for a graph of the bundle.
    """

    def __init__(self, bundle: Bundle, files: Sequence[Path]) -> None:
        self._bundle, self._files = bundle, files
        names = sorted({graph_of(bundle, file) for file in files})
        self.passes = 1
        self.conditions: dict[str, tuple[Condition, ...]] = {
            name: (_REFRESH, _STEP) if name == "denoiser" else (_CROP,) for name in names
        }
        self.graphs = {name: ObservedGraph(bundle, name) for name in names}

    def observe(self, number: int, collector: Collector, advance: Callable[[int], None]) -> None:
        """Counts one file: crops one by one, a window of the denoiser as it is."""
        graph, inputs = load_inputs(self._bundle, self._files[number])
        if graph == "denoiser":
            self._observe_window(inputs, collector)
        else:
            self._observe_crops(graph, inputs, collector)
        advance(1)

    def _observe_crops(self, graph: str, inputs: dict[str, Array], collector: Collector) -> None:
        (name, crops), *_ = inputs.items()
        vision = self._bundle.manifest.geometry.vision
        assert vision is not None
        count = collector.counting(graph, [_CROP] * vision.tokens)
        for i in range(len(crops)):
            self.graphs[graph].run({name: crops[i : i + 1]}, count)

    def _observe_window(self, inputs: dict[str, Array], collector: Collector) -> None:
        # In the window's order, so that whichever rows of it a layer has, their padding is known.
        rows = inputs["rows"] = np.sort(inputs["rows"])
        bias = inputs["attention_bias"]
        window = inputs["inputs_embeds"].shape[1]
        past = bias.shape[-1] - window
        real = bias[:, 0, 0, past:] > PADDED / 2
        condition = _STEP if past else _REFRESH
        count = collector.counting("denoiser", *([condition] * int(seen.sum()) for seen in (real, real[:, rows])))

        def observe(tensor: str, values: npt.NDArray[np.float32]) -> None:
            count(tensor, values[real if values.shape[1] == window else real[:, rows]])

        self.graphs["denoiser"].run(inputs, observe)
