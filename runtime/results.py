"""What a caller gets: one event per denoising step, and the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lladav.runtime.presets import Knobs
    from lladav.runtime.template import Value

FinishReason = Literal["stop", "length", "deadline"]
PassKind = Literal["refresh", "step"]


@dataclass(frozen=True)
class StepEvent:
    """One denoising step.

    Attributes:
        step: 0, 1, ... over the whole answer.
        kind: `refresh` computed prompt and canvas, `step` the canvas alone.
        block: block that was being filled.
        positions: committed in this step, the best first, counted from the first position of the
            answer (negative: a mask inside the prompt). What follows from them in a template
            without being asked is in `canvas` only.
        tokens: what was committed there.
        confidences: probability of each of them.
        canvas: ids of the answer so far, masks included, `gen_length` of them.
        provisional: the same with what the model last picked in place of masks, as far as it was
            asked; it may still change.
        holes: of a template, what stands in those that have settled, by name.
        masks_left: of the whole canvas.
        forced: how many of the positions were committed because time ran out.
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
    provisional: tuple[int, ...]
    holes: dict[str, str]
    masks_left: int
    forced: int
    ms: float
    graph_ms: float


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        token_ids: up to the stop (which is left out), then the suffix, as the authors'
            `generate` returns them.
        text: `token_ids` decoded, special tokens left out; a template with its holes filled.
        finish_reason: `stop` where a stop was found, `length` where the canvas was filled,
            `deadline` where the rest was committed because time ran out.
        prompt_tokens: positions of the merged prompt, images included.
        image_tokens: of which each place of a picture or video takes, in the order of the prompt.
        tiles: crops of each picture or video that was given.
        reused_pictures: whose features were kept from an earlier answer.
        truncated_tokens: prompt positions that were cut off at the model's limit.
        backend: what computed it.
        fallbacks: why passes on a GPU were not captured as graphs although they should have been.
        knobs: the preset and everything it stands for.
        passes: of the denoiser, by kind; guidance computes two sequences in each.
        mean_confidence: of what was committed, up to the stop; 1 where nothing was.
        forced_tokens: committed because time ran out.
        values: of a template's holes, by name.
        steps: one event per pass of the denoiser.
        timings_ms: milliseconds per stage, in order, and their `total`.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: tuple[int, ...]
    tiles: tuple[int, ...]
    reused_pictures: int
    truncated_tokens: int
    backend: str
    fallbacks: tuple[str, ...]
    knobs: Knobs
    passes: dict[str, int]
    mean_confidence: float
    forced_tokens: int
    values: dict[str, Value] | None
    steps: tuple[StepEvent, ...]
    timings_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The object that `lladav run --json` prints."""
        out = asdict(self)
        out["knobs"] = self.knobs.model_dump(exclude_none=True)
        for step in out["steps"]:
            for name in ("canvas", "provisional", "holes"):
                del step[name]
        return out
