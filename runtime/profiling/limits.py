"""Every pass of an answer beside its limit on this machine, and beside what was predicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from lladav.costs import Roofline
from lladav.linear_layers import Numbers
from lladav.manifest import Manifest
from lladav.memory_plan import Sizes
from lladav.products import PassName, pass_products
from lladav.runtime.profiling.probe import Probe
from lladav.runtime.profiling.record import MachineRates, PassLimit
from lladav.runtime.profiling.roofline import held_up_by, predicted_ms, roofline
from lladav.runtime.window import Size


class Limits:
    """Limits of the passes of one answer.

    Args:
        manifest: of the bundle.
        probe: of this machine.
        size: of the window: sequences, prompt bucket, canvas bucket.
        crops: of all pictures.
        rows: of logits that a pass computes at most.
    """

    def __init__(self, manifest: Manifest, probe: Probe, size: Size, crops: int, rows: int) -> None:
        self._manifest = manifest
        self._probe = probe
        self._size = size
        self._crops = crops
        self._rows = rows

    @property
    def rates(self) -> MachineRates:
        """That no pass exceeds: of the products that this bundle has, those of the fastest form."""
        numbers = Numbers.of(self._manifest, cpu=True)
        products = pass_products(self._manifest, "refresh", Sizes(*self._size, 0), numbers)
        highest = max(self._probe.highest(form) for form in {product.form for product in products})
        return MachineRates(bytes_s=self._probe.bandwidth, operations_s=highest)

    def of(self, name: str, graph_ms: float, host_ms: float) -> PassLimit:
        """The limit of a pass of that name, and what bounds it.

        Args:
            name: `refresh`, `step`, `vision_encoder` or `connector`; vision is all crops of an answer.
            graph_ms: measured in the graph, less what it waited for a core.
            host_ms: measured beside it.
        """
        kind = cast(PassName, name)
        parts = list(self._rooflines(kind))
        slowest = max(parts, key=lambda part: part.ms)
        ms = sum(part.ms for part in parts)
        least = Roofline(sum(p.bytes for p in parts), sum(p.operations for p in parts), ms, slowest.bound)
        return PassLimit(
            bytes=least.bytes,
            operations=least.operations,
            ms=ms,
            bound=held_up_by(least, graph_ms, host_ms),
            share=ms / graph_ms if graph_ms > 0 else 1.0,
            predicted_ms=self._predicted(kind),
        )

    def _predicted(self, kind: PassName) -> float | None:
        """Of a refresh or step; the passes over pictures have limits alone."""
        if kind not in ("refresh", "step"):
            return None
        return predicted_ms(self._manifest, kind, Sizes(*self._size, 0), self._probe, self._rows)

    def _rooflines(self, kind: PassName) -> Iterator[Roofline]:
        """One per pass: vision takes as many as the buckets of crops make it."""
        rows = self._rows if kind in ("refresh", "step") else None
        for tiles in buckets_of(self._crops, self._manifest.buckets.tiles) if rows is None else (0,):
            yield roofline(self._manifest, kind, Sizes(*self._size, tiles), self._probe, rows)


def buckets_of(crops: int, buckets: tuple[int, ...]) -> Iterator[int]:
    """How crops are shared among passes: the largest bucket that fits, again and again."""
    while crops > 0:
        size = max(bucket for bucket in buckets if bucket <= crops)
        yield size
        crops -= size
