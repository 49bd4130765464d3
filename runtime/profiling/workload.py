"""What is asked while profiling: the user's question, or one made from nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lladav.runtime.config import GenerationConfig
from lladav.runtime.images import Source
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling.record import Workload
from lladav.runtime.results import Answer, StepEvent

SYNTHETIC_PROMPT = "Describe what is in front of the robot."
SYNTHETIC_SIZE = (640, 480)
"""Width and height of the synthetic picture, as many robots' cameras give it."""


@dataclass(frozen=True)
class Asking:
    """A question that can be asked again and again.

    Attributes:
        prompt, images, config: see `Pipeline.generate`.
        prompt_ids: instead of a prompt, with -200 for a picture.
        synthetic: prompt and pictures say nothing; the answer's length does not depend on them either.
    """

    prompt: str | None
    images: Sequence[Source]
    config: GenerationConfig
    prompt_ids: tuple[int, ...] | None = None
    synthetic: bool = False

    def ask(self, pipeline: Pipeline) -> Iterator[StepEvent | Answer]:
        """A stream that has not begun."""
        return pipeline.stream(self.prompt, prompt_ids=self.prompt_ids, images=self.images, config=self.config)

    def describe(
        self, answer: Answer, pipeline: Pipeline, frames_per_second: float | None, load: Sequence[str]
    ) -> Workload:
        """What a comparison goes by, with the sizes that `answer` found."""
        digest = hashlib.sha256(repr((self.prompt, self.prompt_ids)).encode())
        for image in self.images:
            digest.update(_contents(image))
        digest.update(self.config.model_dump_json().encode())
        manifest = pipeline.bundle.manifest
        return Workload(
            checkpoint=manifest.checkpoint.fingerprint,
            question=digest.hexdigest(),
            synthetic=self.synthetic,
            prompt_tokens=answer.prompt_tokens,
            crops=sum(answer.tiles),
            gen_length=self.config.gen_length or manifest.generation.gen_length,
            knobs=answer.knobs,
            deadline_ms=self.config.deadline_ms,
            frames_per_second=frames_per_second,
            load=tuple(load),
        )


def synthetic(pipeline: Pipeline, config: GenerationConfig) -> Asking:
    """A picture of noise where the model sees, and a question whose answer fills the canvas.

    Noise is equal everywhere, needs no file and gives the most crops that its shape can have.
    """
    images = []
    if pipeline.bundle.manifest.geometry.vision is not None:
        width, height = SYNTHETIC_SIZE
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        images.append(Image.fromarray(pixels))
    whole = config.model_copy(update={"stop": ()}) if config.stop is None else config
    return Asking(SYNTHETIC_PROMPT, images, whole, synthetic=True)


def _contents(image: Source) -> bytes:
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    return image if isinstance(image, bytes) else image.tobytes()
