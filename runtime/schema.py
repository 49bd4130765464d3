"""Answers as objects: a pydantic model or JSON schema becomes a template, and the answer an instance.

| field | hole |
|---|---|
| string | text of 8 tokens; `x-tokens` sets another number |
| `enum` or `Literal` of strings or integers | choices |
| boolean | `{{bool}}` |
| integer | `{{int}}` with 3 digits; `x-digits` sets another number |
| integer from `minimum` to `maximum`, all written with as many characters | choices |
| `const` | pinned |

With pydantic, `Field(json_schema_extra={"x-tokens": 4})` sets a number. Whatever a template cannot
promise is refused: every answer to a template made here is valid against the schema. Only a
model's own validators can still reject one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pydantic

from lladav.errors import OptionError

Schema = type[pydantic.BaseModel] | Mapping[str, Any]

DEFAULT_TOKENS = 8
"""Of a string field: enough for a few words."""

DEFAULT_DIGITS = 3
"""Of an integer field, as in `{{int}}`."""

_MOST_CHOICES = 100
"""A range of integers with more members is better off as digits."""

_NOTES = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "type")
)
_OBJECT_KEYS = _NOTES | {"$schema", "$id", "$defs", "properties", "required", "additionalProperties"}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "number": (int, float),
    "null": (type(None),),
}
_CURES = {
    "number": "use an integer in a smaller unit, or a string",
    "array": "use one field per item",
    "object": "use one flat field per value",
    "null": "use a string with a word for nothing among its choices",
}


def template_text(schema: Schema) -> str:
    """The template whose answers are valid against a schema of flat fields.

    Every property is in the answer, in the order of the schema, optional or not.

    Args:
        schema: a pydantic model, or a JSON schema with `"type": "object"`.

    Raises:
        OptionError: a field, or a rule for one, that a template cannot promise.
    """
    fields = (f"{_written('its name', name)}: {_hole(name, field)}" for name, field in _properties(schema).items())
    return "{" + ", ".join(fields) + "}"


def parse_object(schema: Schema, text: str) -> object:
    """An answer to `template_text(schema)` as an instance of the model, or as a dict for a JSON schema.

    Raises:
        OptionError: the text is not valid against the schema.
    """
    cure = "pass the answer to a template made from the same schema, when it is complete"
    if isinstance(schema, type):
        try:
            return schema.model_validate_json(text)
        except pydantic.ValidationError as error:
            raise OptionError(
                f"--schema: {schema.__name__} does not accept {text}: {error}", cure=f"{cure}, or relax its validators"
            ) from error
    try:
        value = json.loads(text)
    except ValueError as error:
        raise OptionError(f"--schema: the answer is no JSON: {error}: {text}", cure=cure) from error
    fields = _properties(schema)
    if not isinstance(value, dict) or value.keys() != fields.keys():
        raise OptionError(f"--schema: the answer has not the fields {', '.join(fields)}: {text}", cure=cure)
    for name, field in fields.items():
        if not _accepts(field, value[name]):
            raise OptionError(f"--schema: the field {name!r} does not accept {value[name]!r}", cure=cure)
    return value


def _properties(schema: Schema) -> Mapping[str, Any]:
    """The fields of a schema whose other rules every template keeps."""
    rules = _rules(schema)
    properties = rules.get("properties") if isinstance(rules, Mapping) and rules.get("type") == "object" else None
    if not isinstance(properties, Mapping) or not properties:
        raise OptionError(
            "--schema is not that of an object with fields",
            cure='give it "type": "object" and "properties", or use a pydantic model with fields',
        )
    unknown = sorted(rules.keys() - _OBJECT_KEYS)
    if unknown:
        raise OptionError(
            f"--schema has rules for the whole object that a template cannot promise: {', '.join(unknown)}",
            cure="remove them; type, properties and required are kept",
        )
    required = rules.get("required", [])
    if not isinstance(required, list):
        raise OptionError(f"--schema has {required!r} as required", cure="list the names of fields")
    missing = [str(name) for name in required if str(name) not in properties]
    if missing:
        raise OptionError(f"--schema requires fields that it does not describe: {', '.join(missing)}", cure="add them")
    return properties


def _rules(schema: Schema) -> Mapping[str, Any]:
    if not isinstance(schema, type):
        return schema
    try:
        return schema.model_json_schema()
    except pydantic.PydanticUserError as error:
        raise OptionError(
            f"--schema: {schema.__name__} has no JSON schema: {error.message}",
            cure="use fields of type str, int, bool and Literal",
        ) from error


def _hole(name: str, field: object) -> str:
    """The hole of one field, or its constant."""
    if not isinstance(field, Mapping):
        raise _refusal(name, "has no type", "give it one of string, integer, boolean")
    if "$ref" in field:
        raise _refusal(name, f"refers to {field['$ref']}", "use flat fields, and Literal in place of an Enum class")
    kind = field.get("type")
    if "anyOf" in field or "oneOf" in field or "allOf" in field or isinstance(kind, list) or field.get("nullable"):
        raise _refusal(name, "has several types or may be null", f"give it one type; {_CURES['null']}")
    if "const" in field or "enum" in field:
        return _choices(name, field)
    if kind == "string":
        _check_rules(name, field, "x-tokens")
        return f'"{{{{{_number(name, field, "x-tokens", DEFAULT_TOKENS, 4096)}}}}}"'
    if kind == "boolean":
        _check_rules(name, field)
        return "{{bool}}"
    if kind == "integer":
        return _integer(name, field)
    known = isinstance(kind, str) and kind in _CURES
    raise _refusal(
        name,
        f"is of type {kind}" if kind else "has no type",
        _CURES[str(kind)] if known else "give it one of string, integer, boolean",
    )


def _integer(name: str, field: Mapping[str, Any]) -> str:
    _check_rules(name, field, "x-digits", "minimum", "maximum")
    digits = _number(name, field, "x-digits", DEFAULT_DIGITS, 18)
    low, high = field.get("minimum"), field.get("maximum")
    for bound in (low, high):
        if bound is not None and not _is(bound, "number"):
            raise _refusal(name, f"has the bound {bound!r}", "use a number")
    most = 10**digits - 1
    if (low is None or low <= -most) and (high is None or high >= most):
        return "{{int}}" if digits == DEFAULT_DIGITS else f"{{{{int:{digits}}}}}"
    if isinstance(low, int) and isinstance(high, int) and 0 <= high - low < _MOST_CHOICES and "x-digits" not in field:
        words = [str(n) for n in range(low, high + 1)]
        if len(set(map(len, words))) == 1:
            return words[0] if low == high else "{{" + "|".join(words) + "}}"
    raise _refusal(
        name,
        f"lies between {'any' if low is None else low} and {'any' if high is None else high}",
        f"leave the bounds out, or give both, at most {_MOST_CHOICES} integers with as many characters each, as 0 to 9",
    )


def _choices(name: str, field: Mapping[str, Any]) -> str:
    """Choices of an `enum`, or the constant where there is only one."""
    _check_rules(name, field, "const", "enum")
    if "const" in field and "enum" in field:
        raise _refusal(name, "has both const and enum", "leave one of them out")
    values = [field["const"]] if "const" in field else field["enum"]
    if not isinstance(values, list) or not values:
        raise _refusal(name, f"has the enum {values!r}", "list at least one value")
    kind = field.get("type")
    for value in values:
        if "type" in field and not _is(value, kind):
            raise _refusal(name, f"is of type {kind} and has the value {value!r}", "make them agree")
    if len(values) == 1 and isinstance(values[0], str | int | float | None):
        return _written(f"the value of the field {name!r}", values[0])
    if all(_is(value, "integer") for value in values):
        return "{{" + "|".join(str(int(value)) for value in values) + "}}"
    if not all(isinstance(value, str) for value in values):
        raise _refusal(name, f"has the values {values!r}", "use strings only, or integers only")
    for value in values:
        if not value or value != value.strip() or any(c in '"\\|{}' or c < " " for c in value):
            raise _refusal(
                name,
                f"has the choice {value!r}",
                "use words without quotes, backslashes, bars, braces, control characters and white space at the ends",
            )
    return '"{{' + "|".join(values) + '}}"'


def _check_rules(name: str, field: Mapping[str, Any], *kept: str) -> None:
    unknown = sorted(field.keys() - _NOTES - set(kept))
    if unknown:
        raise _refusal(
            name,
            f"has rules that a template cannot promise: {', '.join(unknown)}",
            "remove them; the length of a text is set with x-tokens, and of an integer with x-digits",
        )


def _number(name: str, field: Mapping[str, Any], key: str, default: int, most: int) -> int:
    value = field.get(key, default)
    if not _is(value, "integer") or not 1 <= value <= most:
        raise _refusal(name, f"has {key} {value!r}", f"choose a whole number from 1 to {most}")
    return int(value)


def _is(value: object, kind: object) -> bool:
    """Whether a value is of a JSON type; in JSON a truth value is no integer."""
    types = _TYPES.get(str(kind), ())
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _accepts(field: Mapping[str, Any], value: object) -> bool:
    if "const" in field or "enum" in field:
        values = field.get("enum", [field.get("const")])
        return any(value == known and type(value) is type(known) for known in values)
    if not _is(value, field.get("type")):
        return False
    low, high = field.get("minimum"), field.get("maximum")
    return not isinstance(value, int) or ((low is None or value >= low) and (high is None or value <= high))


def _written(what: str, value: object) -> str:
    """A constant as JSON; braces that would open a hole cannot be written."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise OptionError(f"--schema: {what} is {value!r}, which is not JSON", cure="use a number") from error
    if "{{" in text:
        raise OptionError(f"--schema: {{{{ opens a hole, and {what} has it: {text}", cure="leave one brace out")
    return text


def _refusal(name: str, what: str, cure: str) -> OptionError:
    return OptionError(f"--schema: the field {name!r} {what}", cure=cure)
