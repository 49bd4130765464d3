"""The rules of a template worked out anew each time, by looking at every value that a hole can have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lladav.runtime import Pipeline
from lladav.runtime.template import Hole, Template


class PlainTemplate:
    """What may stand where.

    Args:
        template: for its holes and pinned tokens.
        pipeline: whose tokenizer it was made with.
    """

    def __init__(self, template: Template, pipeline: Pipeline) -> None:
        manifest = pipeline.bundle.manifest
        tokens = manifest.tokens
        vocabulary = pipeline.tokenizer.vocabulary(manifest.geometry.language.vocab_rows)
        self._holes, self._filler = template.holes, template.filler
        self.pinned = {place: token for place, token in enumerate(template.pinned.tolist()) if token >= 0}
        unsafe = vocabulary.unsafe_in_json.tolist() if template.is_json else []
        refused = {*vocabulary.nameless.tolist(), *tokens.mask_aliases, *tokens.suppressed, *unsafe}
        self._refused = list(refused - {self._filler})
        self._values = {
            hole: np.array([value for shape in hole.shapes for value in itertools.product(*shape)])
            for hole in template.holes
            if hole.shapes
        }

    def narrow(self, logits: np.ndarray, place: int, ids: Sequence[int], masked: set[int]) -> None:
        """Rules out what may not stand at a place, in its row of logits `[V]`."""
        hole = self._hole(place)
        if hole.shapes:
            allowed = self._allowed(hole, place, ids, masked)
            logits[[token for token in range(len(logits)) if token not in allowed]] = -np.inf
        else:
            logits[self._refused] = -np.inf

    def forbids(self, token: int, place: int, ids: Sequence[int], masked: set[int]) -> bool:
        """Whether what was decided since has ruled a token out."""
        hole = self._hole(place)
        return bool(hole.shapes) and token not in self._allowed(hole, place, ids, masked)

    def follows(self, ids: Sequence[int], masked: set[int]) -> dict[int, int]:
        """Tokens of masked places where nothing else can stand any more."""
        out = {}
        for hole in self._holes:
            ended = False
            for place in hole.positions:
                if place not in masked:
                    ended |= not hole.shapes and ids[place] == self._filler
                elif ended:
                    out[place] = self._filler
                elif hole.shapes and len(allowed := self._allowed(hole, place, ids, masked)) == 1:
                    (out[place],) = allowed
        return out

    def _hole(self, place: int) -> Hole:
        return next(hole for hole in self._holes if place in hole.positions)

    def _allowed(self, hole: Hole, place: int, ids: Sequence[int], masked: set[int]) -> set[int]:
        values = self._values[hole]
        for number, other in enumerate(hole.positions):
            if other not in masked:
                values = values[values[:, number] == ids[other]]
        return set(values[:, place - hole.start].tolist())
