"""How well does a quantised bundle keep what another bundle of the same checkpoint computes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from lladav.bundle import Bundle
from lladav.errors import BundleError
from lladav.export.agreement_layers import LayerError, Values, layer_errors, refresh_inputs
from lladav.export.agreement_questions import AgreementQuestion, gather_questions
from lladav.export.agreement_steps import PassAgreement, Player, Recording, canvas_before
from lladav.export.progress import Progress
from lladav.manifest import Manifest
from lladav.runtime.images import pixel_values

LAYER_QUESTIONS = 4
"""Questions, the first ones, whose passes are compared layer by layer."""

# Of the reference's logits that lie in files at a time; then the bundles change places.
_LOGIT_BYTES = 4 << 30
_COARSENESS = (None, "w8", "w8a8", "w4")


@dataclass(frozen=True)
class LayerKind:
    """Linear layers of one kind.

    Attributes:
        graph: that computes them.
        error: root of the mean of their squared relative errors.
        worst: largest relative error.
    """

    graph: str
    kind: str
    layers: int
    error: float
    worst: float


@dataclass(frozen=True)
class StepAgreement:
    """The passes of one number in their answers.

    Attributes:
        step: from 1; None for all passes.
        rows: whose logits were compared.
        divergence_mean: nats, KL(reference || quantised).
        divergence_max: nats.
        decisions: tokens that the reference committed.
        same: share of them that the quantised bundle would have picked too.
        same_by_margin: the same, each decision counting by how far the reference's two largest logits are apart.
    """

    step: int | None
    rows: int
    divergence_mean: float
    divergence_max: float
    decisions: int
    same: float
    same_by_margin: float


@dataclass(frozen=True)
class AnswerAgreement:
    """Whole answers, each bundle on its own canvases.

    Attributes:
        asked: questions.
        equal: share of answers that are the same text.
        judged: questions whose right answer is known.
        reference_right: share of exact matches among these; None where there are none.
        quantised_right: likewise.
    """

    asked: int
    equal: float
    judged: int
    reference_right: float | None
    quantised_right: float | None


@dataclass(frozen=True)
class AgreementReport:
    """What a comparison found.

    Attributes:
        reference: numbers of the reference, in words.
        quantised: of the other.
        notes: what has to be known to read it.
        layers: every linear layer, in the order of the computation.
        steps: by number of the pass.
        total: all passes.
        seconds: that it took.
    """

    reference: str
    quantised: str
    notes: tuple[str, ...]
    layers: tuple[LayerError, ...]
    steps: tuple[StepAgreement, ...]
    total: StepAgreement
    answers: AnswerAgreement
    seconds: float

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Layers by what they are in their block."""
        grouped: dict[tuple[str, str], list[float]] = {}
        for layer in self.layers:
            grouped.setdefault((layer.graph, layer.kind), []).append(layer.error)
        return tuple(
            LayerKind(*which, len(errors), float(np.sqrt(np.mean(np.square(errors)))), max(errors))
            for which, errors in grouped.items()
        )

    @property
    def worst(self) -> tuple[LayerError, ...]:
        """Layers, the largest error first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.error))

    def to_json(self) -> dict[str, Any]:
        """The object that `lladav verify --quantized --json` prints."""
        return {**asdict(self), "kinds": [asdict(kind) for kind in self.kinds]}


def agreement(
    quantised: str | Path,
    reference: str | Path,
    *,
    images: str | Path | None = None,
    prompts: str | Path | None = None,
    questions: str | Path | None = None,
    limit: int | None = None,
    progress: Progress = Progress(),  # noqa: B008 - immutable
) -> AgreementReport:
    """Compares two bundles of one checkpoint, and judges neither.

    Linear layers are compared on the reference's values, a block at a time; passes of the denoising
    loop on the canvases of the reference's answers, as in teacher forcing; whole answers as each bundle
    gives them. The two are in memory one after the other: the reference's logits go to a temporary folder
    of at most 4 GB and one answer.

    Args:
        quantised: folder of the one.
        reference: folder of the other, in fp32 or fp16 as a rule.
        images, prompts, questions, limit: see `agreement_questions.gather_questions`.
        progress: called with stages and what is done of them.

    Raises:
        BundleError: bundles of different checkpoints, sizes or versions.
        ImageError, PromptError, OptionError: nothing to ask, or nothing that can be read.
        BackendError: ONNX Runtime cannot run one of the bundles here.
        VerificationError: logits that cannot be kept.
    """
    began = perf_counter()
    ours, theirs = Bundle.open(reference), Bundle.open(quantised)
    _check_pair(ours, theirs)
    sees = ours.manifest.geometry.vision is not None
    asked = gather_questions(_path(images), _path(prompts), _path(questions), limit, sees=sees)
    inputs, passes, texts = _compare_answers(ours, theirs, asked, progress)
    layers = layer_errors(ours, theirs, inputs, progress)
    return AgreementReport(
        reference=ours.manifest.numbers,
        quantised=theirs.manifest.numbers,
        notes=_notes(ours.manifest, theirs.manifest),
        layers=tuple(layers),
        steps=tuple(
            _summary(step + 1, [one for one in passes if one.step == step])
            for step in sorted({one.step for one in passes})
        ),
        total=_summary(None, passes),
        answers=_answers(asked, texts),
        seconds=perf_counter() - began,
    )


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _check_pair(reference: Bundle, quantised: Bundle) -> None:
    one, other = reference.manifest, quantised.manifest
    cure = "export both from one checkpoint, with the same --vocab-rows"
    if one.checkpoint.fingerprint != other.checkpoint.fingerprint:
        raise BundleError(
            f"{quantised.path} is of the checkpoint {other.checkpoint.fingerprint[:12]}, {reference.path} of "
            f"{one.checkpoint.fingerprint[:12]}",
            cure=cure,
        )
    if one.geometry != other.geometry:
        raise BundleError(
            f"{quantised.path} has another geometry than {reference.path}: {other.geometry} instead of {one.geometry}",
            cure=cure,
        )


def _notes(reference: Manifest, quantised: Manifest) -> tuple[str, ...]:
    one, other = (_COARSENESS.index(m.quantization.form if m.quantization else None) for m in (reference, quantised))
    notes = []
    if one:
        coarser = "more coarsely than" if one > other else "as coarsely as" if one == other else "too, but finer than"
        notes.append(f"the reference is quantised {coarser} the other bundle: differences are errors of both")
    if quantised.quantization and (kept := quantised.quantization.kept):
        notes.append(f"{len(kept)} linear layers are no integers: {', '.join(kept)}")
    return tuple(notes)


def _compare_answers(
    reference: Bundle, quantised: Bundle, asked: Sequence[AgreementQuestion], progress: Progress
) -> tuple[dict[str, list[Values]], list[PassAgreement], list[tuple[str, str]]]:
    """Inputs for the comparison of layers, all passes, and both answers to every question."""
    inputs: dict[str, list[Values]] = {}
    passes: list[PassAgreement] = []
    texts: list[tuple[str, str]] = []
    progress.start("answers", 2 * len(asked))
    while len(texts) < len(asked):
        with TemporaryDirectory(prefix="lladav-") as folder:
            recordings: list[Recording] = []
            player = Player(reference)
            while len(texts) + len(recordings) < len(asked) and sum(r.bytes for r in recordings) < _LOGIT_BYTES:
                number = len(texts) + len(recordings)
                recordings.append(player.record(asked[number], Path(folder)))
                if number < LAYER_QUESTIONS:
                    _add_inputs(inputs, player, recordings[-1], number)
                progress.advance(1)
            del player  # before the other bundle is loaded
            player = Player(quantised)
            for recording in recordings:
                passes += player.follow(recording)
                texts.append((recording.text, player.text(recording.question)))
                progress.advance(1)
            del player
    return inputs, passes, texts


def _add_inputs(inputs: dict[str, list[Values]], player: Player, recording: Recording, number: int) -> None:
    """Of the first question the first pass, of the second the second and so on, so that canvases differ."""
    pipe = player.pipeline
    manifest = pipe.bundle.manifest
    canvas = canvas_before(recording.steps, number % len(recording.steps), manifest.tokens.mask)
    masked = np.flatnonzero(canvas == manifest.tokens.mask)
    window = refresh_inputs(recording.prompt, pipe.table.gather(canvas), masked)
    inputs.setdefault("denoiser", []).append(window)
    if recording.question.image is not None:
        rule = manifest.preprocessing
        assert rule is not None
        crops = pipe.pictures.picture(recording.question.image, "anyres").crops[:1]
        pixels = pixel_values(crops, mean=rule.mean, std=rule.std)
        inputs.setdefault("vision_encoder", []).append({"pixel_values": pixels})


def _summary(step: int | None, passes: Sequence[PassAgreement]) -> StepAgreement:
    divergence, margins, same = (
        np.concatenate([getattr(one, name) for one in passes]) for name in ("divergence", "margins", "same")
    )
    return StepAgreement(
        step=step,
        rows=len(divergence),
        divergence_mean=float(divergence.mean()),
        divergence_max=float(divergence.max()),
        decisions=len(same),
        same=float(same.mean()) if len(same) else 1.0,
        same_by_margin=float((margins * same).sum() / margins.sum()) if margins.any() else 1.0,
    )


def _answers(asked: Sequence[AgreementQuestion], texts: Sequence[tuple[str, str]]) -> AnswerAgreement:
    known = zip((question.answer for question in asked), texts, strict=True)
    judged = [(answer, *both) for answer, both in known if answer is not None]
    right = [np.mean([given[which] == given[0] for given in judged]).item() if judged else None for which in (1, 2)]
    return AnswerAgreement(
        asked=len(asked),
        equal=float(np.mean([ours == theirs for ours, theirs in texts])),
        judged=len(judged),
        reference_right=right[0],
        quantised_right=right[1],
    )
