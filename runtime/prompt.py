"""Conversations in, token ids out, and answers back to text.

The chat template, the system message and the treatment of `<image>` are those of the authors'
`llava/conversation.py` and `tokenizer_image_token` in `llava/mm_utils.py`, recorded in tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lladav.errors import PromptError
from lladav.manifest import SpecialTokens
from lladav.runtime.tracing import span
from lladav.runtime.vocabulary import Vocabulary

IMAGE_TOKEN = -200
"""Stands in the ids where the rows of one picture go."""

IMAGE_MARK = "<image>"
"""Stands in the text where a picture goes."""

_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn: `role` is "user" or "assistant", or "system" in the first message of a conversation."""

    role: str
    content: str


def with_images(text: str, count: int) -> str:
    """`text` with a mark for each of `count` pictures in front, unless it has marks already.

    Gives the same ids as the authors' evaluation, which puts several marks on one line: the
    character after each mark is lost in any case (see `ChatTokenizer.chat`).
    """
    return text if IMAGE_MARK in text else f"{IMAGE_MARK}\n" * count + text


class ChatTokenizer:
    """The tokenizer of a checkpoint with the authors' conversation format.

    Args:
        tokenizer_json: `tokenizer.json` of the checkpoint.
        tokens: ids with a role; their names are looked up in the tokenizer.
        system_prompt: what the system says unless the conversation starts with a system message.

    Raises:
        PromptError: the file is missing or no tokenizer, or lacks one of the special tokens.
    """

    def __init__(self, tokenizer_json: str | Path, tokens: SpecialTokens, system_prompt: str) -> None:
        cure = "copy the bundle again from where it was exported, or export it again"
        try:
            with span("load tokenizer"):
                self._tokenizer = Tokenizer.from_str(Path(tokenizer_json).read_text("utf-8"))
        # The library raises plain Exception for a file that it cannot parse.
        except Exception as error:
            raise PromptError(f"{tokenizer_json} is not a usable tokenizer: {error}", cure=cure) from error
        self.system_prompt = system_prompt
        self._vocabularies: dict[int, Vocabulary] = {}

        def name(role: str, token: int) -> str:
            found = self._tokenizer.id_to_token(token)
            if found is None:
                raise PromptError(f"{tokenizer_json} has no token {token}, which should be {role}", cure=cure)
            return str(found)

        self._bos = name("the start of a text", tokens.bos)
        self._start_header = name("the start of a header", tokens.start_header)
        self._end_header = name("the end of a header", tokens.end_header)
        self._end_of_turn = name("the end of a turn", tokens.end_of_turn)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the assistant's answer starts.

        A message without content is skipped, and the others lose white space at both ends.

        Raises:
            PromptError: no message, an unknown role, or a system message that is not the first.
        """
        if not messages:
            raise PromptError("the conversation has no messages", cure="pass at least one user message")
        system, turns = Message("system", self.system_prompt), list(messages)
        if turns[0].role == "system":
            system, *turns = turns
        for turn in turns:
            if turn.role not in _ROLES:
                raise PromptError(
                    f"a message has the role {turn.role!r}",
                    cure="use user or assistant; system is for the first message only",
                )
        said = [system, *(turn for turn in turns if turn.content)]
        body = "".join(f"{self._header(m.role)}{m.content.strip()}{self._end_of_turn}" for m in said)
        return f"{self._bos}{body}{self._header('assistant')}"

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, with `IMAGE_TOKEN` for every `<image>` in it.

        The text between marks is tokenized piece by piece. Of every piece after the first the
        leading id is dropped, whatever it is: the authors expect a BOS there, which their
        tokenizer does not add, and so lose the line break after `<image>`, or the end of the
        turn where the mark is last. The model has never seen it otherwise.

        Raises:
            PromptError: as `render`, or text that is not valid Unicode.
        """
        first, *others = (self.encode(piece) for piece in self.render(messages).split(IMAGE_MARK))
        ids = first
        for piece in others:
            ids += [IMAGE_TOKEN, *piece[1:]]
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; names of special tokens in it become those tokens, nothing is added.

        Raises:
            PromptError: the text is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text is not valid Unicode: {error}", cure="remove lone surrogates from it"
            ) from error
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; `skip_special=False` keeps the names of special tokens, as the authors print them."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def vocabulary(self, rows: int) -> Vocabulary:
        """What the ids below `rows` may be used for; worked out once."""
        if rows not in self._vocabularies:
            self._vocabularies[rows] = Vocabulary.of(self._tokenizer, rows)
        return self._vocabularies[rows]

    def _header(self, role: str) -> str:
        return f"{self._start_header}{role}{self._end_header}\n\n"
