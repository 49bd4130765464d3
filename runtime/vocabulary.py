"""What the tokens of a tokenizer may be used for, found by spelling each of them once."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

_NOT_IN_JSON = re.compile(r'["\\\x00-\x1f\ufffd]')
"""What ends or escapes a JSON string, is not allowed in one, or stands for part of a character."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids that are no ordinary text, in ascending order.

    Attributes:
        nameless: int64; special and other added tokens, and ids that spell nothing, such as the
            padding rows of a model behind its tokenizer.
        unsafe_in_json: int64; tokens with a quote, a backslash or a control character in them,
            and those that are not valid UTF-8 by themselves: a string of any others can stand
            between the quotes of a JSON string as it is, whatever their order.
    """

    nameless: np.ndarray
    unsafe_in_json: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer, rows: int) -> Vocabulary:
        """Spells every id below `rows`; 0.3 s for 126,464 of them.

        Tokens are spelled one by one, which is what they spell together only with a byte-level
        decoder; LLaDA has one.
        """
        # Part of a character is decoded to U+FFFD.
        spellings = tokenizer.decode_batch([[token] for token in range(rows)], skip_special_tokens=False)
        added = {token for token in tokenizer.get_added_tokens_decoder() if token < rows}
        empty = {token for token, spelling in enumerate(spellings) if not spelling}
        unsafe = [token for token, spelling in enumerate(spellings) if _NOT_IN_JSON.search(spelling)]
        return cls(np.array(sorted(added | empty), np.int64), np.array(unsafe, np.int64))
