"""Rates of a machine that is not there."""

from __future__ import annotations

from lladav.runtime.profiling.probe import Probe
from lladav.runtime.profiling.product_rates import FORMS, INTEGERS, RatePoint


def even_rates(bandwidth: float = 1e9, operations: float = 1e10, threads: int = 1) -> Probe:
    """Products of every form and of any rows are equally fast."""
    products = {form: (RatePoint(1, operations), RatePoint(64, operations)) for form in FORMS}
    return Probe(
        processor="a processor",
        threads=threads,
        bandwidth=bandwidth,
        operations=operations,
        integers=dict.fromkeys(INTEGERS, operations),
        products=products,
    )
