"""The denoiser on ONNX Runtime's CPU provider, with its windows in fixed buffers of host memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lladav.bundle import Bundle
from lladav.errors import BundleError
from lladav.manifest import CPU_DENOISER, Manifest, SpecialTokens
from lladav.prompt_kv import PAST, PRESENT, kept_arrays
from lladav.runtime.denoise import DenoisingLoop
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.evaluation import HostEvaluator, Sampling
from lladav.runtime.loop import Request
from lladav.runtime.pacing import Pacer, PassTimes
from lladav.runtime.sampling import room_for
from lladav.runtime.sessions import PADDED, BoundPass, open_session
from lladav.runtime.window import Size, window_size


class Denoiser:
    """Makes windows over one session, so that weights are in memory once.

    Attributes:
        threads: of one operator.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, table: EmbeddingTable | None = None) -> None:
        self._manifest = bundle.manifest
        if CPU_DENOISER not in bundle.manifest.graphs and bundle.manifest.precision != "bf16":
            raise BundleError(
                f"{bundle.path} has no graph {CPU_DENOISER}: an older lladav exported it",
                cure="export the checkpoint again with `lladav export CHECKPOINT BUNDLE`",
            )
        self.threads = threads or len(os.sched_getaffinity(0))
        self._session: Any = open_session(bundle, CPU_DENOISER, threads)
        self._table = table or EmbeddingTable.of(bundle)
        self._window: HostWindow | None = None

    def window(
        self, prompts: Sequence[int], canvas: int, rows: int, *, cached: bool = False, padded: bool = False
    ) -> HostWindow:
        """See `WindowMaker`."""
        size = window_size(self._manifest.buckets, prompts, canvas, rows)
        if self._window is None or self._window.size != size or (cached and not self._window.cached):
            if self._window is not None:
                self._window.owner = None  # a stream that still holds it shall say so
            self._window = None  # frees the old buffers before the new ones are made
            self._window = HostWindow(self._session, self._manifest, self._table, size, cached, self.threads)
        self._window.lay_out(prompts, canvas, padded=padded)
        self._window.owner = None
        return self._window

    @property
    def buffers(self) -> dict[str, tuple[np.ndarray, ...]]:
        """Arrays of the window in use by what they are for: `prompt KV`, `logits`, `inputs`; empty before the first."""
        return self._window.buffers if self._window is not None else {}

    def loop(
        self, tokens: SpecialTokens, request: Request, times: PassTimes, pacer: Pacer | None = None
    ) -> DenoisingLoop:
        """See `WindowMaker`."""
        return DenoisingLoop(self, self._table, tokens, request, times, pacer)


