"""What is asked, and what that comes to in token ids."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lladav.errors import OptionError, PromptError
from lladav.manifest import Manifest
from lladav.runtime.clock import Clock
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.gpu.frames import CudaArray, DlpackArray
from lladav.runtime.images import Source
from lladav.runtime.pictures import Prepared
from lladav.runtime.presets import REALTIME_PASSES, Knobs, resolve
from lladav.runtime.prompt import IMAGE_MARK, IMAGE_TOKEN, ChatTokenizer, Message, with_images
from lladav.runtime.template import Template
from lladav.runtime.window import canvas_bucket

AnySource: TypeAlias = Source | DlpackArray | CudaArray

DEFAULT_FRAMES = 32

# Parsed templates that are kept.
_TEMPLATES = 16


@dataclass(frozen=True)
class Question:
    """A question with what it is about.

    Attributes:
        prompt: a question, or the messages of a conversation. `<image>` in it marks where a
            picture goes; without a mark, pictures and then the video come first.
        prompt_ids: the whole prompt as token ids instead, -200 standing for a picture.
        images: files, bytes, PIL pictures or uint8 arrays `[H, W, 3]`; on a GPU also arrays in its memory, which
            are read where they lie (see `runtime/gpu/frames.py`).
        video: a folder of frames or a list of them; takes the place after the pictures.
        video_frames: most frames to look at, spread evenly.
        exif: turn pictures as their EXIF orientation says; the authors do not.
    """

    prompt: str | Sequence[Message] | None = None
    prompt_ids: Sequence[int] | None = None
    images: Sequence[AnySource] = ()
    video: str | Path | Sequence[str | Path] | None = None
    video_frames: int = DEFAULT_FRAMES
    exif: bool = False

    @property
    def pictures(self) -> int:
        """Pictures and videos."""
        return len(self.images) + (self.video is not None)


@dataclass(frozen=True)
class Plan:
    """How answers are made: options with every default filled in.

    Attributes:
        suffix: ids.
        template: parsed, or None.
    """

    config: GenerationConfig
    knobs: Knobs
    schedule: Schedule
    suffix: tuple[int, ...]
    template: Template | None


@dataclass
class Asked:
    """A question on its way to the loop.

    Attributes:
        ids: of the prompt, with `IMAGE_TOKEN` for pictures.
        stops: sequences of ids that end the answer.
        pictures: cut into crops, not encoded yet; videos too.
        masks: mask tokens inside the prompt that are filled too.
        clock: what has been spent on it.
        reused: pictures whose rows were kept from an earlier answer.
    """

    ids: list[int]
    stops: tuple[tuple[int, ...], ...]
    pictures: list[Prepared]
    masks: int
    clock: Clock
    reused: int = 0

    @property
    def image_tokens(self) -> tuple[int, ...]:
        places = sum(1 for i in self.ids if i == IMAGE_TOKEN)
        return tuple(self.pictures[min(i, len(self.pictures) - 1)].rows for i in range(places) if self.pictures)

    @property
    def positions(self) -> int:
        """Of the prompt, before anything is cut off."""
        return sum(1 for i in self.ids if i != IMAGE_TOKEN) + sum(self.image_tokens)


class Encoder:
    """Turns questions and options into ids of one bundle.

    Args:
        manifest: of the bundle.
        tokenizer: of the bundle.
        rows: ids that the embedding has rows for.
    """

    def __init__(self, manifest: Manifest, tokenizer: ChatTokenizer, rows: int) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._rows = rows
        # A robot asks for the same template again and again.
        self._template = functools.lru_cache(_TEMPLATES)(self._parsed)

    def plan(self, config: GenerationConfig) -> Plan:
        """Checks options against one another and the bundle.

        Raises:
            OptionError: options that contradict one another.
        """
        knobs = resolve(config)
        template = None
        length = self._manifest.generation.gen_length
        if config.template is not None:
            template = self._template(config.template)
            length = template.length
            if config.gen_length not in (None, length):
                raise OptionError(
                    f"--gen-length {config.gen_length} and --template contradict each other: "
                    f"the template has {length} tokens",
                    cure="leave --gen-length out",
                )
            largest = self._manifest.buckets.canvas[-1]
            if length > largest:
                raise OptionError(
                    f"--template has {length} tokens and fits no canvas bucket: the largest is {largest}",
                    cure=f"shorten it, or export with --canvas-buckets ...,{length}",
                )
        suffix = config.suffix_ids or tuple(self._tokenizer.encode(config.suffix or ""))
        # Before canvases are made, which of any length would take any memory.
        canvas_bucket(self._manifest.buckets, (config.gen_length or length) + len(suffix))
        schedule = Schedule.of(config, length, REALTIME_PASSES if knobs.preset == "realtime" else None)
        if knobs.selector == "fixed":
            knobs = knobs.model_copy(update={"steps": schedule.steps})
        return Plan(config, knobs, schedule, suffix, template)

    def ids(self, question: Question, config: GenerationConfig) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
        """Ids of a prompt, with `IMAGE_TOKEN` for pictures, and the stops.

        Raises:
            PromptError: no prompt, two of them, or ids that the bundle does not know.
        """
        if (question.prompt is None) == (question.prompt_ids is None):
            raise PromptError("a prompt is needed, as text or as ids, and not both", cure="pass one of the two")
        texts = config.stop or ()
        if question.prompt_ids is not None:
            ids = list(question.prompt_ids)
        else:
            assert question.prompt is not None
            ids = self._tokenizer.chat(_marked(question.prompt, question.pictures))
            if config.stop is None:
                texts = self._manifest.generation.stop
        if not ids:
            raise PromptError("the prompt is empty", cure="pass at least one token")
        self._check([i for i in ids if i != IMAGE_TOKEN], "the prompt")
        stops = tuple(tuple(self._tokenizer.encode(text)) for text in texts) + config.stop_ids
        for stop in stops:
            self._check(stop, "a stop")
        # The end of turn fills the unused length of a template's holes.
        return ids, () if config.template is not None else stops

    def _parsed(self, template: str) -> Template:
        vocab_rows = self._manifest.geometry.language.vocab_rows
        return Template.parse(template, self._tokenizer, self._manifest.tokens, vocab_rows)

    def _check(self, ids: Sequence[int], what: str) -> None:
        for i in ids:
            if not 0 <= i < self._rows:
                raise PromptError(
                    f"{what} holds the token id {i}; this bundle has ids 0 to {self._rows - 1}",
                    cure="use ids of this bundle's tokenizer (-200 marks a picture in a prompt)",
                )


def _marked(prompt: str | Sequence[Message], pictures: int) -> list[Message]:
    """Messages with a mark for every picture."""
    messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if pictures and not any(IMAGE_MARK in message.content for message in messages):
        first = next((i for i, m in enumerate(messages) if m.role == "user"), 0)
        messages[first] = Message(messages[first].role, with_images(messages[first].content, pictures))
    return messages
