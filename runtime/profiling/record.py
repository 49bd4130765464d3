"""What `profile.json` holds, and how it is read back.

The schema is versioned and documented in `docs/profile.md`; unknown, missing and impossible values are
refused, so that a comparison never reads what it does not understand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from lladav.errors import ProfileError, faults_of
from lladav.runtime.presets import Knobs
from lladav.runtime.profiling.distribution import Distribution
from lladav.runtime.profiling.frames import FrameMetrics
from lladav.runtime.results import PassKind

SCHEMA_VERSION: Literal[1] = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(_Frozen):
    """What was asked; profiles are compared only where all of it is equal.

    Attributes:
        checkpoint: fingerprint of the model's values.
        question: sha256 of prompt, pictures and options that change an answer.
        crops: of all pictures.
        deadline_ms: asked for.
        frames_per_second: of the camera that was played; None asks again as soon as an answer is there.
        load: commands that ran beside it.
    """

    checkpoint: str
    question: str
    synthetic: bool
    prompt_tokens: PositiveInt
    crops: NonNegativeInt
    gen_length: PositiveInt
    knobs: Knobs
    deadline_ms: float | None
    frames_per_second: float | None
    load: tuple[str, ...]


class Setup(_Frozen):
    """What answered; this is what a comparison is about.

    Attributes:
        bundle: sha256 of its manifest.
        precision: type of the matrix products; `quantization` the form of integer weights, or None.
        backend, threads: what computed; threads are None where they were left to the library.
        libraries: versions by name.
        fallbacks: why passes were slower than they should be.
        power_mode: by name, where the board has such; else None.
    """

    lladav: str
    bundle: str
    precision: str
    quantization: str | None
    backend: str
    threads: PositiveInt | None
    libraries: dict[str, str]
    fallbacks: tuple[str, ...]
    system: str
    processor: str
    cores: PositiveInt
    gpu: str | None
    power_mode: str | None


class PassLimit(_Frozen):
    """One pass against what the machine can do at best.

    Attributes:
        bytes: that must move.
        operations: that must run.
        ms: least time, of the dearer of the two.
        bound: what bounds the measured pass.
        share: `ms` by the measured median, without what it waited for a core: 1 is the limit.
        predicted_ms: what such a pass was predicted to take here; None for those over pictures.
    """

    bytes: NonNegativeInt
    operations: NonNegativeInt
    ms: NonNegativeFloat
    bound: Literal["bandwidth", "arithmetic", "host", "launch"]
    share: NonNegativeFloat
    predicted_ms: NonNegativeFloat | None = None


class MachineRates(_Frozen):
    """What the probe reached a second at best: bytes that copies read and write, and operations of matrix products."""

    bytes_s: PositiveFloat
    operations_s: PositiveFloat


class PassProfile(_Frozen):
    """All passes of one graph: `refresh`, `step`, `vision_encoder` or `connector`.

    Attributes:
        ms: inside the graph.
        limit: None where the machine was not probed, or a GPU computed.
    """

    ms: Distribution
    limit: PassLimit | None = None


class StepProfile(_Frozen):
    """The denoising step of one index, over all answers that came as far.

    Attributes:
        ms: whole steps; the four below add up to it.
        graph_ms: in the graph. Where the GPU decides alone, sampling and commit are in there too, and 0 here.
        sampling_ms: from logits to picks.
        commit_ms: selecting, committing, looking for stops.
        host_ms: everything else on the host.
        waiting_ms: of the host, for the GPU; or ready to run while others had the core, where the system tells.
        committed: tokens, mean over the answers; so is `masks_left`.
        mean_confidence: of what was committed; `least_confidence` the least of all answers; None where nothing was.
    """

    step: NonNegativeInt
    kind: PassKind
    ms: Distribution
    graph_ms: Distribution
    sampling_ms: Distribution
    commit_ms: Distribution
    host_ms: Distribution
    waiting_ms: Distribution | None
    committed: NonNegativeFloat
    masks_left: NonNegativeFloat
    mean_confidence: float | None
    least_confidence: float | None


class ShownStep(_Frozen):
    """A step of the answer that is shown; `begin_ms` counts from the answer's first step."""

    kind: PassKind
    begin_ms: NonNegativeFloat
    ms: NonNegativeFloat
    positions: tuple[int, ...]
    confidences: tuple[float, ...]
    tokens: tuple[str, ...]


