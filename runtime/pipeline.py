"""From a question and pictures to an answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
from pydantic import ValidationError

from lladav.bundle import Bundle
from lladav.errors import OptionError, PromptError
from lladav.runtime import merge
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.denoise import DenoisingLoop, Request
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.embedding import EmbeddingTable, merge_prompt
from lladav.runtime.images import MAX_PIXELS, Source, open_image, preprocess, resampling_is_reference
from lladav.runtime.prompt import IMAGE_TOKEN, ChatTokenizer, Message, with_images
from lladav.runtime.results import Answer, StepEvent
from lladav.runtime.video import preprocess_frames, read_frames
from lladav.runtime.vision import VisionEncoder

Floats = npt.NDArray[np.float32]
Prompt = str | Sequence[Message]
Aspect = Literal["anyres", "pad"]

DEFAULT_FRAMES = 32


class Pipeline:
    """A loaded bundle. Use `Pipeline.load`."""

    def __init__(self, bundle: Bundle, threads: int | None, max_pixels: int) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.max_pixels = max_pixels
        self.tokenizer = ChatTokenizer(
            bundle.file("tokenizer.json"), manifest.tokens, manifest.generation.system_prompt
        )
        self.table = EmbeddingTable(bundle.file(manifest.tables["embed_tokens"].file), manifest.tables["embed_tokens"])
        self.denoiser = Denoiser(bundle, threads)
        self._threads = threads
        self._vision: VisionEncoder | None = None

    @classmethod
    def load(cls, bundle: str | Path, threads: int | None = None, max_pixels: int = MAX_PIXELS) -> Pipeline:
        """Opens a bundle and loads its denoiser; the vision encoder follows with the first picture.

        Args:
            bundle: folder made by `lladav export`.
            threads: of one graph operator; None is one per physical core.
            max_pixels: pictures with more pixels are refused before they are decoded.

        Raises:
            BundleError: the bundle is damaged, unfinished or too new.
            BackendError: ONNX Runtime is missing or refuses a graph.
        """
        if threads is not None and threads < 1:
            raise OptionError(
                f"{threads} threads cannot run anything", cure="pass --threads 1 or more, or leave it out"
            )
        return cls(Bundle.open(bundle), threads, max_pixels)

    @property
    def vision(self) -> VisionEncoder:
        if self._vision is None:
            if not resampling_is_reference():
                warnings.warn(
                    f"Pillow {PIL.__version__} scales pictures to other pixels than the authors' code, so answers may "
                    "differ; install one of `pillow>=10.3,<=13.0`",
                    stacklevel=2,
                )
            self._vision = VisionEncoder(self.bundle, self._threads)
        return self._vision

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        images: Sequence[Source] = (),
        video: str | Path | Sequence[str | Path] | None = None,
        video_frames: int = DEFAULT_FRAMES,
        config: GenerationConfig | None = None,
        exif: bool = False,
    ) -> Answer:
        """Answers a question.

        Args:
            prompt: a question, or the messages of a conversation. `<image>` in it marks where a
                picture goes; without a mark, pictures and then the video come first.
            prompt_ids: the whole prompt as token ids instead, -200 standing for a picture.
            images: files, bytes, PIL pictures or uint8 arrays `[H, W, 3]`.
            video: a folder of frames or a list of them; takes the place after the pictures.
            video_frames: most frames to look at, spread evenly.
            config: lengths, steps, sampling, stops.
            exif: turn pictures as their EXIF orientation says; the authors do not.

        Raises:
            PromptError, ImageError, OptionError: the input cannot be used as it is.
        """
        events = self.stream(
            prompt,
            prompt_ids=prompt_ids,
            images=images,
            video=video,
            video_frames=video_frames,
            config=config,
            exif=exif,
        )
        answer = None
        for item in events:
            answer = item
        assert isinstance(answer, Answer)
        return answer

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        images: Sequence[Source] = (),
        video: str | Path | Sequence[str | Path] | None = None,
        video_frames: int = DEFAULT_FRAMES,
        config: GenerationConfig | None = None,
        exif: bool = False,
    ) -> Iterator[StepEvent | Answer]:
        """As `generate`, yielding every step as it is done, and the `Answer` at the end."""
        config = config or GenerationConfig()
        manifest = self.bundle.manifest
        schedule = Schedule.of(config, manifest.generation.gen_length)
        clock = Clock()
        with clock.stage("tokenize"):
            ids, stops = self._prompt_ids(prompt, prompt_ids, len(images) + (video is not None), config)
            suffix = config.suffix_ids or tuple(self.tokenizer.encode(config.suffix or ""))
            stops += config.stop_ids
            self._check_ids(stops, "a stop")
        features = [self.image_rows(image, config.image_aspect, exif, clock) for image in images]
        if video is not None:
            features.append(self._video_rows(video, video_frames, clock))
        with clock.stage("merge"):
            rows, _ = merge_prompt(ids, self.table, features, manifest.max_prompt)
            whole = sum(1 for i in ids if i != IMAGE_TOKEN) + _image_positions(ids, features)
            loop = DenoisingLoop(
                self.denoiser, self.table, manifest.tokens, Request(rows, schedule, config, stops, suffix)
            )
        steps: list[StepEvent] = []
        for event in loop:
            steps.append(event)
            clock.spent["denoise"] = clock.spent.get("denoise", 0.0) + event.ms
            yield event
        with clock.stage("detokenize"):
            answer = loop.answer_ids()
            text = self.tokenizer.decode(answer)
        yield Answer(
            token_ids=answer,
            text=text,
            finish_reason=loop.finish_reason,
            prompt_tokens=len(rows),
            truncated_tokens=whole - len(rows),
            steps=tuple(steps),
            timings_ms={**clock.spent, "total": sum(clock.spent.values())},
        )

    def _prompt_ids(
        self, prompt: Prompt | None, prompt_ids: Sequence[int] | None, pictures: int, config: GenerationConfig
    ) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
        """Ids of the prompt, and the stops that are given as text."""
        if (prompt is None) == (prompt_ids is None):
            raise PromptError("a prompt is needed, as text or as ids, and not both", cure="pass one of the two")
        stop_texts = config.stop or ()
        if prompt_ids is not None:
            ids = list(prompt_ids)
        else:
            assert prompt is not None
            messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
            if pictures and not any("<image>" in message.content for message in messages):
                first = next((i for i, m in enumerate(messages) if m.role == "user"), 0)
                messages[first] = Message(messages[first].role, with_images(messages[first].content, pictures))
            ids = self.tokenizer.chat(messages)
            if config.stop is None:
                stop_texts = self.bundle.manifest.generation.stop
        if not ids:
            raise PromptError("the prompt is empty", cure="pass at least one token")
        self._check_ids((tuple(i for i in ids if i != IMAGE_TOKEN),), "the prompt")
        return ids, tuple(tuple(self.tokenizer.encode(text)) for text in stop_texts)

    def _check_ids(self, sequences: tuple[tuple[int, ...], ...], what: str) -> None:
        for i in (i for ids in sequences for i in ids):
            if not 0 <= i < self.table.rows:
                raise PromptError(
                    f"{what} holds the token id {i}; this bundle has ids 0 to {self.table.rows - 1}",
                    cure="use ids of this bundle's tokenizer (-200 marks a picture in a prompt)",
                )

    def image_rows(
        self, source: Source, aspect: Aspect = "anyres", exif: bool = False, clock: Clock | None = None
    ) -> Floats:
        """What the language model sees of one picture: rows `[n, D]` float32."""
        clock = clock or Clock()
        with clock.stage("preprocess"):
            picture = open_image(source, exif=exif, max_pixels=self.max_pixels)
            crops = preprocess(picture, self.vision.preprocessing, aspect)
        features, spent = self.vision.encode(crops.pixels)
        clock.add(spent)
        with clock.stage("merge"):
            side = self.vision.geometry.side
            if aspect == "pad":
                plan = merge.crop_plan(side, newline=False)
            else:
                plan = merge.merge_plan(crops.size, crops.grid, side, self.vision.preprocessing.max_tiles)
            return merge.apply(plan, features, self.vision.newline)

    def _video_rows(self, source: str | Path | Sequence[str | Path], limit: int, clock: Clock) -> Floats:
        """Rows of one video, `[n, D]` float32."""
        with clock.stage("preprocess"):
            crops = preprocess_frames(read_frames(source, limit, max_pixels=self.max_pixels), self.vision.preprocessing)
        features, spent = self.vision.encode(crops)
        clock.add(spent)
        with clock.stage("merge"):
            plan = merge.video_plan(len(crops), self.vision.geometry.side, self.vision.preprocessing)
            return merge.apply(plan, features, self.vision.newline)


class Clock:
    """Milliseconds per stage, in the order in which stages first happen."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self.add({name: (perf_counter() - began) * 1e3})

    def add(self, spent: Mapping[str, float]) -> None:
        for name, ms in spent.items():
            self.spent[name] = self.spent.get(name, 0.0) + ms


def _image_positions(ids: Sequence[int], features: Sequence[Floats]) -> int:
    places = sum(1 for i in ids if i == IMAGE_TOKEN)
    return sum(len(features[min(i, len(features) - 1)]) for i in range(places))


def generation_config(**options: object) -> GenerationConfig:
    """A `GenerationConfig` from options of a command line or a request.

    Raises:
        OptionError: naming every option that is unknown or out of range.
    """
    try:
        return GenerationConfig.model_validate(options)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in error.errors())
        raise OptionError(f"these options cannot be used: {faults}", cure="see `lladav run --help`") from error
