"""Questions to the tiny model that are drawn at random."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from lladav.runtime import GenerationConfig

_T = TypeVar("_T")
# Letters that one word begins with rule out the likeliest second ones, and leave several.
_WORDS = ("aaab|abba|bbbc|bccb|ccca|caac", "110|101|221|212|332|323", "left|lend|leap|look", "abc|xyz")
_TEMPLATES = (
    '{"a": "{{4}}", "b": {{bool}}, "n": {{int:2}}}',
    '{"a": {"b": "WORD {{2}}"}, "n": {{int:1}}}',
    "WORD, OTHER{{3}}",
    "OTHERWORD{{int:2}}",
    "{{6}} and {{bool}}WORD",
)
_KNOBS: dict[str, tuple[str, list[float]]] = {
    "threshold": ("threshold", [0.005, 0.05, 0.5]),
    "factor": ("factor", [0.3, 1.7, 40.0]),
    "frechet": ("delta", [0.0, 0.2, 0.99]),
    "entropy": ("gamma", [0.1, 6.0, 50.0]),
}


class Draw:
    """Draws prompts and options.

    Args:
        seed: equal ones draw the same.
        mask: the mask token.
    """

    def __init__(self, seed: int, mask: int) -> None:
        self._draw = np.random.default_rng(seed)
        self._mask = mask

    def often(self, share: float) -> bool:
        return bool(self._draw.random() < share)

    def one_of(self, values: Iterable[_T]) -> _T:
        found = list(values)
        return found[self._draw.integers(len(found))]

    def prompt(self, *, masks: bool = False) -> list[int]:
        """Ids, some of which may be masks."""
        ids: list[int] = self._draw.integers(0, 250, self.one_of([1, 3, 8, 15, 16, 17, 40])).tolist()
        # The first is none: rounding alone would tell positions apart that see nothing but masks.
        return [ids[0], *(self._mask if masks and self.often(0.05) else token for token in ids[1:])]

    def config(self, *, noise: bool = True) -> GenerationConfig:
        """Options, without stops.

        Args:
            noise: temperatures and random remasking may be among them.
        """
        out = self._template() if self.often(0.4) else self._lengths()
        out |= self._schedule(out, noise=noise) if self.often(0.4) else self._selector()
        if self.often(0.7):
            out["refresh_interval"] = self.one_of(range(9))
        if noise and self.often(0.3):
            out |= {"temperature": self.one_of([0.3, 1.0, 2.5]), "seed": self.one_of(range(5))}
        if self.often(0.3):
            out["cfg_scale"] = self.one_of([0.3, 1.0, 4.0])
        return GenerationConfig(**out)

    def stopped(self, config: GenerationConfig, answer: tuple[int, ...]) -> GenerationConfig:
        """The same with up to three pieces of an answer as stops."""
        starts = [self.one_of(range(len(answer))) for _ in range(self.one_of(range(4)))]
        stops = tuple(answer[start : start + self.one_of([1, 1, 2, 3])] for start in starts)
        return config.model_copy(update={"stop_ids": stops})

    def _template(self) -> dict[str, Any]:
        text = self.one_of(_TEMPLATES)
        for place in ("WORD", "OTHER"):
            text = text.replace(place, "{{" + self.one_of(_WORDS) + "}}")
        return {"template": text}

    def _lengths(self) -> dict[str, Any]:
        length = self.one_of([1, 2, 6, 8, 12, 16, 30])
        out: dict[str, Any] = {"gen_length": length}
        if self.often(0.4):
            out["block_length"] = self.one_of(n for n in range(1, length + 1) if length % n == 0)
        if self.often(0.3):
            out["suffix_ids"] = tuple(self._draw.integers(0, 250, 3).tolist())
        return out

    def _schedule(self, lengths: dict[str, Any], *, noise: bool) -> dict[str, Any]:
        out: dict[str, Any] = {"preset": self.one_of(["exact", "quality", "realtime"]), "selector": "fixed"}
        length = lengths.get("gen_length", 1)
        if self.often(0.5):
            out["steps"] = length // lengths.get("block_length", length) * self.one_of(range(1, 9))
        if noise and self.often(0.3):
            out["remasking"] = "random"
        return out

    def _selector(self) -> dict[str, Any]:
        selector = self.one_of(_KNOBS)
        name, values = _KNOBS[selector]
        return {"selector": selector, name: self.one_of(values)}