class Run(_Frozen):
    """One measured answer.

    Attributes:
        began: seconds since 1970.
        ms: from question to answer.
        first_token_ms: to the end of the step that committed something first.
        passes, tokens: of the denoiser, and committed.
    """

    began: float
    ms: NonNegativeFloat
    first_token_ms: NonNegativeFloat
    passes: PositiveInt
    tokens: NonNegativeInt


class Energy(_Frozen):
    """What the board drew while answering.

    Attributes:
        source: `ina3221` or `nvidia-smi`; the carrier board is in neither.
        period_ms: mean time between readings.
        watts: of all readings.
        joules_per_answer: mean power times mean time of an answer.
    """

    source: str
    period_ms: NonNegativeFloat
    watts: Distribution
    joules_per_answer: NonNegativeFloat


class MemoryPart(_Frozen):
    """Bytes of one category: resident ones, or a GPU's.

    Attributes:
        file_backed: the kernel may drop them and read them again.
        how: they were measured.
        on_gpu: held by the GPU's driver; on a board with one memory they are beside the resident ones as well.
    """

    name: str
    bytes: NonNegativeInt
    file_backed: bool
    how: str
    on_gpu: bool = False


class Memory(_Frozen):
    """Memory of the process.

    Attributes:
        parts: by category; each measured on its own, so that their sum may miss the total.
        total: resident bytes at the peak of an answer, as the kernel counted them, and what a GPU's driver counted.
        loading: the same while the bundle was loaded.
        proportional: of the total as it stood at the end, with shared pages divided among those who share them.
        graphics: bytes that the GPU's driver counts for this process, where it tells.
    """

    parts: tuple[MemoryPart, ...]
    total: NonNegativeInt
    loading: NonNegativeInt
    proportional: NonNegativeInt
    graphics: NonNegativeInt | None

    @property
    def unexplained(self) -> float:
        """Share of the total that no category holds; negative where they hold more."""
        return 1 - sum(part.bytes for part in self.parts) / self.total


class LayerPart(_Frozen):
    """One line of the tree: `refresh`, `refresh/attention`, ... or one node of the slowest."""

    name: str
    ms: NonNegativeFloat
    share: NonNegativeFloat


class Layers(_Frozen):
    """Where the time inside graphs goes, from a run of its own: looking costs time.

    Attributes:
        tree: graphs and their kinds of layers, mean milliseconds per pass and share of the graph.
        slowest: ten nodes.
    """

    tree: tuple[LayerPart, ...]
    slowest: tuple[LayerPart, ...]


class SweepPoint(_Frozen):
    """Medians of passes at one pair of buckets."""

    prompt: PositiveInt
    canvas: PositiveInt
    refresh_ms: NonNegativeFloat
    step_ms: NonNegativeFloat
    n: PositiveInt


class Profile(_Frozen):
    """A whole `profile.json`.

    Attributes:
        created: ISO 8601, UTC.
        warmup: answers before those that were measured.
        answer_ms: of `runs`; `first_token_ms` likewise.
        stages: milliseconds by stage of an answer, in order.
        steps: by index.
        passes: by graph.
        rates: that the limits of passes go by.
        tokens_per_pass: committed by pass of the denoiser, over all answers.
        shown: the steps of the answer whose time is the median.
        notes: what could not be measured, and why.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    workload: Workload
    setup: Setup
    warmup: NonNegativeInt
    runs: tuple[Run, ...] = Field(min_length=1)
    answer_ms: Distribution
    first_token_ms: Distribution
    tokens_per_pass: NonNegativeFloat
    stages: dict[str, Distribution]
    steps: tuple[StepProfile, ...]
    passes: dict[str, PassProfile]
    rates: MachineRates | None
    frames: FrameMetrics
    energy: Energy | None
    memory: Memory | None
    layers: Layers | None
    sweep: tuple[SweepPoint, ...]
    shown: tuple[ShownStep, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """The contents of its file."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Reads a `profile.json`.

        Raises:
            ProfileError: it is missing, truncated, of another schema, or has values that cannot be.
        """
        cure = "pass a profile.json that `lladav profile` of this version wrote, or measure again"
        try:
            raw = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ProfileError(f"{path} cannot be read as a profile: {error}", cure=cure) from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise ProfileError(
                f"{path} has the schema {version!r} where this version reads {SCHEMA_VERSION}", cure=cure
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ProfileError(f"{path} is no valid profile: {faults_of(error, 'profile')}", cure=cure) from error
