"""What every loop shares: the canvases of one or several answers, their window, and what is told of each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lladav.errors import OptionError
from lladav.manifest import MASK_DISTANCE, SpecialTokens
from lladav.runtime.canvas import Canvas
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.pacing import PassTimes
from lladav.runtime.presets import Knobs
from lladav.runtime.results import FinishReason, PassKind, StepEvent
from lladav.runtime.template import Template
from lladav.runtime.window import Window, WindowMaker


@dataclass(frozen=True)
class Request:
    """How answers are to be made, with everything in token ids.

    Attributes:
        prompts: `[P, D]` float32 rows of each merged prompt; all are answered side by side.
        knobs: from `presets.resolve`.
        stops: sequences of ids that end the answer, in the order they are looked for.
        suffix: ids pinned behind the canvas.
        template: what the canvas is given as, or None.
    """

    prompts: tuple[np.ndarray, ...]
    schedule: Schedule
    config: GenerationConfig
    knobs: Knobs
    stops: tuple[tuple[int, ...], ...] = ()
    suffix: tuple[int, ...] = ()
    template: Template | None = None


class Loop(ABC):
    """Iterates over passes; each gives one event per canvas, None for those that are finished.

    Args:
        maker: of the window that passes compute.
        table: embeddings of the bundle.
        tokens: of the bundle.
        request: what is asked.
        times: gets how long passes took.

    Attributes:
        canvases: one per prompt.
    """

    def __init__(
        self, maker: WindowMaker, table: EmbeddingTable, tokens: SpecialTokens, request: Request, times: PassTimes
    ) -> None:
        self._request = request
        self._table = table
        self._times = times
        self._selector = request.knobs.make_selector()
        self._scheduled = request.knobs.selector == "fixed"
        self._suppressed = tokens.suppressed + (tokens.mask_aliases if request.knobs.forbid_mask else ())
        self._guided = request.config.cfg_scale > 0
        mask_row = table.gather([tokens.mask])
        self.canvases = [
            Canvas(
                request.schedule,
                tokens,
                vocab_rows=table.rows,
                # A template is filled by its schedule, of which masks inside the prompt would take shares.
                prompt_masks=masks_inside(prompt if request.template is None else prompt[:0], mask_row) - len(prompt),
                stops=request.stops,
                template=request.template,
                adaptive=not self._scheduled,
            )
            for prompt in request.prompts
        ]
        self._window = self._lay_out(maker, mask_row)
        self._window.owner = self
        self._step = 0
        self._out_of_time = False

    def _lay_out(self, maker: WindowMaker, mask_row: np.ndarray) -> Window:
        """Fills the input rows: prompts, and for guidance as many prompts of masks."""
        request, length = self._request, self._request.schedule.gen_length
        prompt_rows = sum(len(canvas.positions) - length for canvas in self.canvases)
        window = maker.window(
            [len(prompt) for prompt in request.prompts] * (2 if self._guided else 1),
            length + len(request.suffix),
            length + prompt_rows,
            cached=request.knobs.refresh_interval != 1 or request.config.deadline_ms is not None,
            padded=request.config.deadline_ms is not None,
        )
        answer = np.concatenate((self.canvases[0].ids, np.array(request.suffix, np.int64)))
        for number, prompt in enumerate(request.prompts):
            window.place_prompt(number, prompt)
            if self._guided:
                window.place_prompt(len(request.prompts) + number, mask_row)
        for sequence in range(window.size[0]):
            window.place(sequence, window.canvas_start + np.arange(len(answer)), answer)
        return window

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[StepEvent | None, ...]]: ...

    def finish_reason(self, number: int = 0) -> FinishReason:
        """Why an answer ended."""
        if self._out_of_time:
            return "deadline"
        return "stop" if self.canvases[number].stop is not None else "length"

    def prompt_tokens(self, number: int = 0) -> int:
        """Positions of a prompt P."""
        return len(self._request.prompts[number])

    def answer_ids(self, number: int = 0) -> tuple[int, ...]:
        """Ids up to the stop, then the suffix."""
        canvas = self.canvases[number]
        return (*canvas.ids[: canvas.stop].tolist(), *self._request.suffix)

    def _claim(self) -> None:
        """Makes sure that the window's buffers are still this loop's.

        Raises:
            OptionError: they serve another answer by now.
        """
        if self._window.owner is not self:
            raise OptionError(
                f"this answer was interrupted by another one of the same pipeline after {self._step} passes",
                cure="finish a stream, or drop it, before asking again; or load a second pipeline",
            )

    def _kind(self, step: int) -> PassKind:
        """What the refresh interval makes of a pass."""
        interval = self._request.knobs.refresh_interval
        return "refresh" if step == 0 or (interval and step % interval == 0) else "step"

    def _event(
        self, canvas: Canvas, kind: PassKind, chosen: np.ndarray, forced: np.ndarray, ms: float, graph_ms: float
    ) -> StepEvent:
        decided = np.concatenate((chosen, forced)) if len(forced) else chosen
        return StepEvent(
            step=self._step,
            kind=kind,
            block=canvas.block,
            positions=tuple(canvas.positions[decided].tolist()),
            tokens=tuple(canvas.tokens[decided].tolist()),
            confidences=tuple(canvas.confidences[decided].tolist()),
            canvas=tuple(canvas.ids.tolist()),
            provisional=canvas.provisional(),
            holes=canvas.settled_holes(),
            masks_left=canvas.masks_left,
            forced=len(forced),
            ms=ms,
            graph_ms=graph_ms,
        )


def masks_inside(prompt: np.ndarray, mask_row: np.ndarray) -> np.ndarray:
    """Positions of a prompt `[P, D]` that hold the mask's embedding `[1, D]`, `[n]` int64."""
    return np.flatnonzero((np.abs(prompt - mask_row) < MASK_DISTANCE).all(axis=1))
