"""Objects of a data model or a JSON schema, and their templates."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator
from template_fills import Filler, Vocab

from lladav.errors import OptionError
from lladav.runtime.schema import parse_object, template_text


class Grasp(BaseModel):
    object: str
    colour: Annotated[str, Field(json_schema_extra={"x-tokens": 2})]
    side: Literal["left", "nope"]
    graspable: bool = False
    count: int
    weight_g: Annotated[int, Field(json_schema_extra={"x-digits": 5})] = 0
    unit: Literal["mm"] = "mm"


GRASP = (
    '{"object": "{{8}}", "colour": "{{2}}", "side": "{{left|nope}}", "graspable": {{bool}}, '
    '"count": {{int}}, "weight_g": {{int:5}}, "unit": "mm"}'
)


def one(field: object) -> dict[str, Any]:
    return {"type": "object", "properties": {"f": field}, "required": ["f"]}


def test_template_of_a_model() -> None:
    assert template_text(Grasp) == GRASP


def test_template_of_the_model_s_json_schema_is_the_same() -> None:
    assert template_text(Grasp.model_json_schema()) == GRASP


@pytest.mark.parametrize("form", [Grasp, Grasp.model_json_schema()])
def test_every_answer_is_an_object(form: Any, tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template(template_text(form))
    filler = Filler(template, tiny_vocab, 2)
    for _ in range(100):
        ids = filler.fill()
        found = parse_object(form, template.render(ids))
        if isinstance(found, Grasp):
            found = found.model_dump()
        assert isinstance(found, dict)
        assert found == {**template.values(ids), "unit": "mm"}
        assert list(found) == list(Grasp.model_fields)


@pytest.mark.parametrize(
    ("field", "hole"),
    [
        ({"type": "string"}, '"{{8}}"'),
        ({"type": "string", "x-tokens": 3, "title": "F", "description": "what", "examples": ["x"]}, '"{{3}}"'),
        ({"type": "boolean", "default": True}, "{{bool}}"),
        ({"type": "integer"}, "{{int}}"),
        ({"type": "integer", "x-digits": 1}, "{{int:1}}"),
        ({"type": "integer", "minimum": -1000, "maximum": 999}, "{{int}}"),
        ({"type": "integer", "minimum": 0, "maximum": 3}, "{{0|1|2|3}}"),
        ({"type": "integer", "minimum": 5, "maximum": 5}, "5"),
        ({"enum": ["rouge", "vért"]}, '"{{rouge|vért}}"'),
        ({"type": "string", "enum": ["red"]}, '"red"'),
        ({"type": "integer", "enum": [1, 2, 4]}, "{{1|2|4}}"),
        ({"const": 'a "quoted" word'}, '"a \\"quoted\\" word"'),
        ({"const": 1.5}, "1.5"),
        ({"const": None}, "null"),
        ({"const": True, "type": "boolean"}, "true"),
    ],
)
def test_holes_of_fields(field: dict[str, Any], hole: str, tiny_vocab: Vocab) -> None:
    assert template_text(one(field)) == f'{{"f": {hole}}}'
    # With another field, since a template needs a hole.
    schema = {"type": "object", "properties": {"f": field, 'é "g"': {"type": "boolean"}}}
    template = tiny_vocab.template(template_text(schema))
    filler = Filler(template, tiny_vocab, 1)
    for _ in range(10):
        text = template.render(filler.fill())
        assert parse_object(schema, text) == json.loads(text)


@pytest.mark.parametrize(
    ("field", "says", "cure"),
    [
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "may be null", "one type"),
        ({"type": ["string", "null"]}, "may be null", "one type"),
        ({"type": "string", "nullable": True}, "may be null", "one type"),
        ({"type": "null"}, "of type null", "a word for nothing"),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, "of type object", "flat field"),
        ({"type": "array", "items": {"type": "string"}}, "of type array", "per item"),
        ({"type": "number"}, "of type number", "integer in a smaller unit"),
        ({"$ref": "#/$defs/Colour"}, "refers to #/$defs/Colour", "Literal"),
        ({"type": "date"}, "of type date", "string, integer, boolean"),
        ({}, "has no type", "string, integer, boolean"),
        (True, "has no type", "string, integer, boolean"),
        ({"type": "string", "maxLength": 5}, "cannot promise: maxLength", "x-tokens"),
        ({"type": "string", "pattern": "a+"}, "cannot promise: pattern", "remove"),
        ({"type": "string", "format": "date"}, "cannot promise: format", "remove"),
        ({"type": "integer", "multipleOf": 5}, "cannot promise: multipleOf", "remove"),
        ({"type": "integer", "exclusiveMinimum": 0}, "cannot promise: exclusiveMinimum", "remove"),
        ({"type": "integer", "minimum": 0}, "between 0 and any", "leave the bounds out"),
        ({"type": "integer", "minimum": 0, "maximum": 20}, "between 0 and 20", "0 to 9"),
        ({"type": "integer", "minimum": 1, "maximum": 0}, "between 1 and 0", "leave the bounds out"),
        ({"type": "integer", "minimum": "0"}, "the bound '0'", "a number"),
        ({"type": "boolean", "x-tokens": 1}, "cannot promise: x-tokens", "remove"),
        ({"type": "string", "x-tokens": 0}, "x-tokens 0", "from 1 to"),
        ({"type": "string", "x-tokens": True}, "x-tokens True", "from 1 to"),
        ({"type": "integer", "x-digits": 19}, "x-digits 19", "from 1 to 18"),
        ({"type": "integer", "x-digits": "2"}, "x-digits '2'", "from 1 to 18"),
        ({"enum": []}, "the enum []", "at least one"),
        ({"enum": ["a", 1]}, "['a', 1]", "strings only"),
        ({"enum": [True, False]}, "[True, False]", "strings only"),
        ({"enum": [1.5, 2.5]}, "[1.5, 2.5]", "integers only"),
        ({"enum": ["a", 'b"']}, "the choice 'b\"'", "without quotes"),
        ({"enum": ["a", "b|c"]}, "the choice 'b|c'", "bars"),
        ({"enum": ["a", " b"]}, "the choice ' b'", "white space"),
        ({"enum": ["a", ""]}, "the choice ''", "words"),
        ({"enum": ["a"], "type": "integer"}, "type integer", "agree"),
        ({"const": True, "type": "integer"}, "type integer", "agree"),
        ({"const": 1, "enum": [1]}, "both", "leave one"),
        ({"const": [1]}, "[[1]]", "strings only"),
    ],
)
def test_fields_that_a_template_cannot_promise(field: object, says: str, cure: str) -> None:
    with pytest.raises(OptionError) as caught:
        template_text(one(field))
    assert "--schema: the field 'f'" in caught.value.what
    assert says in caught.value.what
    assert cure in caught.value.cure


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Flat(BaseModel):
    a: str


class Nested(BaseModel):
    f: Flat


class WithEnum(BaseModel):
    f: Colour


class Nullable(BaseModel):
    f: Optional[int]  # noqa: UP045


class Bounded(BaseModel):
    f: Annotated[int, Field(ge=0)]


class Listed(BaseModel):
    f: list[str]


@pytest.mark.parametrize("model", [Nested, WithEnum, Nullable, Bounded, Listed])
def test_models_that_a_template_cannot_promise(model: type[BaseModel]) -> None:
    with pytest.raises(OptionError, match="the field 'f'"):
        template_text(model)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({}, "not that of an object"),
        ([], "not that of an object"),
        (one({"type": "string"}) | {"required": True}, "True as required"),
        ({"type": "object"}, "not that of an object"),
        ({"type": "object", "properties": {}}, "not that of an object"),
        ({"type": "array", "properties": {"a": {"type": "string"}}}, "not that of an object"),
        (RootModel[int], "not that of an object"),
        (one({"type": "string"}) | {"minProperties": 2}, "cannot promise: minProperties"),
        (one({"type": "string"}) | {"allOf": []}, "cannot promise: allOf"),
        (one({"type": "string"}) | {"required": ["f", "g"]}, "does not describe: g"),
        ({"type": "object", "properties": {"a{{b": {"type": "string"}}}, "its name has it"),
        (one({"const": float("nan")}), "which is not JSON"),
        (one({"const": "{{6}}"}), "the value of the field 'f' has it"),
    ],
)
def test_schemas_that_are_refused(schema: Any, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        template_text(schema)
    assert "--schema" in caught.value.what
    assert says in caught.value.what


def test_forbidden_extras_and_aliases() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        kind: Literal["a b", "c d"] = Field(alias="the kind")

    text = template_text(Strict)
    assert text == '{"the kind": "{{a b|c d}}"}'
    assert parse_object(Strict, '{"the kind": "c d"}') == Strict.model_validate({"the kind": "c d"})


def test_a_model_s_own_validator_may_still_refuse() -> None:
    class Fussy(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def short(cls, value: str) -> str:
            if value != "x":
                raise ValueError("not x")
            return value

    assert parse_object(Fussy, '{"name": "x"}') == Fussy(name="x")
    with pytest.raises(OptionError, match="not x"):
        parse_object(Fussy, '{"name": "y"}')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"f": ', "no JSON"),
        ("[1]", "fields f"),
        ("{}", "fields f"),
        ('{"f": 1, "g": 2}', "fields f"),
        ('{"f": "1"}', "does not accept '1'"),
        ('{"f": true}', "does not accept True"),
        ('{"f": 7}', "does not accept 7"),
    ],
)
def test_other_texts_are_no_objects_of_a_schema(text: str, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_object(one({"type": "integer", "minimum": 0, "maximum": 3}), text)
    assert says in caught.value.what


def test_a_constant_of_another_type_is_not_accepted() -> None:
    schema = one({"enum": [1, 2]})
    assert parse_object(schema, '{"f": 1}') == {"f": 1}
    for text in ('{"f": true}', '{"f": 1.0}'):
        with pytest.raises(OptionError):
            parse_object(schema, text)


def test_types_without_a_json_schema() -> None:
    class Odd(BaseModel):
        f: Callable[[], int]

    with pytest.raises(OptionError, match="Odd has no JSON schema"):
        template_text(Odd)
