"""Tokens with a role, and tokenizers that prompts were not built for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER_LENGTH, write_json, write_tiny_checkpoint

from lladav.errors import CheckpointError
from lladav.export.checkpoint import Checkpoint
from lladav.export.tokenizer_config import read_tokens, tokenizer_length
from lladav.manifest import SpecialTokens

Edit = Callable[[dict[str, Any]], object]
FIRST_SPECIAL = TOKENIZER_LENGTH - len(SPECIAL_TOKENS)


def edited(folder: Path, file: str, edit: Edit) -> Checkpoint:
    write_tiny_checkpoint(folder)
    value = json.loads((folder / file).read_text())
    edit(value)
    write_json(folder / file, value)
    return Checkpoint.open(folder)


def refused(folder: Path, file: str, edit: Edit, message: str) -> None:
    checkpoint = edited(folder, file, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tokens(checkpoint)
    assert str(folder) in caught.value.what


def test_roles_of_the_tiny_tokenizer(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path))
    ids = {name: FIRST_SPECIAL + n for n, name in enumerate(SPECIAL_TOKENS)}
    bos, eos = ids["<|startoftext|>"], ids["<|endoftext|>"]
    start, end = ids["<|start_header_id|>"], ids["<|end_header_id|>"]
    assert tokenizer_length(checkpoint) == TOKENIZER_LENGTH
    assert read_tokens(checkpoint) == SpecialTokens(
        bos=bos,
        eos=eos,
        mask=ids["<|mdm_mask|>"],
        start_header=start,
        end_header=end,
        end_of_turn=ids["<|eot_id|>"],
        suppressed=(bos, eos, start, end),
        mask_aliases=(ids["<|mdm_mask|>"],),
    )


def test_roles_of_the_reference_tokenizer(shared: Path, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(shared / "reference" / name, folder / name)
    opened = Checkpoint.open(folder)
    # Only the ids matter here; the tiny embedding is too short for them.
    checkpoint = Checkpoint(opened.path, json.loads((shared / "reference" / "config.llada-v.json").read_text()), {}, {})
    tokens = read_tokens(checkpoint)
    assert tokens.suppressed == (126080, 126081, 126346, 126347)
    assert (tokens.mask, tokens.end_of_turn) == (126336, 126348)
    assert tokenizer_length(checkpoint) == 126349
    with pytest.raises(CheckpointError, match="up to id 126348, but the embedding table has 320 rows"):
        read_tokens(opened)


def test_roles_of_the_golden_checkpoint(golden_checkpoint: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint("fp32"))
    assert read_tokens(checkpoint).suppressed == (126080, 126081, 126346, 126347)
    assert tokenizer_length(checkpoint) == 126349


def test_lists_every_missing_token(tmp_path: Path) -> None:
    def drop(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"] = [
            t for t in tokenizer["added_tokens"] if t["content"] not in ("<|mdm_mask|>", "<|eot_id|>")
        ]

    refused(tmp_path, "tokenizer.json", drop, r"lacks <\|mdm_mask\|>, <\|eot_id\|>")


def test_missing_names_of_bos_and_eos(tmp_path: Path) -> None:
    def drop(config: dict[str, Any]) -> None:
        del config["bos_token"]
        config["eos_token"] = "</s>"

    refused(tmp_path, "tokenizer_config.json", drop, "lacks the bos token's name, </s>")


@pytest.mark.parametrize("value", ["<|startoftext|>", {"content": "<|startoftext|>", "lstrip": False}])
def test_bos_may_stand_in_the_special_tokens_map(tmp_path: Path, value: object) -> None:
    checkpoint = edited(tmp_path, "tokenizer_config.json", lambda config: config.pop("bos_token"))
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": value})
    assert read_tokens(checkpoint).bos == FIRST_SPECIAL


def test_mask_token_id_must_agree(tmp_path: Path) -> None:
    mask = FIRST_SPECIAL + SPECIAL_TOKENS.index("<|mdm_mask|>")
    assert read_tokens(edited(tmp_path, "config.json", lambda c: c.update(mask_token_id=mask))).mask == mask
    refused(tmp_path, "config.json", lambda c: c.update(mask_token_id=126336), f"is 126336, but .* has id {mask}")


def test_bos_token_id_of_the_config_is_ignored(tmp_path: Path) -> None:
    assert read_tokens(edited(tmp_path, "config.json", lambda c: c.update(bos_token_id=128000))).bos == FIRST_SPECIAL


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(model={"type": "Unigram", "vocab": [["a", 0.0]]}), "no byte-level BPE"),
        (lambda t: t.update(model=None), "no byte-level BPE"),
        (lambda t: t.update(added_tokens=[{"id": 3}]), "no byte-level BPE"),
        (lambda t: t.update(added_tokens=7), "no byte-level BPE"),
        (lambda t: t["model"]["vocab"].update(a="0"), "not whole numbers"),
        (
            lambda t: t["model"]["vocab"].update({"<|mdm_mask|>": 5}),
            r"ambiguous about 1 tokens: <\|mdm_mask\|> is 5 and",
        ),
    ],
)
def test_refuses_a_tokenizer_it_does_not_understand(tmp_path: Path, edit: Edit, message: str) -> None:
    refused(tmp_path, "tokenizer.json", edit, message)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"3": {"content": "<|mdm_mask|>"}}, "ambiguous about 1 tokens"),
        ({"300": {"content": "<im_patch>"}}, "<im_patch> is only in tokenizer_config.json"),
        ({"x": {"content": "y"}}, "no byte-level BPE"),
        ([], None),
    ],
)
def test_added_tokens_of_both_files_must_agree(tmp_path: Path, decoder: object, message: str | None) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["added_tokens_decoder"] = decoder

    if message is None:
        read_tokens(edited(tmp_path, "tokenizer_config.json", edit))
    else:
        refused(tmp_path, "tokenizer_config.json", edit, message)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_refuses_a_missing_tokenizer(tmp_path: Path, name: str) -> None:
    (write_tiny_checkpoint(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}"):
        read_tokens(Checkpoint.open(tmp_path))


@pytest.mark.parametrize("name", ["add_bos_token", "add_eos_token"])
def test_refuses_a_tokenizer_that_adds_tokens(tmp_path: Path, name: str) -> None:
    refused(
        tmp_path, "tokenizer_config.json", lambda c: c.update({name: True}), f"adds special tokens .*{name} is true"
    )


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ONE = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("processor", "accepted"),
    [
        (None, True),
        (BYTE_LEVEL, True),
        ({"type": "Sequence", "processors": [BYTE_LEVEL]}, True),
        ({"type": "TemplateProcessing", "single": [ONE], "pair": [ONE, ONE], "special_tokens": {}}, True),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}, False),
        ({"type": "Sequence", "processors": [{"type": "BertProcessing"}]}, False),
    ],
)
def test_post_processors(tmp_path: Path, processor: object, accepted: bool) -> None:
    if accepted:
        read_tokens(edited(tmp_path, "tokenizer.json", lambda t: t.update(post_processor=processor)))
    else:
        refused(
            tmp_path, "tokenizer.json", lambda t: t.update(post_processor=processor), "post_processor .* adds tokens"
        )


@pytest.mark.parametrize(
    "template",
    [
        None,
        CHAT_TEMPLATE,
        [{"name": "tool", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}],
        [{"name": "x"}],
    ],
)
def test_accepts_the_template_of_llada_or_none(tmp_path: Path, template: object) -> None:
    read_tokens(edited(tmp_path, "tokenizer_config.json", lambda c: c.update(chat_template=template)))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT_TEMPLATE.replace(" | trim", ""), "is not LLaDA's"),
        (CHAT_TEMPLATE.replace("bos_token if loop.first else ''", "bos_token"), "is not LLaDA's"),
        ("", "is not LLaDA's"),
        ("{% if %}", "cannot be rendered: TemplateSyntaxError"),
        ("{{ messages[9]['role']['x'] }}", "cannot be rendered: UndefinedError"),
        ("{{ 1 / 0 }}", "cannot be rendered: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered: SecurityError"),
        (17, "cannot be rendered"),
    ],
)
def test_refuses_another_template(tmp_path: Path, template: object, message: str) -> None:
    refused(tmp_path, "tokenizer_config.json", lambda c: c.update(chat_template=template), message)


def test_templates_are_not_checked_without_jinja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = edited(tmp_path, "tokenizer_config.json", lambda c: c.update(chat_template="other"))
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    read_tokens(checkpoint)


def test_refuses_what_the_library_cannot_load(tmp_path: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"]["type"] = "ByteLevvel"

    refused(tmp_path, "tokenizer.json", edit, "is not a usable tokenizer")


def test_refuses_ids_that_loading_changes(tmp_path: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        # The library numbers added tokens itself and takes no notice of a gap.
        for token in tokenizer["added_tokens"]:
            token["id"] += 5

    refused(tmp_path, "tokenizer.json", edit, "gives other ids when it is loaded")
