"""A small tokenizer in the format of LLaDA's, with the same special tokens in the same roles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.demo_checkpoint.drawings import Thing
from benchmarks.demo_checkpoint.questions import COLOURS, NUMBERS, YES_NO, kind_of

BOS, EOS, CLS, GMASK, MASK = "<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mdm_mask|>"
ROLES = ("<role>", "</role>", "<|arithmetic_start|>", "<|arithmetic_end|>", "<|number_start|>", "<|number_end|>")
START_HEADER, END_HEADER, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
# The order of LLaDA's tokenizer, without its reserved tokens.
SPECIAL = (BOS, EOS, CLS, GMASK, MASK, *ROLES, START_HEADER, END_HEADER, EOT)
# Never chosen by the denoising loop.
SUPPRESSED = (BOS, EOS, START_HEADER, END_HEADER)

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def whole_answers(things: list[Thing]) -> list[str]:
    """Texts that are one token each, also behind a space: names, kinds, colours, numbers, yes and no."""
    return list(dict.fromkeys([*(t.name for t in things), *map(kind_of, things), *COLOURS, *NUMBERS, *YES_NO]))


def corpus() -> list[str]:
    """Every other text the model is trained on."""
    return [
        SYSTEM_PROMPT,
        "system\n\nuser\n\nassistant\n\n",
        "What is this? What kind of thing is this? What is its main color? How many things are there? Describe this.",
        "What is left of the? What is right of the? What is above the? What is below the? What is in this picture?",
        "What is on the left? on the right? in the middle? at the top? at the bottom? at the top left?",
        "at the top right? at the bottom left? at the bottom right? an a, an, a, mostly and an and a",
        "Is this a? Is this an? Is there a? Is there an?",
    ]


def train_tokenizer(things: list[Thing]) -> Tokenizer:
    """Byte-level BPE on `corpus`, and a token for each of `whole_answers`.

    A name of several tokens would ask of the first position a token that many names share, which
    no linear read-out of a picture can give. So the pre-tokenizer keeps names in one piece, and
    `ignore_merges` looks a piece up before it is taken apart. Special tokens take the last ids,
    as in LLaDA's.
    """
    whole = whole_answers(things)
    longest_first = "|".join(re.escape(text) for text in sorted(whole, key=len, reverse=True))
    names = rf" ?(?<![\p{{L}}\p{{N}}])(?:{longest_first})(?![\p{{L}}\p{{N}}])"
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{names}|{_SPLIT}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    plain.train_from_iterator(corpus() * 10, trainer)
    learned = json.loads(plain.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in whole:
        for form in (text, " " + text):
            vocabulary.setdefault(level.pre_tokenize_str(form)[0][0], len(vocabulary))
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    for text in whole:
        for form in (text, " " + text):
            ids = tokenizer.encode(form).ids
            if len(ids) != 1 or tokenizer.decode(ids) != form:
                raise ValueError(f"{form!r} is not one token but {ids}")
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, question: str) -> tuple[list[int], list[int]]:
    """Ids before and after the picture, for the user's message `<image>` + newline + question.

    The id after the picture is dropped, as the authors' code does for every piece but the first.
    """
    before = f"{BOS}{START_HEADER}system{END_HEADER}\n\n{SYSTEM_PROMPT}{EOT}{START_HEADER}user{END_HEADER}\n\n"
    after = f"\n{question.strip()}{EOT}{START_HEADER}assistant{END_HEADER}\n\n"
    return tokenizer.encode(before).ids, tokenizer.encode(after).ids[1:]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the three files that Hugging Face expects."""
    tokenizer.save(str(folder / "tokenizer.json"))
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    extra = [MASK, *ROLES]
    roles: dict[str, Any] = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "cls_token": CLS}
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(t)): {"content": t, **plain, "special": True} for t in SPECIAL
        },
        "additional_special_tokens": extra,
        **roles,
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "gmask_token": GMASK,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    special = {"additional_special_tokens": extra, **{role: {"content": t, **plain} for role, t in roles.items()}}
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
