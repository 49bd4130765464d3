"""How a template is written: literal text, holes in double braces, and JSON around them.

`{{` always opens a hole, and a hole has no braces inside. `}}` closes one, or, where none is
open, two objects: `{"a": {"b": {{bool}}}}` is one hole in nested JSON. A text in which such
braces close nothing is refused, since a brace was probably forgotten.

A template is JSON if it is an object or an array once every hole within quotes stands for a
letter and every other hole for a 0.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lladav.errors import OptionError
from lladav.runtime.holes import HoleKind

KINDS = "{{n}} for n tokens of text, {{a|b|c}} for choices, {{bool}}, {{int}} or {{int:5}} for up to 5 digits"

_HOLE = re.compile(r"\{\{([^{}]*)\}\}")
_UNSAFE = re.compile(r'["\\\x00-\x1f]')
_MOST_TOKENS = 4096
_DEFAULT_DIGITS = 3
_MOST_DIGITS = 18
"""Of an integer: whatever has 18 digits fits 64 bits."""


@dataclass(frozen=True)
class Blank:
    """A hole as it is written.

    Attributes:
        written: with its braces, for messages.
        size: tokens of a text, or digits of an integer.
        choices: of a choice; empty otherwise.
        padded: choices may differ in length.
    """

    written: str
    kind: HoleKind
    size: int = 0
    choices: tuple[str, ...] = ()
    padded: bool = False


@dataclass(frozen=True)
class Place:
    """Where a hole stands: its name, and whether its text is a whole JSON value."""

    name: str
    is_json: bool


@dataclass(frozen=True)
class Outline:
    """A template taken apart: literal, hole, literal, ..., hole, literal.

    Attributes:
        literals: one more than there are holes; may be empty strings.
        is_json: the whole is a JSON object or array.
    """

    literals: tuple[str, ...]
    blanks: tuple[Blank, ...]
    places: tuple[Place, ...]
    is_json: bool


def read_template(text: str) -> Outline:
    """Takes a template apart.

    Raises:
        OptionError: braces that do not match, a hole of no known kind, none at all, or a hole at
            a place of a JSON template where what it holds would not be JSON.
    """
    parts = _HOLE.split(text)
    literals, written = tuple(parts[::2]), parts[1::2]
    for literal in literals:
        if "{{" in literal:
            raise _unmatched("{{", literal[literal.index("{{") :])
    blanks = tuple(map(_blank, written))
    places = _json_places(literals, blanks)
    if places is None:
        _check_closing(literals)
    if not blanks:
        raise OptionError("--template has no hole to fill", cure=f"write at least one: {KINDS}")
    if places is not None:
        return Outline(literals, blanks, places, is_json=True)
    plain = (Place(str(n), blank.kind == "int" or blank.padded) for n, blank in enumerate(blanks, 1))
    return Outline(literals, blanks, tuple(plain), is_json=False)


def _blank(content: str) -> Blank:
    written, content = f"{{{{{content}}}}}", content.strip()
    if not content:
        raise OptionError(f"--template has an empty hole {written}", cure=f"say what goes in: {KINDS}")
    if "|" in content:
        choices = tuple(choice.strip() for choice in content.split("|"))
        for choice, count in Counter(choices).items():
            if not choice or count > 1:
                fault = f"the choice {choice!r} {count} times" if choice else "an empty choice"
                raise OptionError(f"--template: the hole {written} has {fault}", cure="remove it")
        return Blank(written, "choice", choices=choices)
    if content == "bool":
        return Blank(written, "choice", choices=("true", "false"), padded=True)
    if re.fullmatch("[0-9]{1,9}", content):
        if not 1 <= int(content) <= _MOST_TOKENS:
            raise OptionError(
                f"--template: the hole {written} has {int(content)} tokens", cure=f"choose 1 to {_MOST_TOKENS}"
            )
        return Blank(written, "text", int(content))
    if content == "int":
        return Blank(written, "int", _DEFAULT_DIGITS)
    if match := re.fullmatch("int:([0-9]{1,9})", content):
        if not 1 <= int(match[1]) <= _MOST_DIGITS:
            raise OptionError(
                f"--template: the hole {written} has {int(match[1])} digits", cure=f"choose 1 to {_MOST_DIGITS}"
            )
        return Blank(written, "int", int(match[1]))
    raise OptionError(f"--template has a hole of no known kind, {written}", cure=f"write {KINDS}")


def _check_closing(literals: Sequence[str]) -> None:
    """Refuses `}}` that closes neither a hole nor braces of the text."""
    depth, text = 0, "\0".join(literals)
    for match in re.finditer("[{}]", text):
        at = match.start()
        depth += 1 if match[0] == "{" else -1
        if depth < 0:
            if "}}" in text[max(at - 1, 0) : at + 2]:
                raise _unmatched("}}", text[max(at - 12, 0) : at + 2])
            depth = 0


def _unmatched(braces: str, near: str) -> OptionError:
    return OptionError(
        f"--template has {braces} without its partner, in {near[:24]!r}",
        cure=f"a hole opens with two braces, closes with two and has none inside; write {KINDS}",
    )


# ---------------------------------------------------------------------------------------- JSON


def _json_places(literals: Sequence[str], blanks: Sequence[Blank]) -> tuple[Place, ...] | None:
    """Places of the holes in a JSON template; None if it is not JSON."""
    quoted = list(_quoted(literals))
    skeleton = _fill(literals, ["x" if inside else "0" for inside in quoted])
    try:
        root, repeated = _load(skeleton)
    except RecursionError:
        raise OptionError("--template is nested too deeply", cure="write flatter JSON") from None
    except ValueError as error:
        if skeleton.strip()[:1] + skeleton.strip()[-1:] in ("{}", "[]"):
            raise OptionError(
                f"--template looks like JSON and is not: {error}{_near(error)}",
                cure="mend it, or begin with another character if it is meant as plain text",
            ) from None
        return None
    if not isinstance(root, dict | list):
        return None
    if repeated:
        raise OptionError(
            f"--template has the key {repeated[0]!r} twice in one object", cure="give every field its own key"
        )
    for n, (blank, inside) in enumerate(zip(blanks, quoted, strict=True)):
        _check_place(blank, inside, literals[n], literals[n + 1])
    names = _names(literals, quoted)
    return tuple(Place(name, not inside) for name, inside in zip(names, quoted, strict=True))


def _near(error: ValueError) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return ""
    return f", near {error.doc[max(error.pos - 20, 0) : error.pos + 20]!r}, where x and 0 stand for holes"


def _quoted(literals: Sequence[str]) -> Iterator[bool]:
    """Whether each hole stands within quotes."""
    inside = False
    for literal in literals[:-1]:
        inside ^= sum(match[0] == '"' for match in re.finditer(r'\\.|"', literal, re.DOTALL)) % 2 == 1
        yield inside


def _fill(literals: Sequence[str], texts: Sequence[str]) -> str:
    return "".join(part for pair in zip(literals, [*texts, ""], strict=True) for part in pair)


def _load(text: str) -> tuple[Any, list[str]]:
    """The value, and the keys that occur twice in an object.

    Raises:
        ValueError: the text is not JSON; `NaN` and `Infinity`, which Python reads, are not.
    """
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, object_pairs_hook=collect, parse_constant=refuse), repeated


def _check_place(blank: Blank, inside: bool, before: str, after: str) -> None:
    """Refuses a hole whose content would not be JSON at its place."""
    if inside:
        for choice in blank.choices:
            if _UNSAFE.search(choice):
                raise OptionError(
                    f"--template: the choice {choice!r} of {blank.written} cannot stand within quotes in JSON",
                    cure="choose words without quotes, backslashes and control characters",
                )
        return
    if blank.kind == "text":
        raise OptionError(
            f"--template: the text hole {blank.written} stands outside quotes in JSON",
            cure=f'write "{blank.written}", or a hole of another kind: {KINDS}',
        )
    if before.rstrip()[-1:] not in (":", "[", ",") or after.lstrip()[:1] not in (",", "]", "}"):
        raise OptionError(
            f"--template: the hole {blank.written} is part of a longer value in JSON",
            cure="let the hole be the whole value, or put the value within quotes",
        )
    for choice in blank.choices:
        try:
            value, _ = _load(choice)
        except ValueError:
            value = []
        if isinstance(value, dict | list) or (isinstance(value, float) and not math.isfinite(value)):
            raise OptionError(
                f"--template: the choice {choice} of {blank.written} is no JSON value",
                cure=f'put the hole within quotes: "{blank.written}"',
            )


def _names(literals: Sequence[str], quoted: Sequence[bool]) -> list[str]:
    """Key paths; several holes in one string are told apart by `#1`, `#2`, ..."""
    text = "".join(literals)
    # A character for private use that the template does not have marks the holes.
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    marked = [f"{mark}{n}{mark}" if inside else f'"{mark}{n}{mark}"' for n, inside in enumerate(quoted)]
    root, _ = _load(_fill(literals, marked))
    names = [""] * len(quoted)

    def walk(value: object, path: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if mark in key:
                    raise OptionError(
                        "--template has a hole in a key of a JSON object",
                        cure="write the key out, and its value as a hole",
                    )
                walk(item, (*path, key))
        elif isinstance(value, list):
            for n, item in enumerate(value):
                walk(item, (*path, str(n)))
        elif isinstance(value, str):
            found = re.findall(f"{mark}([0-9]+){mark}", value)
            for n, index in enumerate(found, 1):
                names[int(index)] = ".".join(path) + (f"#{n}" if len(found) > 1 else "")

    walk(root, ())
    for name, count in Counter(names).items():
        if count > 1:
            raise OptionError(
                f"--template has {count} holes with the key path {name!r}", cure="use keys without dots, or other keys"
            )
    return names
