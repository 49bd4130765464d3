"""Conversations as text and ids, beside the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPECIAL_TOKENS, tiny_tokenizer

from benchmarks.golden import GoldenSet
from lladav.errors import PromptError
from lladav.manifest import SpecialTokens
from lladav.runtime.prompt import IMAGE_TOKEN, ChatTokenizer, Message, with_images

REAL = SpecialTokens(
    bos=126080,
    eos=126081,
    mask=126336,
    start_header=126346,
    end_header=126347,
    end_of_turn=126348,
    suppressed=(126080, 126081, 126346, 126347),
    mask_aliases=(126336,),
)
TOKENIZER = tiny_tokenizer()
_ids = {t["content"]: t["id"] for t in TOKENIZER["added_tokens"]}
TINY = SpecialTokens(
    bos=_ids["<|startoftext|>"],
    eos=_ids["<|endoftext|>"],
    mask=_ids["<|mdm_mask|>"],
    start_header=_ids["<|start_header_id|>"],
    end_header=_ids["<|end_header_id|>"],
    end_of_turn=_ids["<|eot_id|>"],
    suppressed=(),
    mask_aliases=(_ids["<|mdm_mask|>"],),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(json.dumps(TOKENIZER), "utf-8")
    return ChatTokenizer(file, TINY, "Be kind.")


@pytest.fixture(scope="module")
def real(golden_set: GoldenSet, golden_checkpoint: Callable[[str], Path]) -> ChatTokenizer:
    system = golden_set.facts["prompt"]["prompts"]["no_image"]["prompt"].split("\n\n")[1].split("<|eot_id|>")[0]
    return ChatTokenizer(golden_checkpoint("fp32") / "tokenizer.json", REAL, system)


# ------------------------------------------------------------------ against the recorded reference


@pytest.mark.parametrize(
    "name",
    ["one_image", "no_image", "two_images", "image_last", "multi_turn", "unicode", "empty_user", "specials_in_text"],
)
def test_text_and_ids_are_those_of_the_reference(name: str, golden_set: GoldenSet, real: ChatTokenizer) -> None:
    expected = golden_set.facts["prompt"]["prompts"][name]
    messages = [Message(role, content or "") for role, content in expected["messages"]]
    assert real.render(messages) == expected["prompt"]
    assert real.chat(messages) == expected["ids"]


def test_every_golden_prompt_is_tested(golden_set: GoldenSet) -> None:
    assert len(golden_set.facts["prompt"]["prompts"]) == 8


def test_stop_texts_encode_as_in_the_reference(golden_set: GoldenSet, real: ChatTokenizer) -> None:
    for text, ids in golden_set.facts["prompt"]["stop_ids"].items():
        assert real.encode(text) == ids


def test_marks_one_per_line_give_the_ids_of_marks_in_one_line(golden_set: GoldenSet, real: ChatTokenizer) -> None:
    expected = golden_set.facts["prompt"]["prompts"]["two_images"]
    asked = expected["messages"][0][1].removeprefix("<image> <image>\n")
    assert real.chat([Message("user", with_images(asked, 2))]) == expected["ids"]


# ------------------------------------------------------------------------------------------- laws


@given(TEXT.filter(lambda text: "<image>" not in text), st.integers(0, 5))
def test_every_picture_without_a_place_gets_one(text: str, count: int) -> None:
    assert with_images(text, count).count("<image>") == count
    assert with_images(text, count).endswith(text)


def test_pictures_with_places_stay_where_they_are() -> None:
    assert with_images("before <image> after", 3) == "before <image> after"


@given(text=TEXT)
def test_plain_text_survives_encoding_and_decoding(tiny: ChatTokenizer, text: str) -> None:
    if not any(name in text for name in SPECIAL_TOKENS):
        assert tiny.decode(tiny.encode(text)) == text


@given(contents=st.lists(TEXT, min_size=1, max_size=4))
def test_one_image_id_per_mark(tiny: ChatTokenizer, contents: Any) -> None:
    marked = [f"{text}<image>{text}" for text in contents]
    ids = tiny.chat([Message("user", text) for text in marked])
    assert ids.count(IMAGE_TOKEN) == sum(text.count("<image>") for text in marked)
    assert ids[0] == TINY.bos
    assert all(i >= 0 or i == IMAGE_TOKEN for i in ids)


def test_a_leading_system_message_replaces_the_default(tiny: ChatTokenizer) -> None:
    assert "Be kind." in tiny.render([Message("user", "Hi")])
    text = tiny.render([Message("system", " Be brief.\n"), Message("user", "Hi")])
    assert text.startswith("<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")
    assert "Be kind." not in text


def test_white_space_alone_still_counts_as_a_message(tiny: ChatTokenizer) -> None:
    assert "user" in tiny.render([Message("user", " \n")])
    assert "user" not in tiny.render([Message("user", "")])


def test_special_tokens_are_left_out_of_answers_unless_asked_for(tiny: ChatTokenizer) -> None:
    ids = [*tiny.encode("a cat"), TINY.end_of_turn, TINY.mask]
    assert tiny.decode(ids) == "a cat"
    assert tiny.decode(ids, skip_special=False) == "a cat<|eot_id|><|mdm_mask|>"


def test_a_tokenizer_that_adds_tokens_of_its_own_adds_none_here(tmp_path: Path) -> None:
    bos = {"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    names = {"<|startoftext|>": {"id": "<|startoftext|>", "ids": [TINY.bos], "tokens": ["<|startoftext|>"]}}
    adds_bos = {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text], "special_tokens": names}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**TOKENIZER, "post_processor": adds_bos}), "utf-8")
    tokenizer = ChatTokenizer(file, TINY, "")
    assert tokenizer.encode("A") == [65]
    assert tokenizer.chat([Message("user", "Hi")]).count(TINY.bos) == 1


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        ([Message("robot", "Hi")], "role 'robot'"),
        ([Message("user", "Hi"), Message("system", "Be brief.")], "role 'system'"),
        ([Message("user", "lone \ud800 surrogate")], "not valid Unicode"),
    ],
)
def test_what_cannot_be_a_conversation_says_so(tiny: ChatTokenizer, messages: list[Message], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        tiny.chat(messages)
    assert caught.value.cure


@pytest.mark.parametrize("contents", [None, "", "{}", "not json", b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_an_error(tmp_path: Path, contents: Any) -> None:
    file = tmp_path / "tokenizer.json"
    if contents is not None:
        file.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(PromptError, match="not a usable tokenizer"):
        ChatTokenizer(file, TINY, "")


def test_a_tokenizer_without_the_special_tokens_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(TOKENIZER), "utf-8")
    with pytest.raises(PromptError, match="no token 126348, which should be the end of a turn"):
        ChatTokenizer(file, TINY.model_copy(update={"end_of_turn": 126348}), "")
