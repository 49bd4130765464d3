"""What `lladav run` is asked, from its options and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lladav.errors import OptionError, PromptError

if TYPE_CHECKING:
    from lladav.runtime import Message, Question


def conversation(
    prompt: str | None, prompt_ids: str | None, file: Path | None, system: str | None
) -> str | list[Message] | None:
    """What is asked, unless it is given as ids."""
    if sum(given is not None for given in (prompt, prompt_ids, file)) != 1:
        raise OptionError(
            "exactly one of --prompt, --prompt-ids and --messages is needed", cure="pass --prompt 'What is this?'"
        )
    if system is not None and prompt is None:
        raise OptionError("--system goes with --prompt only", cure="put it into the ids, or into the first message")

    from lladav.runtime import Message

    if file is not None:
        return _read_messages(file)
    if prompt is not None and system is not None:
        return [Message("system", system), Message("user", prompt)]
    return prompt


def _read_messages(file: Path) -> list[Message]:
    from lladav.runtime import Message

    cure = 'write it like [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "..."}, ...]'
    try:
        turns = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"{file} cannot be read as JSON: {error}", cure=cure) from error
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and turn.keys() == {"role", "content"} and all(isinstance(v, str) for v in turn.values())
        for turn in turns
    ):
        raise PromptError(f"{file} is no list of objects with a role and a content", cure=cure)
    return [Message(**turn) for turn in turns]


def read_batch(file: Path, exif: bool) -> list[Question]:
    """Reads one question per line: an object with `prompt` or `prompt_ids`, and `image` (one or a list).

    Paths of pictures are relative to the current folder, as on the command line.

    Raises:
        PromptError: naming the line that is no question, or whose picture does not exist.
    """
    from lladav.runtime import Question

    try:
        # JSON may hold line separators that are none of the file's lines.
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise PromptError(f"{file} cannot be read: {error}", cure="pass a file of JSON lines") from error
    questions = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            questions.append(Question(**_fields(line, f"{file}, line {number},"), exif=exif))
    if not questions:
        raise PromptError(
            f"{file} has no questions", cure='write lines like {"prompt": "What is this?", "image": "a.png"}'
        )
    return questions


def _fields(line: str, where: str) -> dict[str, Any]:
    cure = 'write it like {"prompt": "What is this?", "image": "a.png"}, or with "prompt_ids": [1, -200, 2]'
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where} is no JSON: {error}", cure=cure) from error
    if not isinstance(entry, dict) or not entry.keys() <= {"prompt", "prompt_ids", "image"}:
        raise PromptError(f"{where} is no object with prompt, prompt_ids and image", cure=cure)
    images = entry.get("image", [])
    images = [images] if isinstance(images, str) else images
    ids = entry.get("prompt_ids")
    fits = (
        isinstance(entry.get("prompt", ""), str)
        and isinstance(images, list)
        and all(isinstance(image, str) for image in images)
        and (ids is None or (isinstance(ids, list) and all(type(i) is int for i in ids)))
        and ("prompt" in entry) != ("prompt_ids" in entry)
    )
    if not fits:
        raise PromptError(
            f"{where} has a value of the wrong type, or not exactly one of prompt and prompt_ids", cure=cure
        )
    for image in images:
        if not Path(image).is_file():
            raise PromptError(
                f"{where} names the picture {image}, which does not exist",
                cure="check the path; it is relative to the current folder",
            )
    return {"prompt": entry.get("prompt"), "prompt_ids": ids, "images": images}


def read_template(template: str | None, schema: Path | None) -> str | None:
    """The text of a template: as given, from the file of that name, or made of a JSON schema.

    Raises:
        OptionError: both are given, or a file that cannot be read.
    """
    if template is not None and schema is not None:
        raise OptionError("--template and --schema contradict each other", cure="leave one of them out")
    if schema is not None:
        from lladav.runtime.schema import template_text

        try:
            return template_text(json.loads(schema.read_text("utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise OptionError(
                f"--schema {schema} cannot be read as JSON: {error}", cure="pass a JSON schema"
            ) from error
    if template is None or "{{" in template:
        return template
    try:
        return Path(template).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise OptionError(
            f"--template {template[:60]!r} has no hole and is no file that can be read: {error}",
            cure='write holes like {{6}}, {{left|right}} or {{bool}}: --template \'{"object": "{{6}}"}\'',
        ) from error
