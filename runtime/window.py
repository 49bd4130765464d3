"""The window of positions that a pass computes, as the loop sees it, wherever its buffers lie.

The window is `[prompt | padding | canvas | padding]`: the canvas fills a bucket from its start, and so do
prompts on a GPU, where passes are captured for a size. On the host prompts are padded to the longest
of them alone, unless passes have to take a time that is known. Padding is masked as a key and never
asked for as a row, so it changes no answer; position ids count real positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lladav.errors import OptionError, PromptError
from lladav.manifest import Buckets, SpecialTokens
from lladav.runtime.evaluation import Evaluator, Sampling
from lladav.runtime.sessions import smallest_fitting

if TYPE_CHECKING:
    from lladav.runtime.loop import Loop, Request
    from lladav.runtime.pacing import Pacer, PassTimes

Size = tuple[int, int, int]
"""Sequences B, prompt bucket and canvas bucket."""


class Window(Protocol):
    """Inputs and outputs of the two passes over B sequences.

    Positions of a window count from the start of the prompt; the canvas starts at
    `canvas_start` in every sequence, however long its prompt is.

    Attributes:
        size: of the buckets.
        owner: whose rows are in the buffers; None from when they are handed out until someone claims them.
    """

    size: Size
    owner: object

    @property
    def canvas_start(self) -> int:
        """Window position of the first canvas position."""

    def place_prompt(self, sequence: int, embeds: np.ndarray) -> None:
        """Input rows `[P, D]` or `[1, D]` float32 of a prompt's real positions."""

    def place(self, sequence: int, places: np.ndarray, ids: np.ndarray) -> None:
        """Makes the rows of window positions `[n]` int64 the embeddings of tokens `[n]` int64."""

    def refresh(self, rows: np.ndarray) -> Any:
        """The full pass over prompt and canvas; keeps the prompt's keys and values where they are used.

        Args:
            rows: `[R]` int64 window positions whose logits are wanted, each once.

        Returns:
            The logits, for the evaluator; overwritten by the next pass.
        """

    def step(self, rows: np.ndarray) -> Any:
        """The pass over the canvas alone, against what the last refresh kept of the prompt; as `refresh`."""

    def evaluator(self, sampling: Sampling, draws: Sequence[np.random.Generator]) -> Evaluator:
        """Reads the logits of this window's passes, for as many answers as there are `draws`."""


class WindowMaker(Protocol):
    """A loaded denoiser."""

    def window(
        self, prompts: Sequence[int], canvas: int, rows: int, *, cached: bool = False, padded: bool = False
    ) -> Window:
        """A window for that many positions; the last one's buffers are used again where they fit.

        Args:
            prompts: prompt positions of every sequence, computed side by side.
            canvas: answer and suffix positions.
            rows: rows of logits that one pass computes at most.
            cached: whether `Window.step` will be called.
            padded: whether prompts shall fill their bucket wherever they are computed, so that passes of one
                size take one time.

        Raises:
            PromptError: no prompt bucket is large enough.
            OptionError: no canvas bucket is large enough.
        """

    def loop(self, tokens: SpecialTokens, request: Request, times: PassTimes, pacer: Pacer | None = None) -> Loop:
        """The loop over the passes of a request.

        Raises:
            PromptError, OptionError: as `window`.
        """


def window_size(buckets: Buckets, prompts: Sequence[int], canvas: int, rows: int) -> Size:
    """The smallest buckets that hold what `WindowMaker.window` is asked for.

    Raises:
        PromptError: no prompt bucket is large enough.
        OptionError: no canvas bucket is large enough.
    """
    prompt = smallest_fitting(buckets.prompt, max(prompts))
    if prompt is None:
        raise PromptError(
            f"a prompt of {max(prompts):,} positions fits no bucket: the largest is {buckets.prompt[-1]:,}",
            cure=f"export with --prompt-buckets ...,{-(-max(prompts) // 64) * 64}, or ask less: "
            "fewer or smaller pictures, a shorter question",
        )
    return len(prompts), prompt, canvas_bucket(buckets, max(canvas, rows))


def canvas_bucket(buckets: Buckets, wanted: int) -> int:
    """The smallest bucket with so many positions of answer and suffix.

    Raises:
        OptionError: none is large enough.
    """
    found = smallest_fitting(buckets.canvas, wanted)
    if found is None:
        raise OptionError(
            f"a canvas of {wanted:,} positions fits no bucket: the largest is {buckets.canvas[-1]:,}",
            cure=f"export with --canvas-buckets ...,{wanted}, or lower --gen-length or the suffix",
        )
    return found
