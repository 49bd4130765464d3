"""The denoiser on ONNX Runtime's CPU provider, with its windows in fixed buffers of host memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lladav.bundle import Bundle
from lladav.errors import BundleError
from lladav.manifest import Manifest, SpecialTokens
from lladav.prompt_kv import PAST, PRESENT, kept_arrays
from lladav.runtime.denoise import DenoisingLoop
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.evaluation import HostEvaluator, Sampling
from lladav.runtime.loop import Request
from lladav.runtime.pacing import Pacer, PassTimes
from lladav.runtime.sampling import room_for
from lladav.runtime.sessions import PADDED, BoundPass, open_session
from lladav.runtime.window import Size, window_size

GRAPH = "denoiser_cpu"


class Denoiser:
    """Makes windows over one session, so that weights are in memory once.

    Attributes:
        threads: of one operator.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, table: EmbeddingTable | None = None) -> None:
        self._manifest = bundle.manifest
        if GRAPH not in bundle.manifest.graphs and bundle.manifest.precision != "bf16":
            raise BundleError(
                f"{bundle.path} has no graph {GRAPH}: an older lladav exported it",
                cure="export the checkpoint again with `lladav export CHECKPOINT BUNDLE`",
            )
        self.threads = threads or len(os.sched_getaffinity(0))
        self._session: Any = open_session(bundle, GRAPH, threads)
        self._table = table or EmbeddingTable.of(bundle)
        self._window: HostWindow | None = None

    def window(self, prompts: Sequence[int], canvas: int, rows: int, *, cached: bool = False) -> HostWindow:
        """See `WindowMaker`."""
        size = window_size(self._manifest.buckets, prompts, canvas, rows)
        if self._window is None or self._window.size != size or (cached and not self._window.cached):
            self._window = None  # frees the old buffers before the new ones are made
            self._window = HostWindow(self._session, self._manifest, self._table, size, cached, self.threads)
        self._window.lay_out(prompts, canvas)
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

    A refresh writes the prompt's keys and values to the one place where steps read them.

    Attributes:
        size: B, prompt bucket and canvas bucket.
        prompt: `[B, prompt bucket, D]` float32 input rows of the prompts.
        canvas: `[B, canvas bucket, D]` float32 input rows of answer and suffix.
        cached: whether there are buffers for `step`.
    """

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
        self._embeds = np.zeros((batch, window, language.hidden_size), np.float32)
        self._positions = np.zeros((batch, window), np.int64)
        self._bias = np.zeros((batch, 1, 1, window), np.float32)
        self.prompt = self._embeds[:, :prompt]
        self.canvas = np.zeros((batch, canvas, language.hidden_size), np.float32)
        self._rows = np.zeros(canvas, np.int64)
        self._logits = np.zeros(batch * canvas * language.vocab_rows, np.float32)

        def caches(positions: int) -> dict[str, np.ndarray]:
            arrays = kept_arrays(language, "float32", manifest.prompt_kv)
            return {a.name: np.zeros((batch, a.heads, positions, a.width), a.dtype) for a in arrays}

        kept = caches(prompt) if cached else {}
        past = {f"{PAST}{name}": array for name, array in kept.items()}
        present = {f"{PRESENT}{name}": array for name, array in kept.items()}
        no_past = {f"{PAST}{name}": array for name, array in caches(0).items()}
        whole: dict[str, np.ndarray] = {
            "inputs_embeds": self._embeds,
            "position_ids": self._positions,
            "attention_bias": self._bias,
            "keep": np.array([prompt if cached else 0]),
        }
        self._refresh = BoundPass(session, whole | no_past, present)
        if cached:
            self._canvas_positions = np.zeros((batch, canvas), np.int64)
            own: dict[str, np.ndarray] = {
                "inputs_embeds": self.canvas,
                "position_ids": self._canvas_positions,
                "attention_bias": self._bias,
                "keep": np.array([0]),
            }
            self._step = BoundPass(session, own | past, {})

    @property
    def buffers(self) -> dict[str, tuple[np.ndarray, ...]]:
        """See `Denoiser`."""
        own: list[np.ndarray] = [self._embeds, self._positions, self._bias, self.canvas, self._rows]
        kept: list[np.ndarray] = []
        if self.cached:
            own.append(self._canvas_positions)
            kept = [array for name, array in self._step.arrays.items() if name.startswith(PAST)]
        return {"prompt KV": tuple(kept), "logits": (self._logits,), "inputs": tuple(own)}

    @property
    def canvas_start(self) -> int:
        """Window position of the first canvas position."""
        return self.size[1]

    def lay_out(self, prompts: Sequence[int], canvas: int) -> None:
        """Numbers the real positions and masks the padding."""
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
        if self.cached:
            self._canvas_positions[:] = self._positions[:, start:]

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
