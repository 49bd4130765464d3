"""From questions and pictures to what the denoising loop is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from lladav.manifest import Manifest
from lladav.runtime.clock import Clock
from lladav.runtime.embedding import EmbeddingTable, merge_prompt
from lladav.runtime.gpu.frames import on_gpu
from lladav.runtime.images import Aspect, Source
from lladav.runtime.loop import Request
from lladav.runtime.pictures import PictureReader, Prepared
from lladav.runtime.question import Asked, Encoder, Plan, Question
from lladav.runtime.sessions import smallest_fitting

Floats = npt.NDArray[np.float32]


class Preparation:
    """What is done with questions of one bundle before the first pass.

    Args:
        manifest: of the bundle.
        encoder: makes ids of questions.
        pictures: makes rows of pictures.
        table: embeddings of ids.
    """

    def __init__(self, manifest: Manifest, encoder: Encoder, pictures: PictureReader, table: EmbeddingTable) -> None:
        self._manifest = manifest
        self._encoder = encoder
        self._pictures = pictures
        self._table = table

    def asked(self, question: Question, plan: Plan) -> Asked:
        """Ids of a question, and its pictures cut into crops.

        Raises:
            PromptError, ImageError: it cannot be used as it is.
        """
        clock, config, knobs = Clock(), plan.config, plan.knobs
        with clock.stage("tokenize"):
            ids, stops = self._encoder.ids(question, config)
        with clock.stage("preprocess"):
            aspect: Aspect = "pad" if config.image_aspect == "pad" else knobs.view
            pictures: list[Prepared] = [
                self._pictures.frame(source, aspect, max_grid=knobs.max_grid)
                if on_gpu(source)
                else self._pictures.picture(cast("Source", source), aspect, max_grid=knobs.max_grid, exif=question.exif)
                for source in question.images
            ]
            if question.video is not None:
                pictures.append(self._pictures.video(question.video, question.video_frames))
        aliases = self._manifest.tokens.mask_aliases
        masks = sum(i in aliases for i in ids) if plan.template is None else 0
        return Asked(ids, stops, pictures, masks, clock)

    def alike(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Numbers of the questions that can be computed side by side: same bucket, same stops.

        Masks inside prompts take rows of logits, of which a pass has as many as a canvas bucket:
        such questions are asked alone.
        """
        groups: dict[object, list[int]] = {}
        for number, one in enumerate(asked):
            bucket = smallest_fitting(self._manifest.buckets.prompt, self.kept(one))
            groups.setdefault((bucket, one.stops, number if one.masks else None), []).append(number)
        return list(groups.values())

    def kept(self, asked: Asked) -> int:
        """Positions of the prompt after `merge_prompt`, which cuts only prompts with pictures."""
        return min(asked.positions, self._manifest.max_prompt) if asked.pictures else asked.positions

    def request(self, asked: Sequence[Asked], plan: Plan) -> Request:
        """Encodes the pictures of questions that are `alike`, each once, and merges them with the text."""
        prompts, shared = [], dict[bytes, Floats]()
        for one in asked:
            rows, one.reused = self._pictures.rows(one.pictures, one.clock, shared)
            with one.clock.stage("merge"):
                prompts.append(merge_prompt(one.ids, self._table, rows, self._manifest.max_prompt)[0])
        return Request(
            tuple(prompts), plan.schedule, plan.config, plan.knobs, asked[0].stops, plan.suffix, plan.template
        )
