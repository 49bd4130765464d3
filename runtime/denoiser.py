"""The denoiser graph with its window of positions laid out in fixed buffers.

The window is `[prompt | padding | canvas | padding]`: prompt and canvas each fill a bucket
from its start. Padding is masked as a key and never asked for as a row, so it changes no
answer; position ids count real positions only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lladav.bundle import Bundle
from lladav.errors import OptionError, PromptError
from lladav.runtime.sessions import NUMPY_TYPES, PADDED, BoundPass, open_session, smallest_fitting


class Denoiser:
    """Makes windows over one session, so that weights are in memory once."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._manifest = bundle.manifest
        self._session: Any = open_session(bundle, "denoiser", threads)
        self._window: Window | None = None

    def window(self, prompt: int, canvas: int, rows: int, batch: int) -> Window:
        """A window for that many positions; the last one's buffers are used again where they fit.

        Args:
            prompt: prompt positions.
            canvas: answer and suffix positions.
            rows: logits rows wanted at most.
            batch: sequences, 2 with classifier-free guidance.

        Raises:
            PromptError: no prompt bucket is large enough.
            OptionError: no canvas bucket is large enough.
        """
        buckets = self._manifest.buckets
        p = smallest_fitting(buckets.prompt, prompt)
        if p is None:
            raise PromptError(
                f"a prompt of {prompt:,} positions fits no bucket: the largest is {buckets.prompt[-1]:,}",
                cure=f"export with --prompt-buckets ...,{-(-prompt // 64) * 64}, or ask less: "
                "fewer or smaller pictures, a shorter question",
            )
        c = smallest_fitting(buckets.canvas, max(canvas, rows))
        if c is None:
            raise OptionError(
                f"a canvas of {max(canvas, rows):,} positions fits no bucket: the largest is {buckets.canvas[-1]:,}",
                cure=f"export with --canvas-buckets ...,{max(canvas, rows)}, or lower --gen-length or the suffix",
            )
        if self._window is None or self._window.size != (batch, p, c):
            self._window = None  # frees the old buffers before the new ones are made
            self._window = Window(self._session, self._manifest, batch, p, c)
        self._window.lay_out(prompt, canvas)
        return self._window


class Window:
    """Buffers of one full pass.

    Attributes:
        prompt: `[B, prompt bucket, D]` float32 input rows of the prompt.
        canvas: `[B, canvas bucket, D]` float32 input rows of answer and suffix.
        rows: `[canvas bucket]` int64 window positions whose logits are wanted.
        logits: `[B, canvas bucket, V]` float32, one per entry of `rows`.
    """

    def __init__(self, session: Any, manifest: Any, batch: int, prompt: int, canvas: int) -> None:
        language = manifest.geometry.language
        self.size = (batch, prompt, canvas)
        window = prompt + canvas
        inputs: dict[str, np.ndarray] = {
            "inputs_embeds": np.zeros((batch, window, language.hidden_size), np.float32),
            "position_ids": np.zeros((batch, window), np.int64),
            "attention_bias": np.zeros((batch, 1, 1, window), np.float32),
            "rows": np.zeros(canvas, np.int64),
        }
        for spec in manifest.graphs["denoiser"].inputs:
            if spec.name.startswith("past_key_values."):
                empty = (batch, language.kv_heads, 0, language.head_size)
                inputs[spec.name] = np.zeros(empty, NUMPY_TYPES[spec.dtype])
        self.logits = np.zeros((batch, canvas, language.vocab_rows), np.float32)
        self.rows = inputs["rows"]
        self.prompt = inputs["inputs_embeds"][:, :prompt]
        self.canvas = inputs["inputs_embeds"][:, prompt:]
        self._positions = inputs["position_ids"]
        self._bias = inputs["attention_bias"][:, 0, 0]
        self._pass = BoundPass(session, inputs, {"logits": self.logits})

    @property
    def canvas_start(self) -> int:
        """Window position of the first canvas position."""
        return self.size[1]

    def lay_out(self, prompt: int, canvas: int) -> None:
        """Numbers the real positions and masks the padding."""
        start = self.canvas_start
        self._positions[:] = 0
        self._positions[:, :prompt] = np.arange(prompt)
        self._positions[:, start : start + canvas] = np.arange(prompt, prompt + canvas)
        self._bias[:] = PADDED
        self._bias[:, :prompt] = 0
        self._bias[:, start : start + canvas] = 0
        self.prompt[:, prompt:] = 0
        self.canvas[:, canvas:] = 0
        self.rows[:] = start

    def run(self) -> None:
        """Computes `logits` from what the buffers hold."""
        self._pass.run()
