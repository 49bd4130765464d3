"""The denoising loop: the masks of one or several canvases are filled over several passes.

The procedure is the authors' `generate_with_embeds` (`modeling_llada.py`); each pass computes
logits only for rows that may be committed. Between refreshes the prompt's keys and values are
kept, as in Fast-dLLM's prefix cache (arXiv 2505.22618).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from lladav.errors import BackendError
from lladav.manifest import SpecialTokens
from lladav.runtime.canvas import Canvas
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.evaluation import Sampling
from lladav.runtime.loop import Loop, Request
from lladav.runtime.pacing import Pacer, PassTimes, pass_key
from lladav.runtime.results import PassKind, StepEvent
from lladav.runtime.selectors import Scores
from lladav.runtime.tracing import span
from lladav.runtime.window import WindowMaker


class Turn(NamedTuple):
    """One canvas in one pass.

    Attributes:
        canvas: what is being filled.
        number: its place among the sequences.
        quota: how many rows the fixed schedule commits.
        candidates: `[n]` int64 rows that may be committed.
        computed: `[m]` int64 rows among them that this pass computes logits for.
    """

    canvas: Canvas
    number: int
    quota: int
    candidates: np.ndarray
    computed: np.ndarray


class DenoisingLoop(Loop):
    """The loop that decides on the host.

    Args:
        maker, table, tokens, request, times: see `Loop`.
        pacer: keeps a deadline.
    """

    def __init__(
        self,
        maker: WindowMaker,
        table: EmbeddingTable,
        tokens: SpecialTokens,
        request: Request,
        times: PassTimes | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        super().__init__(maker, table, tokens, request, times or PassTimes())
        self._pacer = pacer
        # A generator for every answer, so that it does not depend on what it is computed beside.
        self._draws = [np.random.default_rng(request.config.seed) for _ in self.canvases]
        self._evaluator = self._window.evaluator(
            Sampling(
                suppressed=self._suppressed,
                temperature=request.config.temperature,
                cfg_scale=request.config.cfg_scale,
                seed=request.config.seed,
                entropy=self._selector.needs_entropy,
            ),
            self._draws,
        )
        self._committed = 0
        self._numbers = np.arange(max(len(canvas.positions) for canvas in self.canvases))

    def __iter__(self) -> Iterator[tuple[StepEvent | None, ...]]:
        quotas = [canvas.quotas() for canvas in self.canvases]
        while not self._out_of_time:
            due = [next(quota, None) for quota in quotas]
            if all(quota is None for quota in due):
                return
            yield self._denoise(due)

    def _denoise(self, due: list[int | None]) -> tuple[StepEvent | None, ...]:
        """One pass, and what it commits on every unfinished canvas."""
        self._claim()
        began = perf_counter()
        kind, last = self._plan()
        turns = [self._turn(number, quota, kind, last) for number, quota in enumerate(due) if quota is not None]
        places = [self._window_positions(turn) for turn in turns]
        wanted = places[0] if len(places) == 1 else np.unique(np.concatenate(places))
        before = perf_counter()
        with span(kind):
            logits = self._window.refresh(wanted) if kind == "refresh" else self._window.step(wanted)
        graph_ms = (perf_counter() - before) * 1e3
        events: list[StepEvent | None] = [None] * len(due)
        done = []
        for turn, place in zip(turns, places, strict=True):
            with span("sampling"):
                rows = self._numbers[: len(place)] if place is wanted else np.searchsorted(wanted, place)
                self._evaluate(turn, logits, rows)
            with span("commit"):
                chosen = self._commit(turn, self._select(turn), whole=self._scheduled)
                turn.canvas.scan()
                forced = self._commit_rest(turn) if last or self._must_end(turn) else chosen[:0]
            self._committed += len(chosen)
            self._out_of_time |= len(forced) > 0
            done.append((turn, chosen, forced))
        ms = (perf_counter() - began) * 1e3
        for turn, chosen, forced in done:
            events[turn.number] = self._event(turn.canvas, kind, chosen, forced, ms, graph_ms)
        if self._window.canvas_start == self._window.size[1]:  # shorter passes would promise too much of whole buckets
            self._times.add(pass_key(kind, self._window.size), ms)
        self._step += 1
        return tuple(events)

    def _plan(self) -> tuple[PassKind, bool]:
        """The kind of the next pass, and whether it is the last one before the deadline."""
        due = self._kind(self._step)
        if self._pacer is None:
            return due, False
        pace = self._committed / self._step if self._step else 0.0
        return self._pacer.plan(due, sum(canvas.undecided for canvas in self.canvases), pace)

    def _turn(self, number: int, quota: int, kind: PassKind, last: bool) -> Turn:
        canvas = self.canvases[number]
        candidates = canvas.candidates(whole=last)
        # Masks inside the prompt keep what the last refresh said of them.
        whole = kind == "refresh" or canvas.alone
        computed = candidates if whole else candidates[candidates < canvas.length]
        return Turn(canvas, number, quota, candidates, computed)

    def _window_positions(self, turn: Turn) -> np.ndarray:
        if turn.canvas.alone:
            return self._window.canvas_start + turn.computed
        positions = turn.canvas.positions[turn.computed]
        prompt = len(self._request.prompts[turn.number])
        places: np.ndarray = np.where(positions < 0, prompt + positions, self._window.canvas_start + positions)
        return places

    def _evaluate(self, turn: Turn, logits: Any, rows: np.ndarray) -> None:
        """Token and confidence of every row that this pass computed.

        Args:
            turn: whose rows they are.
            logits: of the pass.
            rows: `[m]` int64, where `turn.computed` are among the pass's rows.

        Raises:
            BackendError: logits that are no numbers.
        """
        canvas = turn.canvas
        picks = self._evaluator.pick(logits, turn.number, rows, canvas.restrictions(turn.computed))
        if not math.isfinite(sum(picks.confidences.tolist())):
            raise BackendError(
                f"pass {self._step + 1} gave logits that are no numbers for {int(np.isnan(picks.confidences).sum())} "
                f"of {len(rows)} positions",
                cure="see with `lladav inspect BUNDLE --checksums` whether the bundle is whole; export it again with "
                "--dtype fp32 if float16 overflows",
            )
        canvas.tokens[turn.computed] = picks.tokens
        canvas.confidences[turn.computed] = picks.confidences
        if picks.entropies is not None:
            canvas.entropies[turn.computed] = picks.entropies

    def _select(self, turn: Turn) -> np.ndarray:
        """Rows to commit, the best first."""
        canvas, rows = turn.canvas, turn.candidates
        ranks = canvas.confidences[rows]
        if self._request.config.remasking == "random":
            ranks = self._draws[turn.number].random(len(rows))
        entropies = canvas.entropies[rows] if self._selector.needs_entropy else None
        chosen: np.ndarray = rows[self._selector.select(Scores(ranks, entropies), turn.quota)]
        return chosen

    def _commit(self, turn: Turn, rows: np.ndarray, *, whole: bool) -> np.ndarray:
        """Decides rows, the best first.

        Args:
            turn: the last that was evaluated.
            rows: `[k]` int64.
            whole: a row whose token a better one of the same hole of a template rules out takes the
                likeliest that is left; otherwise it waits for the next pass.

        Returns:
            Those that were decided.
        """
        canvas = turn.canvas
        if canvas.template is None:
            canvas.commit(rows)
            self._write(turn.number, rows)
            return rows
        decided: list[int] = []
        written: list[int] = []
        for row in rows.tolist():
            if not canvas.masked[row]:
                continue  # it followed from a better one
            if not canvas.allows(row):
                if not whole:
                    continue
                index = int(np.searchsorted(turn.computed, row))
                canvas.tokens[row], canvas.confidences[row] = self._evaluator.pick_again(index, canvas.restriction(row))
            decided.append(row)
            written += canvas.commit_in_hole(row)
        self._write(turn.number, written)
        return np.array(decided, np.int64)

    def _must_end(self, turn: Turn) -> bool:
        """Whether no further pass fits the deadline, and this one said enough to do without."""
        if self._pacer is None or self._pacer.fits():
            return False
        return bool(np.isin(turn.canvas.candidates(whole=True), turn.candidates).all())

    def _commit_rest(self, turn: Turn) -> np.ndarray:
        """Decides everything before the stop, because no further pass fits the deadline."""
        canvas = turn.canvas
        rest = np.intersect1d(turn.candidates, canvas.candidates(whole=True))
        return self._commit(turn, rest[np.argsort(-canvas.confidences[rest], kind="stable")], whole=True)

    def _write(self, number: int, decided: np.ndarray | list[int]) -> None:
        """Gives the model what was decided; the unconditional sequence of guidance keeps its masked prompt."""
        canvas = self.canvases[number]
        if not canvas.undecided:
            return  # no pass will read it
        rows = np.asarray(decided, np.int64)
        own = rows if canvas.alone else rows[rows < canvas.length]
        places = self._window.canvas_start + own
        self._window.place(number, places, canvas.ids[own])
        if self._guided:
            self._window.place(len(self.canvases) + number, places, canvas.ids[own])
        if len(own) < len(rows):
            inside = rows[rows >= canvas.length]
            prompt = len(self._request.prompts[number])
            self._window.place(number, prompt + canvas.positions[inside], canvas.tokens[inside])
