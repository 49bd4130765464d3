"""Work that is done again and again: enqueued plainly the first time, then replayed as a captured graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from lladav.errors import BackendError
from lladav.runtime.gpu.device import Device, Graph


class Fallbacks:
    """Why work is launched piece by piece that should have been captured; the first reason is warned of.

    Attributes:
        reasons: each once.
    """

    def __init__(self) -> None:
        self.reasons: tuple[str, ...] = ()

    def add(self, reason: str) -> None:
        if not self.reasons:
            warnings.warn(
                f"a pass could not be captured as a graph and is launched piece by piece: {reason}", stacklevel=2
            )
        if reason not in self.reasons:
            self.reasons += (reason,)


class Replayed:
    """A fixed sequence of work on fixed addresses.

    The first run is the warm-up that libraries need before they can be captured, and a real run at
    the same time. The second captures. Where that fails, all further runs are plain too.

    Args:
        device: that it runs on.
        enqueue: puts the work on the device's stream.
        fallbacks: gets why it could not be captured.
        capturable: False where a library captures by itself, or cannot.
    """

    def __init__(
        self, device: Device, enqueue: Callable[[], None], fallbacks: Fallbacks, *, capturable: bool = True
    ) -> None:
        self._device = device
        self._enqueue = enqueue
        self._capturable = capturable
        self._warm = False
        self._graph: Graph | None = None
        self._fallbacks = fallbacks

    @property
    def warm(self) -> bool:
        """Whether the work has run, and can be captured as part of other work."""
        return self._warm

    def run(self) -> None:
        """Enqueues the work.

        Raises:
            BackendError: a library or the GPU refuses it.
        """
        if self._graph is None and self._warm and self._capturable:
            try:
                self._graph = self._device.capture(self._enqueue)
            except BackendError as error:
                self._capturable = False
                self._fallbacks.add(error.what)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()
            self._warm = True
