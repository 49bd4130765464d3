"""Templates in several vocabularies, and canvases that fill them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lladav.errors import OptionError
from lladav.manifest import SpecialTokens
from lladav.runtime.prompt import ChatTokenizer
from lladav.runtime.template import Template

ROBOT = '{"object": "{{6}}", "colour": "{{2}}", "graspable": {{bool}}, "side": "{{1}}", "count": {{int}}}'
ROLES = {
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "mask": "<|mdm_mask|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "end_of_turn": "<|eot_id|>",
}


class Vocab:
    """A tokenizer with all that a template asks of it, and rows without a token behind it."""

    def __init__(self, file: Path, rows: int | None = None) -> None:
        raw = Tokenizer.from_file(str(file))
        ids = {role: raw.token_to_id(name) for role, name in ROLES.items()}
        suppressed = tuple(ids[role] for role in ("bos", "eos", "start_header", "end_header"))
        self.tokens = SpecialTokens(**ids, suppressed=suppressed, mask_aliases=(ids["mask"],))
        self.chat = ChatTokenizer(file, self.tokens, "")
        self.rows = rows or max(raw.get_vocab().values()) + 116

    def template(self, text: str) -> Template:
        return Template.parse(text, self.chat, self.tokens, self.rows)

    def refusal(self, text: str) -> OptionError:
        with pytest.raises(OptionError) as caught:
            self.template(text)
        assert "--template" in caught.value.what
        return caught.value

    def ids(self, text: str) -> list[int]:
        return self.chat.encode(text)


def blank(template: Template, vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    masked = template.pinned < 0
    return np.where(masked, vocab.tokens.mask, template.pinned), masked


def put(template: Template, vocab: Vocab, **texts: str) -> np.ndarray:
    """A canvas with these texts in its holes, filled up with fillers."""
    ids, _ = blank(template, vocab)
    for hole in template.holes:
        found = vocab.ids(texts.get(hole.name, ""))
        ids[hole.span] = [*found, *[template.filler] * (hole.length - len(found))]
    return ids


class Filler:
    """Fills canvases with random tokens among those that are allowed, in random orders."""

    def __init__(self, template: Template, vocab: Vocab, seed: int) -> None:
        self.template, self.vocab = template, vocab
        self.rng = np.random.default_rng(seed)
        self.free: np.ndarray | None = None

    def pick(self, position: int, ids: np.ndarray, masked: np.ndarray) -> int:
        restriction = self.template.restrictions(ids, masked)[position]
        assert restriction.ids.dtype == np.int64
        pool = restriction.ids
        if not restriction.allowed:
            if self.rng.random() < 0.2:
                return self.template.filler
            if self.free is None:
                self.free = np.setdiff1d(np.arange(self.vocab.rows), pool)
            pool = self.free
        return int(self.rng.choice(pool))

    def fill(self) -> np.ndarray:
        ids, masked = blank(self.template, self.vocab)
        close = self.rng.random() < 0.5
        if close:
            self.close(ids, masked)
        rules = self.template.restrictions(ids, masked)
        while masked.any():
            position = int(self.rng.choice(np.flatnonzero(masked)))
            ids[position] = self.pick(position, ids, masked)
            masked[position] = False
            follows = self.template.follow(rules, ids, masked, after=position)
            now = self.template.restrictions(ids, masked)
            assert [rule.ids.tolist() for rule in rules] == [rule.ids.tolist() for rule in now]
            if close:
                assert follows == self.template.implied(ids, masked)
                self.close(ids, masked)
        return ids

    def close(self, ids: np.ndarray, masked: np.ndarray) -> None:
        for place, token in self.template.implied(ids, masked).items():
            ids[place], masked[place] = token, False
