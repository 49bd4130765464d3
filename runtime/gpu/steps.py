"""Denoising steps that the GPU decides alone: pass, evaluation, selection and commit as one captured graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lladav.memory_plan import SLOTS
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Event
from lladav.runtime.gpu.loop_memory import loop_memory
from lladav.runtime.gpu.loop_state import Rules, canvas_dtype, log_dtype
from lladav.runtime.gpu.replay import Replayed
from lladav.runtime.results import PassKind

if TYPE_CHECKING:
    from lladav.runtime.gpu.window import GpuWindow


_COPIES = 4
"""Steps whose records are on the host: it reads one behind."""


@dataclass
class Launched:
    """A step on its way: pinned copies of what it leaves, and points in the stream.

    Attributes:
        log: `[answers]` of `log_dtype`, the step's decisions.
        canvases: `[answers]` of `canvas_dtype`, what is known behind it.
        began: before the step.
        done: behind the copies.
    """

    log: np.ndarray
    canvases: np.ndarray
    began: Event
    done: Event


class StepRunner:
    """Steps over one window, for any number of answers one after the other.

    Args:
        window: of the passes.
        answers: canvases side by side.
        guided: every canvas has a second, unconditional sequence.
        dtype: of the embedding table on the device.
    """

    def __init__(self, window: GpuWindow, answers: int, *, guided: bool, dtype: str) -> None:
        self._window = window
        self._device = window.device
        self._at = window.memory.addresses
        self._guided = guided
        self._dtype = dtype
        capacity = window.size[2]
        self._loop = loop_memory(self._at, capacity, answers)
        self._whole = self._device.pinned((1,), np.int32)
        self._slots = [
            Launched(
                self._device.pinned((answers,), log_dtype(capacity)),
                self._device.pinned((answers,), canvas_dtype(capacity)),
                self._device.event(),
                self._device.event(),
            )
            for _ in range(_COPIES)
        ]
        self._launched = 0
        self._replayed: dict[PassKind, Replayed] = {
            "refresh": Replayed(self._device, self._enqueue_refresh, window.fallbacks, capturable=window.capturable),
            "step": Replayed(self._device, self._enqueue_step, window.fallbacks, capturable=window.capturable),
        }

    def start(self, rules: Rules, mask: int) -> None:
        """Begins an answer; what was launched for an earlier one is waited for."""
        self._device.synchronize()
        loop = self._loop
        self._device.upload(loop.rules, rules.record(self._at["ids"]))
        self._device.upload(self._at["ids"], rules.ids())
        self._device.upload(loop.canvases, rules.canvases(loop.capacity, loop.sequences, mask))
        self._device.upload(loop.whole, self._whole)
        # A canvas that is done writes no log, and must not seem to have written an earlier answer's.
        self._device.clear(loop.log, SLOTS * self._slots[0].log.nbytes)
        self._window.give_rows(self._window.canvas_start + np.arange(loop.capacity))
        self._launched = 0

    def launch(self, kind: PassKind) -> Launched:
        """Enqueues a step and the copies of what it leaves; nothing is waited for.

        The arrays are used again `_COPIES` steps later.
        """
        slot = self._slots[self._launched % _COPIES]
        slot.began.record()
        self._replayed[kind].run()
        self._device.download(slot.log, self._loop.log + self._launched % SLOTS * slot.log.nbytes)
        self._device.download(slot.canvases, self._loop.canvases)
        slot.done.record()
        self._launched += 1
        return slot

    def _enqueue_refresh(self) -> None:
        self._window.enqueue_refresh()
        self._enqueue_decision()

    def _enqueue_step(self) -> None:
        self._window.enqueue_step()
        self._enqueue_decision()

    def _enqueue_decision(self) -> None:
        window, loop, logits = self._window, self._loop, self._at["logits"]
        count = loop.sequences * loop.capacity * window.vocabulary
        if self._guided:
            kernels.guide(self._device, loop, logits, logits + 4 * count, count)
        kernels.evaluate(
            self._device,
            loop,
            logits,
            self._at["rows"],
            loop.capacity,
            window.vocabulary,
            first=window.canvas_start,
        )
        kernels.commit(self._device, loop)
        kernels.write_rows(
            self._device,
            loop,
            self._at["embed_tokens"],
            self._dtype,
            window.width,
            window.canvas_row(0, 0),
            loop.capacity * window.width,
            guided=self._guided,
        )
