"""The state of one answer while its masks are filled.

The rules are those of the authors' `generate_with_embeds` (`modeling_llada.py`), quirks
included; a template adds positions that are pinned and restricts the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lladav.manifest import SpecialTokens
from lladav.runtime.config import Schedule
from lladav.runtime.stops import StopScanner
from lladav.runtime.template import Restriction, Template


class Canvas:
    """Which positions of one answer are masked, which may be committed, and when it ends.

    A *row* is a position that can be filled: first the G positions of the canvas, then the mask
    tokens inside the prompt. A row may be committed while it is masked and lies before the stop,
    or before the end of the current block while there is no stop. Nothing bounds it from below:
    masks left in earlier blocks, and mask tokens inside the prompt, compete as well.

    Attributes:
        ids: `[G]` int64, masks included.
        masked: `[G + prompt masks]` bool.
        positions: `[G + prompt masks]` int64, counted from the first position of the answer; negative
            inside the prompt.
        tokens: `[G + prompt masks]` int64, what the model last picked for each row; the mask
            token before it was asked.
        confidences: `[G + prompt masks]` float64, how sure it was.
        entropies: `[G + prompt masks]` float64 nats, where the selector needs them.
        block: number of the block that is being filled.
    """

    def __init__(
        self,
        schedule: Schedule,
        tokens: SpecialTokens,
        *,
        vocab_rows: int,
        prompt_masks: np.ndarray,
        stops: Sequence[Sequence[int]] = (),
        template: Template | None = None,
        adaptive: bool = False,
    ) -> None:
        length = schedule.gen_length
        self._schedule = schedule
        self._adaptive = adaptive
        self._stops = StopScanner(stops)
        self._is_mask = np.zeros(vocab_rows, bool)
        self._is_mask[list(tokens.mask_aliases)] = True
        self.template = template
        self.ids = np.full(length, tokens.mask, np.int64)
        self.positions = np.concatenate((np.arange(length), prompt_masks))
        self.masked = np.ones(len(self.positions), bool)
        if template is not None:
            pinned = template.pinned >= 0
            self.ids[pinned] = template.pinned[pinned]
            self.masked[:length][pinned] = False
        self.tokens = np.full(len(self.positions), tokens.mask, np.int64)
        self.confidences = np.zeros(len(self.positions), np.float64)
        self.entropies = np.zeros(len(self.positions), np.float64)
        self._settled: dict[str, str] = {}
        self.block = 0
        self._end = schedule.block_length
        self._rules: list[Restriction] = []
        if template is not None:
            self._rules = template.restrictions(self.ids, self.masked[:length])
            self._take(template.implied(self.ids, self.masked[:length]))

    @property
    def length(self) -> int:
        """Canvas positions G."""
        return len(self.ids)

    @property
    def alone(self) -> bool:
        """Whether there are no masks in the prompt, so that rows are positions of the canvas."""
        return len(self.ids) == len(self.positions)

    @property
    def stop(self) -> int | None:
        """Canvas position of the earliest stop so far."""
        return self._stops.position

    @property
    def masks_left(self) -> int:
        """Masked positions of the whole canvas."""
        return int(np.count_nonzero(self.masked[: self.length]))

    @property
    def undecided(self) -> int:
        """Masked positions that the answer still waits for."""
        return int(np.count_nonzero(self.masked[: self.stop if self.stop is not None else self.length]))

    def quotas(self) -> Iterator[int]:
        """How many rows the fixed schedule commits in each step, while there is something to decide."""
        schedule = self._schedule
        for block in range(schedule.blocks):
            start, end = block * schedule.block_length, (block + 1) * schedule.block_length
            if self.stop is not None and self.stop <= start:
                return
            self.block, self._end = block, end
            plan = schedule.transfers(int(self.masked[start:end].sum()))
            for quota in itertools.repeat(0) if self._adaptive else plan:
                if self.stop is not None and not self.masked[: self.stop].any():
                    break
                if not self.masked[start:end].any():
                    break
                yield quota

    def candidates(self, *, whole: bool = False) -> np.ndarray:
        """Rows that may be committed now, in order; `whole` looks beyond the current block."""
        limit = self.stop if self.stop is not None else self.length if whole else self._end
        if self.alone:
            return np.flatnonzero(self.masked[:limit])
        return np.flatnonzero(self.masked & (self.positions < limit))

    def restrictions(self, rows: np.ndarray) -> dict[int, Restriction]:
        """`restriction` of `rows` `[m]` int64 by index; none without a template."""
        if self.template is None:
            return {}
        return {index: self._rules[row] for index, row in enumerate(rows.tolist())}

    def restriction(self, row: int) -> Restriction:
        """What may stand in a row of a template, given what was decided so far."""
        return self._rules[row]

    def allows(self, row: int) -> bool:
        """Whether a row of a template can still become what the model picked for it, as it always can in text."""
        rule = self._rules[row]
        return not rule.allowed or int(self.tokens[row]) in rule.ids.tolist()

    def commit(self, rows: np.ndarray) -> None:
        """Decides rows `[k]` int64 as the model picked; a mask token leaves its row masked."""
        picked = self.tokens[rows]
        self.masked[rows] = self._is_mask[picked]
        if self.alone:
            self.ids[rows] = picked
        else:
            own = rows < self.length
            self.ids[rows[own]] = picked[own]

    def commit_in_hole(self, row: int) -> list[int]:
        """Decides a row of a template as the model picked, and what follows from it; returns all rows decided."""
        token = int(self.tokens[row])
        self.masked[row] = self._is_mask[token]
        self.ids[row] = token
        assert self.template is not None
        follows = self.template.follow(self._rules, self.ids, self.masked[: self.length], row)
        self._take(follows)
        return [row, *follows]

    def _take(self, implied: Mapping[int, int]) -> None:
        """Decides what needs no pass."""
        for row, token in implied.items():
            self.tokens[row] = self.ids[row] = token
            self.confidences[row] = 1.0
            self.masked[row] = False

    def scan(self) -> None:
        """Looks for stops."""
        self._stops.scan(self.ids)

    def settled_holes(self) -> dict[str, str]:
        """What stands in the holes of a template that have settled, by name."""
        if self.template is None:
            return {}
        for hole in self.template.holes:
            # What has settled stays.
            if hole.name not in self._settled and not self.masked[hole.span].any():
                self._settled[hole.name] = self.template.hole_text(hole, self.ids)
        return dict(self._settled)

    def provisional(self) -> tuple[int, ...]:
        """The canvas with what the model last picked where nothing is committed yet."""
        return tuple(np.where(self.masked[: self.length], self.tokens[: self.length], self.ids).tolist())
