"""Which calibrations saw enough for a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lladav.export.calibration_gaps import calibration_gap
from lladav.statistics import Statistics
from lladav.statistics_header import Condition


@pytest.fixture(scope="module")
def everything(seen: Path) -> Statistics:
    return Statistics.open(seen)


def only(statistics: Statistics, wanted: Callable[[Condition], bool]) -> Statistics:
    """As if the denoiser had been seen under some conditions alone."""
    record = statistics.header.graphs["denoiser"]
    counted = np.array([wanted(condition) for condition in record.conditions])
    names = [f"{tensor}/histogram" for tensor in record.tensors]
    arrays = {name: statistics.arrays[name] * counted[:, None] for name in names}
    return Statistics(statistics.header, {**statistics.arrays, **arrays})


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (lambda _: True, None),
        (lambda c: c.kind == "refresh" and c.where == "image", None),
        (lambda c: c.where != "image", "text alone"),
        (lambda c: c.mask_ratio == 1, "all masks"),
        (lambda c: c.kind == "step", "text alone"),
    ],
)
def test_pictures_and_later_canvases_are_needed(
    everything: Statistics, wanted: Callable[[Condition], bool], said: str | None
) -> None:
    gap = calibration_gap(only(everything, wanted), everything.header.geometry)
    assert gap is None if said is None else said in str(gap)


def test_model_of_text_alone_needs_no_pictures(everything: Statistics) -> None:
    geometry = everything.header.geometry.model_copy(update={"vision": None})
    assert calibration_gap(only(everything, lambda c: c.where != "image"), geometry) is None


def test_recorded_inputs_may_be_of_anything(everything: Statistics) -> None:
    header = everything.header
    record = header.graphs["denoiser"]
    unknown = record.model_copy(update={"conditions": (Condition(kind="any", where="any"),) * len(record.conditions)})
    graphs = {**header.graphs, "denoiser": unknown}
    statistics = Statistics(header.model_copy(update={"graphs": graphs}), everything.arrays)
    assert calibration_gap(statistics, header.geometry) is None
    pictures = {name: record for name, record in header.graphs.items() if name != "denoiser"}
    seen = Statistics(header.model_copy(update={"graphs": pictures}), everything.arrays)
    assert calibration_gap(seen, header.geometry) is None
