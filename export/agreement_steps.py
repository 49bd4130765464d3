"""A quantised bundle's passes on the canvases of another one's answers: what it makes of the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import VerificationError
from lladav.export.agreement_questions import AgreementQuestion
from lladav.manifest import SpecialTokens
from lladav.runtime.backend import CpuBackend
from lladav.runtime.config import GenerationConfig
from lladav.runtime.denoise import DenoisingLoop, Turn
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.loop import Request
from lladav.runtime.pacing import Pacer, PassTimes
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.results import Answer, StepEvent

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_LoopMaker = Callable[..., DenoisingLoop]
"""Makes a loop from what `DenoisingLoop` is made from."""


@dataclass(frozen=True, eq=False)
class Recording:
    """How the reference answered one question.

    Attributes:
        prompt: `[P, D]` float32 rows of the merged prompt.
        text: of the answer.
        steps: of the answer.
        logits: a file per pass, `[rows, tokens]` float32, of the rows that were computed.
    """

    question: AgreementQuestion
    prompt: Floats
    text: str
    steps: tuple[StepEvent, ...]
    logits: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(file.stat().st_size for file in self.logits)


@dataclass(frozen=True, eq=False)
class PassAgreement:
    """One pass of both bundles on one canvas.

    Attributes:
        step: its number in the answer, from 0.
        divergence: `[rows]` float64 nats, KL(reference || quantised) over the tokens that may be picked.
        margins: `[decisions]` float64, how far the two largest logits of the reference are apart
            where it committed a token.
        same: `[decisions]` bool, whether the quantised bundle picks that token too.
    """

    step: int
    divergence: Doubles
    margins: Doubles
    same: npt.NDArray[np.bool_]


class Player:
    """A bundle on the CPU whose answers can be recorded, and led along those of another one.

    Args:
        bundle: an open bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        backend = _Backend(bundle)
        self.pipeline = Pipeline(bundle, backend)
        self._denoiser = backend.loaded

    def record(self, question: AgreementQuestion, folder: Path) -> Recording:
        """Answers a question.

        Args:
            question: it.
            folder: where logits are written.

        Raises:
            VerificationError: they cannot be written.
        """
        recorder: list[_RecordingLoop] = []

        def make(*arguments: Any) -> DenoisingLoop:
            recorder.append(_RecordingLoop(folder, *arguments))
            return recorder[0]

        answer = self._answer(question, make)
        return Recording(question, recorder[0].prompt, answer.text.strip(), answer.steps, tuple(recorder[0].files))

    def follow(self, recording: Recording) -> list[PassAgreement]:
        """Repeats the passes of a recorded answer on its canvases."""
        passes: list[PassAgreement] = []
        self._answer(recording.question, lambda *arguments: _FollowingLoop(recording, passes, *arguments))
        return passes

    def text(self, question: AgreementQuestion) -> str:
        """The bundle's own answer."""
        return self._answer(question, DenoisingLoop).text.strip()

    def _answer(self, question: AgreementQuestion, make: _LoopMaker) -> Answer:
        self._denoiser.make_loop = make
        images = [question.image] if question.image is not None else []
        return self.pipeline.generate(question.prompt, images=images, config=GenerationConfig())


class _Denoiser(Denoiser):
    """Its loops are what `make_loop` makes, which changes from answer to answer."""

    make_loop: _LoopMaker = DenoisingLoop

    def loop(
        self, tokens: SpecialTokens, request: Request, times: PassTimes, pacer: Pacer | None = None
    ) -> DenoisingLoop:
        return self.make_loop(self, self._table, tokens, request, times, pacer)


class _Backend(CpuBackend):
    def denoiser(self, table: EmbeddingTable) -> _Denoiser:
        self.loaded = _Denoiser(self._bundle, self._threads, table)
        return self.loaded


class _RecordingLoop(DenoisingLoop):
    """Writes the logits of every pass to a file."""

    def __init__(self, folder: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._folder = folder
        self.files: list[Path] = []
        self.prompt: Floats = self._request.prompts[0]

    def _evaluate(self, turn: Turn, logits: Any, rows: npt.NDArray[np.int64]) -> None:
        own = _pickable(logits[turn.number][rows], self._suppressed)
        file = self._folder / f"{len(list(self._folder.iterdir()))}.npy"
        try:
            np.save(file, own)
        except OSError as error:
            raise VerificationError(
                f"the reference's logits, {own.nbytes:,} bytes, cannot be written to {file}: {error}",
                cure="free some space, or set TMPDIR to a folder that has some",
            ) from error
        self.files.append(file)
        super()._evaluate(turn, logits, rows)


class _FollowingLoop(DenoisingLoop):
    """Commits what the reference committed, and compares what it would have picked itself."""

    def __init__(self, recording: Recording, passes: list[PassAgreement], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._recording, self._passes = recording, passes

    def _evaluate(self, turn: Turn, logits: Any, rows: npt.NDArray[np.int64]) -> None:
        step = len(self._passes)
        event, reference = self._recording.steps[step], np.load(self._recording.logits[step], mmap_mode="r")
        differ = divergence(reference, _pickable(logits[turn.number][rows], self._suppressed))
        super()._evaluate(turn, logits, rows)
        chosen = _rows_of(turn, event)
        second, first = np.partition(reference[np.searchsorted(turn.computed, chosen)], -2, axis=1)[:, -2:].T
        same = turn.canvas.tokens[chosen] == np.array(event.tokens, np.int64)
        self._passes.append(PassAgreement(step, differ, (first - second).astype(np.float64), same))
        turn.canvas.tokens[chosen] = event.tokens

    def _select(self, turn: Turn) -> npt.NDArray[np.int64]:
        return _rows_of(turn, self._recording.steps[len(self._passes) - 1])


def _pickable(logits: Floats, suppressed: Sequence[int]) -> Floats:
    """A copy without the tokens that are never picked, whose logits picking overwrites."""
    return np.delete(logits, suppressed, axis=1)


def _rows_of(turn: Turn, event: StepEvent) -> npt.NDArray[np.int64]:
    """Rows of the canvas that a step committed."""
    rows = {position: row for row, position in enumerate(turn.canvas.positions.tolist())}
    return np.array([rows[position] for position in event.positions], np.int64)


def divergence(reference: Floats, other: Floats) -> Doubles:
    """KL(reference || other) in nats of every row.

    Args:
        reference: logits `[R, V]`.
        other: logits `[R, V]`.

    Returns:
        `[R]` float64.
    """
    out = np.empty(len(reference))
    for row, pair in enumerate(zip(reference, other, strict=True)):
        ours, theirs = (_log_softmax(logits.astype(np.float64)) for logits in pair)
        out[row] = max(0.0, float((np.exp(ours) * (ours - theirs)).sum()))
    return out


def _log_softmax(logits: Doubles) -> Doubles:
    shifted = logits - logits.max()
    normal: Doubles = shifted - np.log(np.exp(shifted).sum())
    return normal


def canvas_before(steps: Sequence[StepEvent], number: int, mask: int) -> npt.NDArray[np.int64]:
    """Ids of the canvas that a pass saw, `[C]`; all masks for the first one.

    Args:
        steps: of an answer.
        number: of the pass, from 0.
        mask: id of the mask token.
    """
    length = len(steps[number].canvas)
    return np.array(steps[number - 1].canvas if number else [mask] * length, np.int64)
