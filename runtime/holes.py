"""The holes of a template, and which tokens may stand where in them.

A hole with a closed set of values is a list of *shapes*. A shape has a set of tokens for every
position, and every way to take one of each is a value. A token may be committed where a shape
that agrees with everything committed so far has it. So at any time at least one shape is left,
every position of it can be filled, and whatever the order, the hole ends up with a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

HoleKind = Literal["text", "choice", "int"]

Shape = tuple[frozenset[int], ...]
"""The tokens of each position."""


@dataclass(frozen=True)
class Restriction:
    """What may stand at one position of the canvas.

    Attributes:
        ids: int64, ascending.
        allowed: only `ids` compete; otherwise everything but `ids` does.
    """

    ids: np.ndarray
    allowed: bool


@dataclass(frozen=True)
class Hole:
    """Positions of a canvas that are to be filled.

    Attributes:
        name: key path in a JSON template ("a.b"), else its number from "1".
        start: first position, counted from the start of the canvas.
        length: positions.
        kind: "choice" for `{{bool}}` too.
        is_json: its text is a whole JSON value, not a piece of text.
        shapes: of a hole with a closed set of values; empty where any text may stand.
    """

    name: str
    start: int
    length: int
    kind: HoleKind
    is_json: bool
    shapes: tuple[Shape, ...] = field(default=(), repr=False)

    @property
    def stop(self) -> int:
        """The first position behind it."""
        return self.start + self.length

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def positions(self) -> range:
        return range(self.start, self.stop)

    def restrictions(self, committed: Sequence[int]) -> tuple[Restriction, ...]:
        """What may stand at each position, for a hole with shapes.

        Args:
            committed: id at every position of the hole, negative where it is still masked.

        Raises:
            ValueError: no shape agrees, because a token was committed that was not allowed.
        """
        fitting = [
            shape
            for shape in self.shapes
            if all(token < 0 or token in tokens for token, tokens in zip(committed, shape, strict=True))
        ]
        if not fitting:
            raise ValueError(f"hole {self.name!r} has no value that agrees with the ids {list(committed)}")
        return tuple(
            Restriction(np.array(sorted(frozenset().union(*tokens)), np.int64), allowed=True)
            for tokens in zip(*fitting, strict=True)
        )


def choice_shapes(words: Sequence[Sequence[int]], filler: int) -> tuple[Shape, ...]:
    """One shape per word, each as long as the longest: the others end in fillers."""
    length = max(map(len, words))
    return tuple(tuple(frozenset([t]) for t in (*word, *[filler] * (length - len(word)))) for word in words)


def integer_shapes(digits: Sequence[int], minus: int, most: int, filler: int) -> tuple[Shape, ...]:
    """Integers of 1 to `most` digits, as JSON writes them: no leading zero, and no minus before a zero.

    Args:
        digits: the ids of "0" to "9".
        minus: the id of "-".
        most: digits; a shape has one position more, for the minus, and ends in fillers.
        filler: the id behind the last digit.
    """
    any_digit, not_zero = frozenset(digits), frozenset(digits[1:])
    written: list[tuple[frozenset[int], ...]] = []
    for count in range(1, most + 1):
        rest = (any_digit,) * (count - 1)
        written += [(any_digit if count == 1 else not_zero, *rest), (frozenset([minus]), not_zero, *rest)]
    return tuple(shape + (frozenset([filler]),) * (most + 1 - len(shape)) for shape in written)
