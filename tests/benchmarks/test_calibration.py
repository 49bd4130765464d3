"""What a calibration misses that saw less, counted on statistics that are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration import curves, missed
from lladav.calib.collector import Collector
from lladav.calib.passes import CONDITIONS
from lladav.statistics import Statistics
from lladav.statistics_header import Condition, GraphRecord, Header

LAYERS = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head")
FIRST, LAST = (Condition(kind="refresh", where="canvas", mask_ratio=ratio) for ratio in (1.0, 0.05))


@pytest.fixture
def statistics() -> Statistics:
    """Inputs of 1 in the first pass; in the last one, of 4 in one channel of a down projection."""
    record = GraphRecord(conditions=CONDITIONS, linears={name: name for name in LAYERS})
    header = Header.model_construct(graphs={"denoiser": record})
    found = Statistics.empty(header, dict.fromkeys(LAYERS, 2))
    collector = Collector({"denoiser": CONDITIONS}, found.arrays)
    for name in LAYERS:
        collector.counting("denoiser", [FIRST])(name, np.ones((1, 2), np.float32))
        last = np.array([[1, 4 if name == LAYERS[1] else 1]], np.float32)
        collector.counting("denoiser", [LAST])(name, last)
    return found


def test_the_worst_layer_is_named(statistics: Statistics) -> None:
    found = missed(statistics, statistics, lambda condition: condition == FIRST)
    assert (found.largest, found.where, found.median, found.channels) == (4, LAYERS[1], 1, 0)
    assert missed(statistics, statistics).largest == 1


def test_curves_are_relative_to_all_conditions(statistics: Statistics) -> None:
    for condition in CONDITIONS:
        if condition.where == "canvas" and condition not in (FIRST, LAST):
            for name in LAYERS:
                Collector({"denoiser": CONDITIONS}, statistics.arrays).counting("denoiser", [condition])(
                    name, np.ones((1, 2), np.float32)
                )
    found = curves(statistics, "down")
    assert list(found) == ["canvas, refresh", "canvas, step"]
    assert found["canvas, refresh"][0] == pytest.approx([1, 1 / 4], rel=0.13)
    assert found["canvas, refresh"][-1] == [1, 1]
