"""The passes of the runtime's denoising loop, done again with the activations on view.

The loop itself is the runtime's. What it decided, canvas by canvas, is all that is needed to
repeat its passes: a refresh sees prompt and canvas, a step the canvas and the keys and values that
the last refresh kept of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lladav.manifest import Manifest
from lladav.prompt_kv import PAST, PRESENT
from lladav.runtime import StepEvent
from lladav.runtime.denoiser import no_past
from lladav.runtime.prompt import IMAGE_TOKEN
from lladav.statistics_header import Condition

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
PassKind = Literal["refresh", "step"]
Place = Literal["image", "text", "canvas"]

MASK_RATIOS = (1.0, 0.75, 0.5, 0.25, 0.05)
"""Shares of masks that are counted apart; a canvas counts for the nearest."""

CONDITIONS = tuple(
    Condition(kind=kind, where=where, mask_ratio=ratio)
    for kind, places in (("refresh", ("image", "text", "canvas")), ("step", ("canvas",)))
    for where in places
    for ratio in MASK_RATIOS
)
"""Of the denoiser."""


@dataclass(frozen=True)
class Prompt:
    """A merged prompt.

    Attributes:
        rows: `[P, D]` float32.
        ids: `[P]` int64, `IMAGE_TOKEN` for rows of a picture.
    """

    rows: Floats
    ids: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DenoisingPass:
    """One pass of the loop, before it commits anything.

    Attributes:
        canvas: `[C]` int64 ids.
        masked: `[R]` int64 canvas positions whose logits are wanted.
    """

    kind: PassKind
    canvas: npt.NDArray[np.int64]
    masked: npt.NDArray[np.int64]

    @property
    def mask_ratio(self) -> float:
        """The one of `MASK_RATIOS` that it counts for."""
        return nearest_ratio(len(self.masked) / len(self.canvas))


def nearest_ratio(share: float) -> float:
    """The nearest of `MASK_RATIOS`; the larger one half-way between two."""
    return min(MASK_RATIOS, key=lambda ratio: abs(ratio - share))


def first_pass(length: int, mask: int) -> DenoisingPass:
    """What every answer begins with: a refresh on a canvas of masks."""
    return DenoisingPass("refresh", np.full(length, mask, np.int64), np.arange(length))


def passes_of(events: Sequence[StepEvent], mask: int) -> list[DenoisingPass]:
    """The passes that led to an answer.

    Args:
        events: all steps of the answer.
        mask: id of the mask token.
    """
    passes = [first_pass(len(events[0].canvas), mask)]
    for before, event in pairwise(events):
        canvas = np.array(before.canvas, np.int64)
        passes.append(DenoisingPass(event.kind, canvas, np.flatnonzero(canvas == mask)))
    return passes


def refresh_inputs(
    manifest: Manifest, prompt: Floats, canvas: Floats, masked: npt.NDArray[np.int64]
) -> dict[str, Array]:
    """Inputs of the denoiser for a window `[prompt | canvas]`, without padding and without a past.

    Args:
        manifest: of the bundle.
        prompt: `[P, D]` rows.
        canvas: `[C, D]` rows.
        masked: canvas positions whose logits are wanted.
    """
    length = len(prompt)
    window = _window(np.concatenate((prompt, canvas)), start=0, past=0)
    return window | {
        "rows": length + masked,
        "kept": np.arange(length),
        **no_past(manifest),
    }


def step_inputs(present: dict[str, Array], canvas: Floats, masked: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Inputs of the denoiser for the canvas alone.

    Args:
        present: outputs of the last refresh.
        canvas: `[C, D]` rows.
        masked: canvas positions whose logits are wanted.
    """
    past = {name.replace(PRESENT, PAST): array for name, array in present.items() if name.startswith(PRESENT)}
    length = next(iter(past.values())).shape[2]
    return _window(canvas, start=length, past=length) | {"rows": masked, "kept": np.arange(0)} | past


def _window(rows: Floats, *, start: int, past: int) -> dict[str, Array]:
    count = len(rows)
    return {
        "inputs_embeds": rows[None],
        "position_ids": np.arange(start, start + count)[None],
        "attention_bias": np.zeros((1, 1, 1, past + count), np.float32),
    }


def conditions_of(done: DenoisingPass, ids: npt.NDArray[np.int64]) -> list[Condition]:
    """Of every position of the pass's window.

    Args:
        done: the pass.
        ids: of the prompt.
    """
    places: list[Place] = ["canvas"] * len(done.canvas)
    if done.kind == "refresh":
        places = [*("image" if i == IMAGE_TOKEN else "text" for i in ids.tolist()), *places]
    known = {place: Condition(kind=done.kind, where=place, mask_ratio=done.mask_ratio) for place in set(places)}
    return [known[place] for place in places]
