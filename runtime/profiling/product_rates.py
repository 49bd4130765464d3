"""How fast this machine multiplies by form and number of rows, in what computes the passes.

A product of few rows waits for its weights, one of many for the cores; where in between, and how well the
two overlap, depends on processor and kernel. So it is measured, on weights that no cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np
import onnxruntime as ort
from pydantic import PositiveFloat, PositiveInt

from lladav.linear_layers import ProductForm
from lladav.products import Product
from lladav.runtime.profiling.product_graph import attention_products, weights_product
from lladav.runtime.sessions import session_options

FORMS: tuple[ProductForm, ...] = get_args(ProductForm)
"""All that bundles have on the CPU."""

INTEGERS: tuple[ProductForm, ...] = ("int8", "int4", "w8a8")
"""Those whose weights are integers."""

ROWS = (1, 8, 32, 128, 512)
"""Of the products that are measured; a rate hardly changes beyond."""

LAYER = (1024, 32768)
"""Inputs and outputs: 134 MB of float32, 17 MB of int4."""

SMALL = ((1024, 1024), (4096, 4096))
"""Layers that integers are fastest on: one that a cache holds, and one of long sums, which few caches hold as int8."""

SMALL_ROWS = 128

ATTENTION = (32, 2048, 128)
"""Heads, keys and size of a head: 34 MB of keys, and of values."""

_FEWEST = 3


class RatePoint(NamedTuple):
    """Operations a second, where products are of so many rows."""

    rows: PositiveInt
    operations: PositiveFloat


Curve = tuple[RatePoint, ...]


def seconds(curve: Curve, product: Product) -> float:
    """That a product takes: between two points of the curve, in a straight line over rows.

    Args:
        curve: of the product's form, by rows.
        product: whose rows may lie beyond the curve, where the nearest rate holds.
    """
    rows = product.rows
    for low, high in pairwise(curve):
        if low.rows <= rows <= high.rows:
            # Seconds of one operation per row: a call's time, as it grows with its rows.
            begin, end = (point.rows / point.operations for point in (low, high))
            call = begin + (end - begin) * (rows - low.rows) / (high.rows - low.rows)
            return product.operations / rows * call
    nearest = curve[0] if rows < curve[0].rows else curve[-1]
    return product.operations / nearest.operations


def measure_products(threads: int, each: float, clock: Callable[[], float]) -> dict[ProductForm, Curve]:
    """The curve of every form.

    Args:
        threads: that take part.
        each: seconds for a point.
        clock: seconds.
    """
    found: dict[ProductForm, Curve] = {}
    for form in FORMS:
        graph = attention_products() if form == "attention" else weights_product(form, *LAYER)
        found[form] = tuple(_curve(_session(graph, threads), form, each, clock))
    return found


def measure_integers(threads: int, each: float, clock: Callable[[], float]) -> dict[ProductForm, float]:
    """Operations a second of every form of integers at best, on layers of several sizes.

    Args:
        threads: that take part.
        each: seconds for a layer.
        clock: seconds.
    """

    def rate(form: ProductForm, inputs: int, outputs: int) -> float:
        session = _session(weights_product(form, inputs, outputs), threads)
        feeds, operations = _layer(SMALL_ROWS, inputs, outputs)
        return operations / shortest(partial(session.run, None, feeds), each, clock)

    return {form: max(rate(form, *layer) for layer in SMALL) for form in INTEGERS}


def _session(graph: bytes, threads: int) -> Any:
    return ort.InferenceSession(graph, session_options(threads), providers=["CPUExecutionProvider"])


def _curve(session: Any, form: ProductForm, each: float, clock: Callable[[], float]) -> Iterator[RatePoint]:
    for rows in ROWS:
        feeds, operations = _attention(rows) if form == "attention" else _layer(rows, *LAYER)
        taken = shortest(partial(session.run, None, feeds), each, clock)
        yield RatePoint(rows, operations / taken)


def _layer(rows: int, inputs: int, outputs: int) -> tuple[dict[str, np.ndarray], int]:
    return {"a": np.ones((rows, inputs), np.float32)}, 2 * rows * inputs * outputs


def _attention(rows: int) -> tuple[dict[str, np.ndarray], int]:
    heads, keys, size = ATTENTION
    past = np.ones((1, heads, keys, size), np.float32)
    return {"q": np.ones((1, heads, rows, size), np.float32), "k": past, "v": past}, 4 * heads * rows * keys * size


def shortest(action: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of as many calls as there is time for, a few at least."""
    times: list[float] = []
    end = clock() + seconds
    while len(times) < _FEWEST or clock() < end:
        began = clock()
        action()
        times.append(clock() - began)
    return min(times)
