"""Answers questions with the runtime's own loop, and repeats its passes with the activations on view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.calib.collector import Collector
from lladav.calib.graph_inputs import SavedInputs
from lladav.calib.observed_graph import ObservedGraph
from lladav.calib.passes import (
    CONDITIONS,
    DenoisingPass,
    Prompt,
    conditions_of,
    first_pass,
    passes_of,
    refresh_inputs,
    step_inputs,
)
from lladav.calib.questions import CalibrationQuestion
from lladav.errors import BackendError, PromptError
from lladav.runtime import Message, Pipeline, StepEvent
from lladav.runtime.config import generation_config
from lladav.runtime.embedding import merge_prompt
from lladav.runtime.images import pixel_values
from lladav.runtime.prompt import with_images
from lladav.statistics_header import Asked, Condition

Array = npt.NDArray[Any]

_CROPS = (Condition(kind="base"), Condition(kind="crop"))


class QuestionObserver:
    """See `calibrate.Observer`.

    Args:
        bundle: an open bundle.
        questions: what to ask.
        asked: how they are answered: by the fixed schedule, until the canvas is full.
        saved: where inputs are saved: every crop, and one refresh per question, of the first
            question the first, of the second the second and so on, so that all mask ratios occur.
    """

    def __init__(
        self,
        bundle: Bundle,
        questions: Sequence[CalibrationQuestion],
        asked: Asked,
        saved: SavedInputs | None,
    ) -> None:
        self._manifest = bundle.manifest
        self._questions, self._saved = questions, saved
        self._config = generation_config(
            preset="quality",
            gen_length=asked.gen_length,
            steps=asked.steps,
            refresh_interval=asked.refresh_interval,
            stop=(),
        )
        self._length, self.passes = asked.gen_length, asked.steps
        self._pipeline = Pipeline.load(bundle.path)
        self.conditions: dict[str, tuple[Condition, ...]] = {"denoiser": CONDITIONS}
        if any(question.picture for question in questions):
            self._pipeline.pictures.load()  # a model of text alone says so here
            self.conditions |= {"vision_encoder": _CROPS, "connector": _CROPS}
        self.graphs = {name: ObservedGraph(bundle, name) for name in self.conditions}

    def observe(self, number: int, collector: Collector, advance: Callable[[int], None]) -> None:
        """Counts the crops of one question's picture, and the passes of its answer."""
        question, mask = self._questions[number], self._manifest.tokens.mask
        images = [question.picture] if question.picture else []
        for picture in images:
            self._observe_crops(number, picture, collector)
        prompt = self._merged(question)
        answering = self._pipeline.stream(question.prompt, images=images, config=self._config)
        try:
            passes = passes_of([event for event in answering if isinstance(event, StepEvent)], mask)
        except BackendError:
            # The loop knows that its logits are no numbers; the collector, at which layer that starts.
            self._observe_passes(number, prompt, [first_pass(self._length, mask)], collector, advance)
            raise
        self._observe_passes(number, prompt, passes, collector, advance)

    def _observe_crops(self, number: int, picture: Path, collector: Collector) -> None:
        rule, vision = self._manifest.preprocessing, self._manifest.geometry.vision
        assert rule is not None
        assert vision is not None
        crops = self._pipeline.pictures.picture(picture, "anyres").crops
        for i in range(len(crops)):
            values: dict[str, Array] = {"pixel_values": pixel_values(crops[i : i + 1], mean=rule.mean, std=rule.std)}
            if self._saved:
                self._saved.save("vision_encoder", f"{number:05d}-{i:02d}", values)
            rows = [_CROPS[min(i, 1)]] * vision.tokens
            for graph in ("vision_encoder", "connector"):
                values = self.graphs[graph].run(values, collector.counting(graph, rows))

    def _merged(self, question: CalibrationQuestion) -> Prompt:
        pipe = self._pipeline
        pictures = [pipe.image_rows(question.picture)] if question.picture else []
        ids = pipe.tokenizer.chat([Message("user", with_images(question.prompt, len(pictures)))])
        if not set(ids).isdisjoint(self._manifest.tokens.mask_aliases):
            raise PromptError(
                f"the prompt {question.prompt!r} holds the mask token, whose place the loop would fill too",
                cure="leave it out of the prompts",
            )
        return Prompt(*merge_prompt(ids, pipe.table, pictures, self._manifest.max_prompt))

    def _observe_passes(
        self,
        number: int,
        prompt: Prompt,
        passes: Sequence[DenoisingPass],
        collector: Collector,
        advance: Callable[[int], None],
    ) -> None:
        refreshes = [one for one in passes if one.kind == "refresh"]
        to_save = refreshes[number % len(refreshes)]
        present: dict[str, Array] = {}
        for one in passes:
            canvas = self._pipeline.table.gather(one.canvas)
            window = conditions_of(one, prompt.ids)
            canvas_rows = window[-len(canvas) :]
            count = collector.counting("denoiser", [canvas_rows[row] for row in one.masked], window)
            if one.kind == "refresh":
                inputs = refresh_inputs(self._manifest, prompt.rows, canvas, one.masked)
                if self._saved and one is to_save:
                    self._saved.save("denoiser", f"{number:05d}", inputs)
                present = self.graphs["denoiser"].run(inputs, count)
            else:
                self.graphs["denoiser"].run(step_inputs(present, canvas, one.masked), count)
            advance(1)
