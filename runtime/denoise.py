"""The denoising loop: masks of a canvas are filled over several passes of the denoiser.

The procedure is the authors' `generate_with_embeds` (`modeling_llada.py`), quirks included;
each step evaluates only rows that may be committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from lladav.manifest import MASK_DISTANCE, SpecialTokens
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.results import FinishReason, PassKind, StepEvent
from lladav.runtime.sampling import Sampler, guide
from lladav.runtime.stops import StopScanner


@dataclass(frozen=True)
class Request:
    """One answer to be made, with everything in token ids.

    Attributes:
        prompt: `[P, D]` float32 rows of the merged prompt.
        stops: sequences of ids that end the answer, in the order they are looked for.
        suffix: ids pinned behind the canvas.
    """

    prompt: np.ndarray
    schedule: Schedule
    config: GenerationConfig
    stops: tuple[tuple[int, ...], ...]
    suffix: tuple[int, ...]


class DenoisingLoop:
    """Iterates over the steps of one answer.

    Positions are counted from the start of the prompt (P of them), then the canvas (G), then
    the suffix. A position may be committed while it is masked and lies before the stop, or
    before the end of the current block while there is no stop. Nothing bounds it from below:
    masks left in earlier blocks, and mask tokens inside the prompt, compete as well.
    """

    def __init__(self, denoiser: Denoiser, table: EmbeddingTable, tokens: SpecialTokens, request: Request) -> None:
        self._request = request
        self._table = table
        length, suffix = request.schedule.gen_length, len(request.suffix)
        self._prompt_length = len(request.prompt)
        self._guided = request.config.cfg_scale > 0
        mask_row = np.empty((1, request.prompt.shape[1]), np.float32)
        table.gather([tokens.mask], mask_row)
        prompt_masks = np.flatnonzero((np.abs(request.prompt - mask_row) < MASK_DISTANCE).all(axis=1))

        window = denoiser.window(
            self._prompt_length,
            length + suffix,
            length + len(prompt_masks),
            2 if self._guided else 1,
            cached=request.config.refresh_interval != 1,
        )
        self._window = window
        window.prompt[0, : self._prompt_length] = request.prompt
        if self._guided:
            window.prompt[1, : self._prompt_length] = mask_row
        window.canvas[:, :length] = mask_row
        if suffix:
            table.gather(request.suffix, window.canvas[0, length : length + suffix])
            window.canvas[:, length : length + suffix] = window.canvas[0, length : length + suffix]

        # Rows of logits: the canvas first, then masks of the prompt (few and rare).
        self._positions = np.concatenate((self._prompt_length + np.arange(length), prompt_masks))
        self._masked = np.ones(len(self._positions), bool)
        window.rows[:length] = window.canvas_start + np.arange(length)
        window.rows[length : length + len(prompt_masks)] = prompt_masks
        self._is_mask = np.zeros(table.rows, bool)
        self._is_mask[list(tokens.mask_aliases)] = True

        self.ids = np.full(length, tokens.mask, np.int64)
        self._stops = StopScanner(request.stops)
        self._rng = np.random.default_rng(request.config.seed)
        self._sampler = Sampler(table.rows, tokens.suppressed, request.config.temperature, self._rng)
        self._confidences = np.empty(len(self._positions), np.float64)
        self._picks = np.zeros(len(self._positions), np.int64)
        self._step = 0

    @property
    def finish_reason(self) -> FinishReason:
        return "stop" if self._stops.position is not None else "length"

    def answer_ids(self) -> tuple[int, ...]:
        """Ids up to the stop, then the suffix."""
        return (*self.ids[: self._stops.position].tolist(), *self._request.suffix)

    def __iter__(self) -> Iterator[StepEvent]:
        schedule = self._request.schedule
        for block in range(schedule.blocks):
            start, end = block * schedule.block_length, (block + 1) * schedule.block_length
            if self._stops.position is not None and self._stops.position <= start:
                return
            for transfers in schedule.transfers(int(self._masked[start:end].sum())):
                if self._stops.position is not None and not self._masked[: self._stops.position].any():
                    break
                if not self._masked[start:end].any():
                    break
                yield self._denoise(block, end, transfers)

    def _denoise(self, block: int, block_end: int, transfers: int) -> StepEvent:
        """One pass, and the commit of its most confident positions."""
        interval = self._request.config.refresh_interval
        kind: PassKind = "refresh" if self._step == 0 or (interval and self._step % interval == 0) else "step"
        began = perf_counter()
        if kind == "refresh":
            self._window.refresh()
        else:
            self._window.step()
        computed = perf_counter()
        limit = self._prompt_length + (block_end if self._stops.position is None else self._stops.position)
        candidates = np.flatnonzero(self._masked & (self._positions < limit))
        # Masks inside the prompt keep what the last refresh said of them.
        self._evaluate(candidates if kind == "refresh" else candidates[candidates < len(self.ids)])
        chosen = self._select(candidates, transfers)
        self._commit(chosen)
        self._stops.scan(self.ids)
        event = StepEvent(
            step=self._step,
            kind=kind,
            block=block,
            positions=tuple((self._positions[chosen] - self._prompt_length).tolist()),
            tokens=tuple(self._picks[chosen].tolist()),
            confidences=tuple(self._confidences[chosen].tolist()),
            canvas=tuple(self.ids.tolist()),
            masks_left=int(self._masked[: len(self.ids)].sum()),
            ms=(perf_counter() - began) * 1e3,
            graph_ms=(computed - began) * 1e3,
        )
        self._step += 1
        return event

    def _evaluate(self, candidates: np.ndarray) -> None:
        """Token and confidence of every row that may be committed."""
        config = self._request.config
        for row in candidates:
            logits = self._window.logits[0, row]
            if self._guided:
                guide(logits, self._window.logits[1, row], config.cfg_scale)
            self._picks[row], self._confidences[row] = self._sampler.pick(logits)
        if config.remasking == "random":
            self._confidences[candidates] = self._rng.random(len(candidates))

    def _select(self, candidates: np.ndarray, transfers: int) -> np.ndarray:
        """The `transfers` most confident rows, the best first; of equals the first in the answer."""
        return candidates[np.argsort(-self._confidences[candidates], kind="stable")[:transfers]]

    def _commit(self, rows: np.ndarray) -> None:
        """Writes picks into ids and input rows; a predicted mask token leaves its position masked."""
        length = len(self.ids)
        for row in rows:
            token = self._picks[row]
            self._masked[row] = self._is_mask[token]
            if row < length:
                self.ids[row] = token
                self._table.gather([token], self._window.canvas[0, row : row + 1])
                self._window.canvas[1:, row] = self._window.canvas[0, row]
            else:
                # The unconditional sequence of guidance has masks for its whole prompt.
                position = self._positions[row]
                self._table.gather([token], self._window.prompt[0, position : position + 1])
