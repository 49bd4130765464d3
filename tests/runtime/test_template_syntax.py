"""How templates are written, and what is said about those that cannot be used."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_fills import ROBOT, Filler, Vocab, blank

from lladav.errors import OptionError
from lladav.runtime.template import Template
from lladav.runtime.template_syntax import read_template


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (ROBOT, ["object", "colour", "graspable", "side", "count"]),
        ('{"a": {"b": {{bool}}}}', ["a.b"]),
        ('[{"a": "{{2}} of {{2}}"}, {{int}}]', ["0.a#1", "0.a#2", "1"]),
        ('{"a": "say \\"{{2}}\\"", "b": "\\\\", "c": {{int}}}', ["a", "c"]),
        ("The {{2}} is {{red|blue}}.", ["1", "2"]),
        ("{{6}}", ["1"]),
        ('"{{6}}"', ["1"]),
        ("f({{6}}) {x} {{{2}}} {a {b}}", ["1", "2"]),
        ("{{ 6 }}, {{ int:2 }}", ["1", "2"]),
    ],
)
def test_names_of_holes(text: str, names: list[str]) -> None:
    outline = read_template(text)
    assert [place.name for place in outline.places] == names
    assert outline.is_json == (names[0] not in ("1",))


def test_white_space_around_choices_does_not_count() -> None:
    assert read_template("{{ left | right }}").blanks[0].choices == ("left", "right")


@pytest.mark.parametrize(
    ("text", "says", "cure"),
    [
        ("a {{6} b", "{{ without its partner", "closes with two"),
        ("a {{6 b", "{{ without its partner", "closes with two"),
        ("a 6}} b {{2}}", "}} without its partner", "closes with two"),
        ("a {6}} b {{2}}", "}} without its partner", "closes with two"),
        ("{{a{b}}}", "{{ without its partner", "none inside"),
        ('{"a":{{"b":{{2}}}}', "{{ without its partner", "none inside"),
        ("a {{}} b", "empty hole {{}}", "{{n}}"),
        ("a {{ }} b", "empty hole {{ }}", "{{n}}"),
        ("a {{0}} b", "{{0}} has 0 tokens", "choose 1 to"),
        ("a {{99999}} b", "{{99999}} has 99999 tokens", "choose 1 to 4096"),
        ("a {{int:0}} b", "has 0 digits", "choose 1 to 18"),
        ("a {{int:19}} b", "has 19 digits", "choose 1 to 18"),
        ("a {{float}} b", "no known kind, {{float}}", "{{bool}}"),
        ("a {{-1}} b", "no known kind", "{{n}}"),
        ("a {{a|}} b", "an empty choice", "remove it"),
        ("a {{a|b|a}} b", "'a' 2 times", "remove it"),
        ("no hole", "no hole to fill", "{{n}}"),
        ('{"a": 1}', "no hole to fill", "{{n}}"),
        ('{"a": {{2}}}', "{{2}} stands outside quotes", '"{{2}}"'),
        ('{"a": {{left|right}}}', "the choice left", '"{{left|right}}"'),
        ('{"a": {{NaN|1}}}', "the choice NaN", "within quotes"),
        ('{"a": {{[]|1}}}', "the choice []", "within quotes"),
        ('{"a": "{{x"y|z}}"}', "cannot stand within quotes", "without quotes"),
        ('{"a": "{{x\ty|z}}"}', "cannot stand within quotes", "control characters"),
        ('{"a": "{{x\\y|z}}"}', "cannot stand within quotes", "without quotes"),
        ('{"a": 1{{int}}}', "part of a longer value", "the whole value"),
        ('{"a": {{int}}.5}', "part of a longer value", "the whole value"),
        ('{"a": {{bool}}, "a": {{bool}}}', "the key 'a' twice", "own key"),
        ('{"{{2}}": 1, "a": 2}', "in a key", "write the key out"),
        ('{"a.b": {{bool}}, "a": {"b": {{bool}}}}', "2 holes with the key path 'a.b'", "without dots"),
        ('{"a": {{bool}} "b": 1}', 'near \'{"a": 0 "b": 1}\'', "mend it"),
        ('{"a": NaN, "b": {{bool}}}', "NaN is not JSON", "mend it"),
        ('{"a": "\\{{n|t}}"}', "looks like JSON and is not", "mend it"),
        ("say <|eot_id|>{{2}}", "special tokens in its text: <|eot_id|>", "leave them out"),
        ("a {{[CLS]|b}} c", "cannot spell the choice '[CLS]'", "another word"),
        ("{{x|left}}", "x 1, left 4", "free hole {{4}}"),
    ],
)
def test_refusals(text: str, says: str, cure: str, tiny_vocab: Vocab) -> None:
    error = tiny_vocab.refusal(text)
    assert says in error.what
    assert cure in error.cure


def test_choices_that_the_tokenizer_cannot_spell(real_vocab: Vocab) -> None:
    error = real_vocab.refusal("{{cafe\u0301|tea}}")
    assert "cannot spell the choice 'cafe\u0301'" in error.what
    assert "'caf\u00e9'" in error.what


def test_choices_of_unequal_lengths_are_listed(real_vocab: Vocab) -> None:
    error = real_vocab.refusal('{"side": "{{left|right|counterclockwise turn}}"}')
    count = len(real_vocab.ids("counterclockwise turn"))
    assert f"left 1, right 1, counterclockwise turn {count}" in error.what
    assert f"{{{{{count}}}}}" in error.cure


def test_a_mask_under_another_id_counts_as_a_mask(tiny_vocab: Vocab) -> None:
    alias = tiny_vocab.ids("x")[0]
    tokens = tiny_vocab.tokens.model_copy(update={"mask_aliases": (tiny_vocab.tokens.mask, alias)})
    for text in ("x{{2}}", "{{x|y}}"):
        with pytest.raises(OptionError, match=re.escape("--template")):
            Template.parse(text, tiny_vocab.chat, tokens, tiny_vocab.rows)
    template = Template.parse("{{2}}", tiny_vocab.chat, tokens, tiny_vocab.rows)
    ids, masked = blank(template, tiny_vocab)
    assert alias in template.restrictions(ids, masked)[0].ids


@settings(max_examples=150)
@given(text=st.text('{}[]":,|ab1\\ ', max_size=24))
def test_any_text_is_a_template_or_refused(text: str, tiny_vocab: Vocab) -> None:
    for candidate in (text, f"{text}{{{{bool}}}}", f'{{"a": {text}{{{{bool}}}}}}', f'{{"a": "{text}{{{{2}}}}"}}'):
        try:
            template = tiny_vocab.template(candidate)
        except OptionError:
            continue
        answer = template.render(Filler(template, tiny_vocab, 1).fill())
        if template.is_json:
            json.loads(answer)