class HostWindow:
    """A `Window` whose buffers are arrays.

    They have room for the buckets, of which prompts take as much as the longest of them is, unless they shall be
    padded: nothing here is made for one length, and padding costs as much as a prompt. A refresh writes the
    prompt's keys and values to the one place where steps read them.

    Attributes:
        size: B, prompt bucket and canvas bucket.
        prompt: `[B, P, D]` float32 input rows of the prompts, the longest of which has P.
        canvas: `[B, canvas bucket, D]` float32 input rows of answer and suffix.
        cached: whether there are buffers for `step`.
    """

    prompt: np.ndarray

    def __init__(
        self, session: Any, manifest: Manifest, table: EmbeddingTable, size: Size, cached: bool, threads: int
    ) -> None:
        language = manifest.geometry.language
        self.size = size
        batch, prompt, canvas = size
        self._table = table
        self.cached = cached
        self.owner: object = None
        # Kept between answers, whose first step would else meet pages that were never touched.
        self._room = room_for(language.vocab_rows, threads)
        window = prompt + canvas
        self._vocabulary = language.vocab_rows
        self._width = language.hidden_size
        self._embeds_room = np.zeros(batch * window * language.hidden_size, np.float32)
        self._positions_room = np.zeros(batch * window, np.int64)
        self._bias_room = np.zeros(batch * window, np.float32)
        self.canvas = np.zeros((batch, canvas, language.hidden_size), np.float32)
        self._canvas_positions = np.zeros((batch, canvas), np.int64)
        self._rows = np.zeros(canvas, np.int64)
        self._logits = np.zeros(batch * canvas * language.vocab_rows, np.float32)
        arrays = tuple(kept_arrays(language, "float32", manifest.prompt_kv))
        self._kept_rooms = {a: np.zeros(batch * a.heads * prompt * a.width, a.dtype) for a in arrays if cached}
        self._keep = np.array([0])
        self._refresh = BoundPass(session, {"keep": self._keep, **no_past(manifest, batch)}, {})
        own: dict[str, np.ndarray] = {
            "inputs_embeds": self.canvas,
            "position_ids": self._canvas_positions,
            "keep": np.array([0]),
        }
        self._step = BoundPass(session, own, {})
        self._make_as_long_as(prompt)

    @property
    def buffers(self) -> dict[str, tuple[np.ndarray, ...]]:
        """See `Denoiser`."""
        rooms = (self._embeds_room, self._positions_room, self._bias_room)
        inputs = (*rooms, self.canvas, self._canvas_positions, self._rows)
        return {"prompt KV": tuple(self._kept_rooms.values()), "logits": (self._logits,), "inputs": inputs}

    @property
    def canvas_start(self) -> int:
        """Window position of the first canvas position."""
        return self._longest

    def lay_out(self, prompts: Sequence[int], canvas: int, *, padded: bool = False) -> None:
        """Numbers the real positions and masks the padding; `padded` as in `WindowMaker`."""
        longest = self.size[1] if padded else max(prompts)
        if longest != self._longest:
            self._make_as_long_as(longest)
        start = self.canvas_start
        self._lengths = list(prompts)
        self._positions[:] = 0
        self._bias[:] = PADDED
        self._bias[..., start : start + canvas] = 0
        for sequence, length in enumerate(prompts):
            self._positions[sequence, :length] = np.arange(length)
            self._positions[sequence, start : start + canvas] = np.arange(length, length + canvas)
            self._bias[sequence, ..., :length] = 0
            self.prompt[sequence, length:] = 0
        self.canvas[:, canvas:] = 0
        self._canvas_positions[:] = self._positions[:, start:]

    def _make_as_long_as(self, longest: int) -> None:
        """Cuts the arrays of the passes from their rooms, for a longest prompt of that length."""
        batch, _, canvas = self.size
        window = longest + canvas
        self._longest = longest
        self._embeds = _part(self._embeds_room, (batch, window, self._width))
        self._positions = _part(self._positions_room, (batch, window))
        self._bias = _part(self._bias_room, (batch, 1, 1, window))
        self.prompt = self._embeds[:, :longest]
        self._refresh.bind_input("inputs_embeds", self._embeds)
        self._refresh.bind_input("position_ids", self._positions)
        for bound in (self._refresh, self._step):
            bound.bind_input("attention_bias", self._bias)
        self._keep[0] = longest if self.cached else 0
        for array, room in self._kept_rooms.items():
            kept = _part(room, (batch, array.heads, longest, array.width))
            self._refresh.bind_output(f"{PRESENT}{array.name}", kept)
            self._step.bind_input(f"{PAST}{array.name}", kept)

    def place_prompt(self, sequence: int, embeds: np.ndarray) -> None:
        """See `Window`."""
        self.prompt[sequence, : self._lengths[sequence]] = embeds

    def place(self, sequence: int, places: np.ndarray, ids: np.ndarray) -> None:
        """See `Window`."""
        embeds, inside = self._table.gather(ids), places < self.canvas_start
        if inside.any():
            self.prompt[sequence, places[inside]] = embeds[inside]
            places, embeds = places[~inside], embeds[~inside]
        self.canvas[sequence, places - self.canvas_start] = embeds

    def evaluator(self, sampling: Sampling, draws: Sequence[np.random.Generator]) -> HostEvaluator:
        """See `Window`."""
        return HostEvaluator(sampling, self._vocabulary, draws, self._room)

    def refresh(self, rows: np.ndarray) -> np.ndarray:
        """See `Window`; returns `[B, R, V]` float32 that the caller may write into."""
        self._embeds[:, self.canvas_start :] = self.canvas
        return self._run(self._refresh, rows)

    def step(self, rows: np.ndarray) -> np.ndarray:
        """See `Window`; returns what `refresh` does."""
        return self._run(self._step, rows - self.canvas_start)

    def _run(self, bound: BoundPass, rows: np.ndarray) -> np.ndarray:
        batch, count = self.size[0], len(rows)
        self._rows[:count] = rows
        logits = self._logits[: batch * count * self._vocabulary].reshape(batch, count, self._vocabulary)
        bound.bind_input("rows", self._rows[:count])
        bound.bind_output("logits", logits)
        bound.run()
        return logits


def no_past(manifest: Manifest, batch: int = 1) -> dict[str, np.ndarray]:
    """Inputs of a denoiser's graph on the CPU that say that no earlier pass kept keys and values."""
    arrays = kept_arrays(manifest.geometry.language, "float32", manifest.prompt_kv)
    return {f"{PAST}{a.name}": np.zeros((batch, a.heads, 0, a.width), a.dtype) for a in arrays}


def _part(room: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The beginning of an array as one of that shape."""
    return room[: math.prod(shape)].reshape(shape)
