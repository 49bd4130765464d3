"""An answer given as text with holes: the text is pinned, only the holes are filled.

What may stand at a position of a hole depends on what has been committed in it before, and
everything that may stand there leads to a valid value. So the answer is valid in whatever order
positions are committed, provided that each is chosen under the `restriction` that holds then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lladav.errors import OptionError
from lladav.manifest import SpecialTokens
from lladav.runtime.holes import Hole, Restriction, Shape, choice_shapes, integer_shapes
from lladav.runtime.prompt import ChatTokenizer
from lladav.runtime.template_syntax import Blank, Outline, read_template

__all__ = ["Hole", "Restriction", "Template", "Value"]

Value = str | int | float | bool | None
"""What a hole can hold: text and choices are strings unless a choice is a JSON value by itself."""

# States of holes whose restrictions are remembered, across the answers to one template: a bound of memory.
_STATES = 256


class _Left(NamedTuple):
    """What is left of a hole with a closed set of values: a rule for each position, and tokens without alternative."""

    rules: tuple[Restriction, ...]
    implied: dict[int, int]


class Template:
    """A canvas with fixed tokens and holes; made by `parse`, and changed by use in nothing but what it remembers.

    Holes are filled up with `filler`, the end of a turn: the model knows it as the end of what it
    has to say. The text of a hole ends before the first filler in it and loses white space at
    both ends; what is committed behind is ignored. The filler is also allowed in the shorter
    values of `{{int}}` and `{{bool}}`, so it must not count as a stop, nor be suppressed.

    Attributes:
        length: positions of the canvas.
        pinned: `[length]` int64, the token of a fixed position and -1 inside holes.
        holes: in their order.
        filler: what stands behind the end inside a hole.
        is_json: the template is a JSON object or array, and so is every answer.
    """

    def __init__(
        self,
        outline: Outline,
        pieces: Sequence[Sequence[int] | Hole],
        free: Restriction,
        tokenizer: ChatTokenizer,
        filler: int,
    ) -> None:
        self.holes = tuple(piece for piece in pieces if isinstance(piece, Hole))
        self.pinned = np.array(
            [t for piece in pieces for t in ([-1] * piece.length if isinstance(piece, Hole) else piece)], np.int64
        )
        self.pinned.flags.writeable = False
        self.length = len(self.pinned)
        self.filler = filler
        self.is_json = outline.is_json
        self._literals = outline.literals
        self._tokenizer = tokenizer
        self._free = free
        self._owners = {position: hole for hole in self.holes for position in hole.positions}
        self._standing = [
            self._free if position in self._owners else Restriction(self.pinned[position : position + 1], allowed=True)
            for position in range(self.length)
        ]
        self._known: dict[tuple[int, bytes], _Left] = {}

    @classmethod
    def parse(cls, text: str, tokenizer: ChatTokenizer, tokens: SpecialTokens, vocab_rows: int) -> Template:
        """Reads a template; see `template_syntax` for how it is written.

        The literals are tokenized each on its own. A single space in front of a text or choice
        goes to the hole, since tokenizers put it into the first token of a word; the rendered
        text does not change by that.

        Args:
            text: with at least one hole.
            tokenizer: of the checkpoint.
            tokens: ids with a role; its `end_of_turn` becomes the filler.
            vocab_rows: length of a row of logits; rows without a token are refused in text.

        Raises:
            OptionError: the template is malformed, or the tokenizer cannot spell a part of it.
            PromptError: the text is not valid Unicode.
        """
        outline = read_template(text)
        spell = _Speller(tokenizer, tokens, vocab_rows)
        pieces: list[Sequence[int] | Hole] = []
        start = 0
        for literal, blank, place in zip(outline.literals, outline.blanks, outline.places, strict=False):
            lends = blank.kind != "int" and literal[-1:] == " " and not literal[-2:-1].isspace()
            space, shapes = spell.hole(blank, " " if lends else "")
            ids = spell.literal(literal[: len(literal) - len(space)])
            length = len(shapes[0]) if shapes else blank.size
            hole = Hole(place.name, start + len(ids), length, blank.kind, place.is_json, shapes)
            pieces += [ids, hole]
            start = hole.start + length
        pieces.append(spell.literal(outline.literals[-1]))
        return cls(outline, pieces, spell.free(outline.is_json), tokenizer, tokens.end_of_turn)

    def restrictions(self, ids: np.ndarray, masked: np.ndarray) -> list[Restriction]:
        """What may be committed at every position.

        Holds until something else is committed in the same hole: of several positions of one
        hole in one pass, each needs its own restriction after the one before is committed.
        In text holes nothing depends on what was committed.

        Args:
            ids: `[length]` int64, what is committed so far.
            masked: `[length]` bool, where nothing is committed yet.

        Raises:
            ValueError: something was committed that was not allowed.
        """
        out = self._standing.copy()
        for hole in self.holes:
            if hole.shapes:
                out[hole.span] = self._of_shapes(hole, ids, masked).rules
        return out

    def implied(self, ids: np.ndarray, masked: np.ndarray) -> dict[int, int]:
        """What masked positions become without being asked: behind a filler, or where one token is left.

        Args:
            ids: `[length]` int64, what is committed so far.
            masked: `[length]` bool.

        Returns:
            Tokens by position.
        """
        out: dict[int, int] = {}
        for hole in self.holes:
            if hole.shapes:
                out |= self._of_shapes(hole, ids, masked).implied
            else:
                ends = (p for p in hole.positions if not masked[p] and ids[p] == self.filler)
                out |= self._fillers(hole, next(ends, hole.stop), masked)
        return out

    def follow(self, rules: list[Restriction], ids: np.ndarray, masked: np.ndarray, after: int) -> dict[int, int]:
        """What changes when a position, the only one since, was committed.

        Args:
            rules: `restrictions` as they were before; become what they are now.
            ids: `[length]` int64, what is committed so far.
            masked: `[length]` bool.
            after: the position, in a hole.

        Returns:
            What `implied` has for its hole.

        Raises:
            ValueError: something was committed that was not allowed.
        """
        hole = self._owners[after]
        if not hole.shapes:
            return self._fillers(hole, after, masked) if ids[after] == self.filler else {}
        now = self._of_shapes(hole, ids, masked)
        rules[hole.span] = now.rules
        return now.implied

    def _fillers(self, hole: Hole, end: int, masked: np.ndarray) -> dict[int, int]:
        """What follows in a hole of text from a filler at its position `end`."""
        return {position: self.filler for position in range(end, hole.stop) if masked[position]}

    def _of_shapes(self, hole: Hole, ids: np.ndarray, masked: np.ndarray) -> _Left:
        """What is left of a hole with a closed set of values."""
        own, open_places = ids[hole.span], masked[hole.span]
        key = hole.start, own.tobytes() + open_places.tobytes()
        found = self._known.get(key)
        if found is None:
            rules = hole.restrictions(np.where(open_places, -1, own).tolist())
            if len(self._known) >= _STATES:
                self._known.clear()
            found = self._known[key] = _Left(
                rules,
                {
                    position: int(rule.ids[0])
                    for position, rule, still in zip(hole.positions, rules, open_places.tolist(), strict=True)
                    if still and len(rule.ids) == 1
                },
            )
        return found

    def hole_text(self, hole: Hole, ids: np.ndarray) -> str:
        """Text of a hole up to its first filler, without white space at both ends; masks are left out."""
        found = ids[hole.span]
        ends = np.flatnonzero(found == self.filler)
        return self._tokenizer.decode(found[: ends[0] if len(ends) else None].tolist()).strip()

    def render(self, ids: np.ndarray) -> str:
        """The whole answer, literals as they were written."""
        first, *others = self._literals
        texts = (self.hole_text(hole, ids) for hole in self.holes)
        return first + "".join(text + literal for text, literal in zip(texts, others, strict=True))

    def values(self, ids: np.ndarray) -> dict[str, Value]:
        """What every hole holds, by its name, on a canvas that is filled.

        Raises:
            ValueError: an integer, truth value or bare JSON choice is not filled yet.
        """
        return {hole.name: self._value(hole, ids) for hole in self.holes}

    def _value(self, hole: Hole, ids: np.ndarray) -> Value:
        text = self.hole_text(hole, ids)
        value: Value = json.loads(text) if hole.is_json else text
        return value


class _Speller:
    """Ids of the parts of a template, all of which the model can take and give."""

    def __init__(self, tokenizer: ChatTokenizer, tokens: SpecialTokens, vocab_rows: int) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._vocabulary = tokenizer.vocabulary(vocab_rows)
        # A mask, or what the model takes for one, would never count as filled.
        self._unusable = frozenset((*self._vocabulary.nameless.tolist(), *tokens.mask_aliases, tokens.mask))

    def literal(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text)
        special = self._unusable.intersection(ids)
        if special:
            names = self._tokenizer.decode(sorted(special), skip_special=False)
            raise OptionError(f"--template has special tokens in its text: {names}", cure="leave them out")
        return ids

    def hole(self, blank: Blank, space: str) -> tuple[str, tuple[Shape, ...]]:
        """The space in front that the hole takes over, and its shapes, of which text has none.

        Choices leave the space alone where they would only differ in length by it.
        """
        if blank.kind == "text":
            return space, ()
        filler = self._tokens.end_of_turn
        if blank.kind == "int":
            *digits, minus = (self._one(character, blank) for character in "0123456789-")
            return "", integer_shapes(digits, minus, blank.size, filler)
        for lead in dict.fromkeys((space, "")):
            words = [self._word(lead + choice, blank) for choice in blank.choices]
            if blank.padded or len(set(map(len, words))) == 1:
                return lead, choice_shapes(words, filler)
        counts = ", ".join(f"{choice} {len(word)}" for choice, word in zip(blank.choices, words, strict=True))
        raise OptionError(
            f"--template: the choices of {blank.written} differ in their number of tokens: {counts}",
            cure=f"choose words of equal numbers, or a free hole {{{{{max(map(len, words))}}}}}",
        )

    def free(self, is_json: bool) -> Restriction:
        """What may not stand in text."""
        refused = {*self._unusable, *self._tokens.suppressed}
        if is_json:
            refused.update(self._vocabulary.unsafe_in_json.tolist())
        return Restriction(_ascending(refused - {self._tokens.end_of_turn}), allowed=False)

    def _word(self, text: str, blank: Blank) -> list[int]:
        ids = self._tokenizer.encode(text)
        spelled = self._tokenizer.decode(ids)
        if spelled != text or self._unusable.intersection(ids):
            raise OptionError(
                f"--template: the tokenizer cannot spell the choice {text.strip()!r} of {blank.written}, "
                f"it makes {spelled!r} of it",
                cure="choose another word; accents must be written as one character with their letter",
            )
        return ids

    def _one(self, character: str, blank: Blank) -> int:
        ids = self._word(character, blank)
        if len(ids) != 1:
            raise OptionError(
                f"--template: {blank.written} needs a token for {character!r}, and the tokenizer takes {len(ids)}",
                cure="use a text hole {{n}} in its place",
            )
        return ids[0]


def _ascending(ids: Iterable[int]) -> np.ndarray:
    return np.array(sorted(ids), np.int64)
