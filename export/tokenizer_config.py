"""Special tokens and conventions of a checkpoint's tokenizer.

Ids come from tokenizer.json, which the runtime loads. config.json is not asked: the authors'
has a `bos_token_id` that lies outside their vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from lladav.errors import CheckpointError
from lladav.export.checkpoint import Checkpoint, read_json
from lladav.manifest import SpecialTokens

MASK, START_HEADER, END_HEADER, END_OF_TURN = "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"

_CURE = "take tokenizer.json and tokenizer_config.json from the checkpoint as its authors publish it"
_ASSISTANT = f"{START_HEADER}assistant{END_HEADER}\n\n"
# Surrounding space and markup of other templates must come through as LLaDA's treats them.
_PROBE = (
    {"role": "system", "content": "You look at pictures. "},
    {"role": "user", "content": "\n <image>\nWhat is this?\n\nA {{ cup }} <b>?\t"},
    {"role": "assistant", "content": "A cup."},
    {"role": "user", "content": "And 'that'?"},
)


def read_tokens(checkpoint: Checkpoint) -> SpecialTokens:
    """Ids of all tokens with a role, and a check of the conventions that prompts rely on.

    `mask_aliases` holds the mask alone: which other embeddings lie next to the mask's shows
    only when the weights are read.

    Raises:
        CheckpointError: tokens are missing (all are listed), ambiguous or without an embedding,
            or the tokenizer adds tokens of its own or has another chat template.
    """
    ids = _vocabulary(checkpoint)
    config = _tokenizer_config(checkpoint)
    names = {
        "bos": _named(checkpoint, config, "bos_token"),
        "eos": _named(checkpoint, config, "eos_token"),
        "mask": MASK,
        "start_header": START_HEADER,
        "end_header": END_HEADER,
        "end_of_turn": END_OF_TURN,
    }
    if lacking := [name or f"the {role} token's name" for role, name in names.items() if name not in ids]:
        raise CheckpointError(f"the tokenizer of {checkpoint.path} lacks {', '.join(lacking)}", cure=_CURE)
    tokens = {role: ids[name] for role, name in names.items() if name is not None}
    _check_mask(checkpoint, tokens["mask"])
    _check_embedded(checkpoint, tokens)
    _check_conventions(checkpoint, config)
    _check_loads(checkpoint, ids, {name for name in names.values() if name is not None})
    _check_template(checkpoint, config, names["bos"] or "")
    return SpecialTokens(
        **tokens,
        # What the reference never predicts; mask and end of turn are not among them.
        suppressed=(tokens["bos"], tokens["eos"], tokens["start_header"], tokens["end_header"]),
        mask_aliases=(tokens["mask"],),
    )


def _check_loads(checkpoint: Checkpoint, ids: Mapping[str, int], names: set[str]) -> None:
    """The library that the runtime encodes with must take the file, and give the names these ids."""
    file = checkpoint.path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(file.read_text("utf-8"))
    # The library raises plain Exception for a file that it cannot parse.
    except Exception as error:
        raise CheckpointError(f"{file} is not a usable tokenizer: {error}", cure=_CURE) from error
    if wrong := [f"{n} is {tokenizer.token_to_id(n)}" for n in sorted(names) if tokenizer.token_to_id(n) != ids[n]]:
        raise CheckpointError(f"{file} gives other ids when it is loaded: {'; '.join(wrong)}", cure=_CURE)


def tokenizer_length(checkpoint: Checkpoint) -> int:
    """Highest id plus one: the rows that the authors' loader keeps of embedding and head.

    Raises:
        CheckpointError: tokenizer.json is missing or not understood.
    """
    return max(_vocabulary(checkpoint).values()) + 1


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return read_json(checkpoint.path / "tokenizer_config.json")


def _vocabulary(checkpoint: Checkpoint) -> dict[str, int]:
    """Ids of all tokens, added ones included.

    tokenizer_config.json may list added tokens once more; they must be the same, since the
    runtime reads tokenizer.json alone.
    """
    file = checkpoint.path / "tokenizer.json"
    tokenizer = read_json(file)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    try:
        if not isinstance(vocab, dict):
            raise TypeError("model.vocab is no object")
        extra = {token["content"]: token["id"] for token in added}
        repeated = _tokenizer_config(checkpoint).get("added_tokens_decoder") or {}
        extra_again = {token["content"]: int(number) for number, token in repeated.items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is no byte-level BPE tokenizer: {error!r}", cure=_CURE) from error
    ids: dict[str, int] = {**vocab, **extra}
    if not ids or not all(type(number) is int and number >= 0 for number in ids.values()):
        raise CheckpointError(f"{file} has ids that are not whole numbers from 0 up, or none", cure=_CURE)
    faults = [
        f"{name} is {first[name]} and {second[name]}"
        for first, second in ((vocab, extra), (extra_again, ids))
        for name in first.keys() & second.keys()
        if first[name] != second[name]
    ]
    faults += [f"{name} is only in tokenizer_config.json" for name in extra_again.keys() - ids.keys()]
    if faults:
        shown = "; ".join(sorted(faults)[:10])
        raise CheckpointError(f"{file} is ambiguous about {len(faults)} tokens: {shown}", cure=_CURE)
    return ids


def _named(checkpoint: Checkpoint, config: Mapping[str, Any], role: str) -> str | None:
    """The token that tokenizer_config.json, or else special_tokens_map.json, gives a role."""
    value = config.get(role)
    more = checkpoint.path / "special_tokens_map.json"
    if value is None and more.is_file():
        value = read_json(more).get(role)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _check_mask(checkpoint: Checkpoint, mask: int) -> None:
    configured = checkpoint.config.get("mask_token_id")
    if configured is not None and configured != mask:
        raise CheckpointError(
            f"mask_token_id in {checkpoint.path / 'config.json'} is {configured!r}, but {MASK} has id {mask}",
            cure=_CURE,
        )


def _check_embedded(checkpoint: Checkpoint, tokens: Mapping[str, int]) -> None:
    info = checkpoint.tensors.get("model.embed_tokens.weight")
    if info is not None and max(tokens.values()) >= info.rows:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.path} has special tokens up to id {max(tokens.values())}, "
            f"but the embedding table has {info.rows} rows",
            cure=_CURE,
        )


def _check_conventions(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Prompts begin with a written-out BOS; a tokenizer that adds one would double it."""
    reasons = [f"{name} is true" for name in ("add_bos_token", "add_eos_token") if config.get(name)]
    processor = read_json(checkpoint.path / "tokenizer.json").get("post_processor")
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else step
        if kind == "TemplateProcessing" and not any("SpecialToken" in piece for piece in step.get("single") or []):
            continue
        if kind != "ByteLevel":
            reasons.append(f"its post_processor {kind} adds tokens")
    if reasons:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.path} adds special tokens by itself ({', '.join(reasons)}); "
            "LLaDA's adds none, and prompts are built for that",
            cure=_CURE,
        )


def _check_template(checkpoint: Checkpoint, config: Mapping[str, Any], bos: str) -> None:
    """The runtime writes LLaDA's chat template itself, so the checkpoint's must equal it."""
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    if template is None:
        return
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    turns = (f"{START_HEADER}{m['role']}{END_HEADER}\n\n{m['content'].strip()}{END_OF_TURN}" for m in _PROBE)
    expected = bos + "".join(turns) + _ASSISTANT
    try:
        rendered = environment.from_string(template).render(
            messages=[dict(m) for m in _PROBE],
            bos_token=bos,
            eos_token=config.get("eos_token"),
            add_generation_prompt=True,
        )
    except Exception as error:  # a template is a program, and may fail in any way
        raise CheckpointError(
            f"the chat_template of {checkpoint.path} cannot be rendered: {type(error).__name__}: {error}", cure=_CURE
        ) from error
    if rendered != expected:
        raise CheckpointError(
            f"the chat_template of {checkpoint.path} is not LLaDA's: "
            f"a probe gives {rendered!r:.600} instead of {expected!r}",
            cure=_CURE,
        )
