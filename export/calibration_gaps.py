"""What a calibration has to have seen before sizes are moved by it."""

from __future__ import annotations

from lladav.geometry import Geometry
from lladav.statistics import Statistics


def calibration_gap(statistics: Statistics, geometry: Geometry) -> str | None:
    """Why the language model's factors must not be searched, nor its weights be rounded by GPTQ, with these statistics.

    A factor makes what was not seen as much larger as what was seen smaller. On the demo checkpoint `w8a8` lost 45 of
    54 points by a search that saw no pictures, and 4 by one that saw canvases of all masks alone (docs/decisions.md).
    What recorded inputs were of is not known, so that they are taken to be of everything.

    Returns:
        The reason and its cure; None if they may.
    """
    record = statistics.header.graphs.get("denoiser")
    if record is None:
        return None
    counts = statistics.rows("denoiser").tolist()
    seen = [condition for condition, rows in zip(record.conditions, counts, strict=True) if rows]
    if geometry.vision is not None and not any(condition.where in ("image", "any", None) for condition in seen):
        return "they are of text alone: calibrate with --images"
    if seen and all(condition.mask_ratio == 1 for condition in seen):
        return "they are of canvases of all masks: calibrate with more --steps"
    return None
