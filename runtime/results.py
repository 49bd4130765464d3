"""What a caller gets: one event per denoising step, and the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
PassKind = Literal["refresh", "step"]


@dataclass(frozen=True)
class StepEvent:
    """One denoising step.

    Attributes:
        step: 0, 1, ... over the whole answer.
        kind: `refresh` computed prompt and canvas, `step` the canvas alone.
        block: block that was being filled.
        positions: committed in this step, most confident first, counted from the first
            position of the answer (negative: a mask inside the prompt).
        tokens: what was committed there.
        confidences: probability of each of them, or random ranks with `remasking="random"`.
        canvas: ids of the answer so far, masks included, `gen_length` of them.
        masks_left: of the whole canvas.
        ms: time of the step in milliseconds, graph and host.
        graph_ms: of which inside the graph.
    """

    step: int
    kind: PassKind
    block: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    canvas: tuple[int, ...]
    masks_left: int
    ms: float
    graph_ms: float


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        token_ids: up to the stop (which is left out), then the suffix, as the authors'
            `generate` returns them.
        text: `token_ids` decoded, special tokens left out.
        finish_reason: `stop` where a stop was found, `length` where the canvas ran out.
        prompt_tokens: positions of the merged prompt, images included.
        truncated_tokens: prompt positions that were cut off at the model's limit.
        steps: one event per pass of the denoiser.
        timings_ms: milliseconds per stage, in order, and their `total`.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    truncated_tokens: int
    steps: tuple[StepEvent, ...]
    timings_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The object that `lladav run --json` prints."""
        out = asdict(self)
        for step in out["steps"]:
            del step["canvas"]
        return out
