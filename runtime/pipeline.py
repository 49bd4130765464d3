"""From a question and pictures to an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import OptionError
from lladav.machine import check_threads
from lladav.runtime.backend import Backend, CpuBackend
from lladav.runtime.clock import Clock
from lladav.runtime.config import GenerationConfig, generation_config
from lladav.runtime.deadline import DeadlineKeeper
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.images import MAX_PIXELS, Aspect, Source
from lladav.runtime.loop import Loop
from lladav.runtime.pacing import FINISH, Pacer, PassTimes
from lladav.runtime.pictures import FEATURE_CACHE_BYTES, PictureReader
from lladav.runtime.preparation import Preparation
from lladav.runtime.prompt import ChatTokenizer, Message
from lladav.runtime.question import DEFAULT_FRAMES, AnySource, Asked, Encoder, Plan, Question
from lladav.runtime.results import Answer, StepEvent
from lladav.runtime.schema import Schema, parse_object

Floats = npt.NDArray[np.float32]

BATCH = 8
"""Questions that `generate_batch` computes side by side unless told otherwise."""


class Pipeline:
    """A loaded bundle. Use `Pipeline.load`, or `lladav.backends.load` for a GPU.

    Args:
        bundle: an open bundle.
        backend: that computes its graphs.
        max_pixels, feature_cache_bytes: see `load`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        max_pixels: int = MAX_PIXELS,
        feature_cache_bytes: int = FEATURE_CACHE_BYTES,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.tokenizer = ChatTokenizer(
            bundle.file("tokenizer.json"), manifest.tokens, manifest.generation.system_prompt
        )
        self.backend = backend
        self.table = EmbeddingTable.of(bundle)
        self.denoiser = backend.denoiser(self.table)
        self.times = PassTimes.of(manifest.sha256, f"{backend.name}-{backend.setup}")
        self.pictures = PictureReader(bundle, backend, max_pixels, feature_cache_bytes, self.times)
        self._deadlines = DeadlineKeeper(self.times, self.denoiser, self.pictures)
        # Answers share the denoiser's buffers; those that are not streamed wait for one another.
        self._lock = threading.RLock()
        self._encoder = Encoder(manifest, self.tokenizer, self.table.rows)
        self._preparation = Preparation(manifest, self._encoder, self.pictures, self.table)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
        feature_cache_bytes: int = FEATURE_CACHE_BYTES,
    ) -> Pipeline:
        """Opens a bundle on the CPU and loads its denoiser; the vision encoder follows with the first picture.

        Args:
            bundle: folder made by `lladav export`.
            threads: of one graph operator; None is one per physical core.
            max_pixels: pictures with more pixels are refused before they are decoded.
            feature_cache_bytes: most memory for the rows of earlier pictures, so that a further
                question about one skips the vision encoder.

        Raises:
            BundleError: the bundle is damaged, unfinished or too new.
            BackendError: ONNX Runtime is missing or refuses a graph.
            OptionError: more threads than cores, or none.
        """
        check_threads(threads)
        opened = Bundle.open(bundle)
        return cls(opened, CpuBackend(opened, threads), max_pixels, feature_cache_bytes)

    def generate(
        self,
        prompt: str | Sequence[Message] | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        images: Sequence[AnySource] = (),
        video: str | Path | Sequence[str | Path] | None = None,
        video_frames: int = DEFAULT_FRAMES,
        config: GenerationConfig | None = None,
        exif: bool = False,
    ) -> Answer:
        """Answers a question; see `Question` for what it is made of.

        Raises:
            PromptError, ImageError, OptionError: the input cannot be used as it is.
        """
        question = Question(prompt, prompt_ids, images, video, video_frames, exif)
        with self._lock:
            *_, answer = self._stream(question, config or GenerationConfig())
        assert isinstance(answer, Answer)
        return answer

    def stream(
        self,
        prompt: str | Sequence[Message] | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        images: Sequence[AnySource] = (),
        video: str | Path | Sequence[str | Path] | None = None,
        video_frames: int = DEFAULT_FRAMES,
        config: GenerationConfig | None = None,
        exif: bool = False,
    ) -> Iterator[StepEvent | Answer]:
        """As `generate`, yielding every step as it is done, and the `Answer` at the end.

        A stream that is continued after something else was asked of the pipeline raises `OptionError`.
        """
        question = Question(prompt, prompt_ids, images, video, video_frames, exif)
        return self._stream(question, config or GenerationConfig())

    def generate_object(
        self,
        schema: Schema,
        prompt: str | Sequence[Message] | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        images: Sequence[AnySource] = (),
        video: str | Path | Sequence[str | Path] | None = None,
        video_frames: int = DEFAULT_FRAMES,
        config: GenerationConfig | None = None,
        exif: bool = False,
    ) -> tuple[Any, Answer]:
        """Answers with the fields of a schema, filled in.

        Args:
            schema: a pydantic model or a JSON schema of flat fields; see `schema`.
            config: without a template; the others as in `generate`.

        Returns:
            An instance of the model, or a dict for a JSON schema; and the whole answer.

        Raises:
            OptionError: the schema has fields that a template cannot promise; or as `generate`.
        """
        given = (config or GenerationConfig()).model_dump(exclude_unset=True)
        answer = self.generate(
            prompt,
            prompt_ids=prompt_ids,
            images=images,
            video=video,
            video_frames=video_frames,
            config=generation_config(**given, schema=schema),
            exif=exif,
        )
        return parse_object(schema, answer.text), answer

    def generate_batch(
        self, questions: Sequence[Question], config: GenerationConfig | None = None, *, batch: int = BATCH
    ) -> Iterator[Answer]:
        """Answers several questions, as `generate` would one by one, and faster.

        Questions about one picture share the vision encoder's work, and those whose prompts fit
        the same bucket the denoiser's passes.

        Args:
            questions: in the order of the answers.
            config: of all of them.
            batch: most questions to compute side by side; each takes memory for a canvas of
                logits and, with cached steps, for a prompt's keys and values.

        Yields:
            Answers in the order of the questions, as soon as their batch is done.

        Raises:
            OptionError: a deadline, which is for one question; or as `generate`.
        """
        config = config or GenerationConfig()
        if config.deadline_ms is not None:
            raise OptionError(
                "--deadline-ms and a batch contradict each other: a deadline is for one question",
                cure="ask one by one, or leave --deadline-ms out",
            )
        if batch < 1:
            raise OptionError(f"a batch of {batch} answers nothing", cure="pass 1 or more")
        plan = self._encoder.plan(config)
        if self.backend.sequences is not None:
            batch = min(batch, max(1, self.backend.sequences // (2 if config.cfg_scale > 0 else 1)))
        return self._batches([questions[i : i + batch] for i in range(0, len(questions), batch)], plan)

    def _batches(self, batches: Sequence[Sequence[Question]], plan: Plan) -> Iterator[Answer]:
        for questions in batches:
            answers: dict[int, Answer] = {}
            with self._lock:
                asked = [self._preparation.asked(question, plan) for question in questions]
                for group in self._preparation.alike(asked):
                    answers.update(zip(group, self._answer_all([asked[n] for n in group], plan), strict=True))
            yield from (answers[number] for number in range(len(questions)))

    def image_rows(self, source: Source, aspect: Aspect = "anyres", exif: bool = False) -> Floats:
        """What the language model sees of one picture: rows `[n, D]` float32."""
        (rows,), _ = self.pictures.rows([self.pictures.picture(source, aspect, exif=exif)], Clock())
        return rows

    def _stream(self, question: Question, config: GenerationConfig) -> Iterator[StepEvent | Answer]:
        self._load_parts(question, config)
        began = perf_counter()
        with self._lock:
            plan = self._encoder.plan(config)
            asked = self._preparation.asked(question, plan)
            pacer = self._pacer(asked, plan, began) if config.deadline_ms is not None else None
            loop = self._loop([asked], plan, pacer)
        steps: list[StepEvent] = []
        passes = iter(loop)
        while True:
            with self._lock:
                (event,) = next(passes, (None,))
            if event is None:
                break
            steps.append(event)
            asked.clock.add({"denoise": event.ms})
            yield event
        ended = perf_counter()
        answer = self._answer(asked, plan, loop, 0, steps)
        self.times.add(FINISH, (perf_counter() - ended) * 1e3)
        self.times.save(now=False)
        if config.deadline_ms is None:
            self.backend.keep()
        yield answer

    def _load_parts(self, question: Question, config: GenerationConfig) -> None:
        """Loads what only some questions need, so that no deadline pays for what happens once."""
        if question.pictures:
            self.pictures.load()
        if config.template is not None:
            self.tokenizer.vocabulary(self.bundle.manifest.geometry.language.vocab_rows)

    def _pacer(self, asked: Asked, plan: Plan, began: float) -> Pacer:
        assert plan.config.deadline_ms is not None
        length = plan.schedule.gen_length
        return self._deadlines.pacer(
            asked.pictures,
            prompts=[self._preparation.kept(asked)] * (2 if plan.config.cfg_scale > 0 else 1),
            canvas=length + len(plan.suffix),
            rows=length + asked.masks,
            began=began,
            deadline_ms=plan.config.deadline_ms,
            clock=asked.clock,
        )

    def _answer_all(self, asked: Sequence[Asked], plan: Plan) -> list[Answer]:
        loop = self._loop(asked, plan, None)
        steps: list[list[StepEvent]] = [[] for _ in asked]
        for events in loop:
            for own, event, one in zip(steps, events, asked, strict=True):
                if event is not None:
                    own.append(event)
                    one.clock.add({"denoise": event.ms})
        self.backend.keep()
        return [self._answer(one, plan, loop, number, steps[number]) for number, one in enumerate(asked)]

    def _loop(self, asked: Sequence[Asked], plan: Plan, pacer: Pacer | None) -> Loop:
        request = self._preparation.request(asked, plan)
        return self.denoiser.loop(self.bundle.manifest.tokens, request, self.times, pacer)

    def _answer(self, asked: Asked, plan: Plan, loop: Loop, number: int, steps: list[StepEvent]) -> Answer:
        canvas = loop.canvases[number]
        with asked.clock.stage("detokenize"):
            ids = loop.answer_ids(number)
            text = plan.template.render(canvas.ids) if plan.template is not None else self.tokenizer.decode(ids)
        prompt = loop.prompt_tokens(number)
        end = canvas.stop if canvas.stop is not None else canvas.length
        sure = [c for s in steps for p, c in zip(s.positions, s.confidences, strict=True) if 0 <= p < end]
        return Answer(
            token_ids=ids,
            text=text,
            finish_reason=loop.finish_reason(number),
            prompt_tokens=prompt,
            image_tokens=asked.image_tokens,
            tiles=tuple(picture.tiles for picture in asked.pictures),
            reused_pictures=asked.reused,
            truncated_tokens=asked.positions - prompt,
            backend=self.backend.name,
            fallbacks=self.backend.fallbacks,
            knobs=plan.knobs,
            passes={kind: sum(step.kind == kind for step in steps) for kind in ("refresh", "step")},
            mean_confidence=float(np.mean(sure)) if sure else 1.0,
            forced_tokens=sum(step.forced for step in steps),
            values=plan.template.values(canvas.ids) if plan.template is not None else None,
            steps=tuple(steps),
            timings_ms={**asked.clock.spent, "total": sum(asked.clock.spent.values())},
        )
