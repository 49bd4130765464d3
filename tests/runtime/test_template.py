"""Templates: answers that are valid by construction, whatever is committed and in whatever order."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from template_fills import ROBOT, Filler, Vocab, blank, put

from lladav.runtime.prompt import ChatTokenizer
from lladav.runtime.template import Template

# ------------------------------------------------------------------------ validity by construction


JSON_TEMPLATES = [
    ROBOT,
    '{"a": {"b": {{bool}}}}',
    '{"a": [{{int}}, "{{3}}", {"c": "{{4}} and {{2}}", "d": {{int:5}}}], "k": {{1|0}}}',
    '{ "seen" :{{bool}},"text":"{{8}}","n":{{int:1}},"fixed":[1,2.5,null,"x\\"y\\\\"]}\n',
    '[{{1|2|3}}, "{{a|b}}", "{{bool}}", "{{int:2}}"]',
]


@pytest.mark.parametrize("text", JSON_TEMPLATES)
def test_json_parses_whatever_is_filled_in_and_in_whatever_order(text: str, vocab: Vocab) -> None:
    template = vocab.template(text)
    filler = Filler(template, vocab, 3)
    for _ in range(150):
        ids = filler.fill()
        root = json.loads(template.render(ids))
        for hole, value in zip(template.holes, template.values(ids).values(), strict=True):
            found: Any = root
            for key in hole.name.split("#")[0].split("."):
                found = found[int(key)] if isinstance(found, list) else found[key]
            if "#" in hole.name:
                assert value in found
            elif not (hole.kind == "text" and value == ""):
                assert found == value


def test_thousands_of_fills_of_one_template(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template('{"s": "{{4}}", "b": {{bool}}, "n": {{int}}, "c": "{{left|nope|done}}"}')
    filler = Filler(template, tiny_vocab, 5)
    seen: dict[str, set[object]] = {hole.name: set() for hole in template.holes}
    for _ in range(2000):
        ids = filler.fill()
        values = json.loads(template.render(ids))
        assert values == template.values(ids)
        for name, value in values.items():
            seen[name].add(value)
    assert seen["b"] == {True, False}
    assert seen["c"] == {"left", "nope", "done"}
    assert len(seen["n"]) > 500
    assert all(isinstance(n, int) and abs(n) < 1000 for n in seen["n"])


def test_several_commits_in_one_pass_are_valid_if_each_sees_the_ones_before(demo_vocab: Vocab) -> None:
    template = demo_vocab.template('{"b": {{bool}}, "n": {{int}}, "m": {{int}}}')
    filler = Filler(template, demo_vocab, 9)
    for _ in range(200):
        ids, masked = blank(template, demo_vocab)
        while masked.any():
            # One position of every hole is chosen under what the pass began with.
            began_ids, began_masked = ids.copy(), masked.copy()
            for hole in template.holes:
                left = hole.start + np.flatnonzero(masked[hole.span])
                if len(left):
                    position = int(filler.rng.choice(left))
                    ids[position] = filler.pick(position, began_ids, began_masked)
                    masked[position] = False
        json.loads(template.render(ids))


# ------------------------------------------------------------------------------------ what is refused


def test_text_refuses_specials_masks_and_rows_without_a_token(vocab: Vocab) -> None:
    template = vocab.template("I see {{3}}.")
    ids, masked = blank(template, vocab)
    restriction = template.restrictions(ids, masked)[template.holes[0].start]
    refused = set(restriction.ids.tolist())
    assert not restriction.allowed
    assert restriction.ids.tolist() == sorted(refused)
    assert template.filler == vocab.tokens.end_of_turn
    assert template.filler not in refused
    assert {vocab.tokens.mask, *vocab.tokens.suppressed, vocab.rows - 1} <= refused
    assert not refused & {*vocab.ids('"'), *vocab.ids("\\"), *vocab.ids("a\n")}


def test_text_refuses_what_is_never_predicted(tiny_vocab: Vocab) -> None:
    never = tiny_vocab.ids("x")[0]
    tokens = tiny_vocab.tokens.model_copy(update={"suppressed": (never,)})
    template = Template.parse("{{2}}", tiny_vocab.chat, tokens, tiny_vocab.rows)
    ids, masked = blank(template, tiny_vocab)
    assert never in template.restrictions(ids, masked)[0].ids


def test_text_in_json_refuses_what_would_break_a_string(vocab: Vocab) -> None:
    template = vocab.template('{"a": "{{3}}"}')
    ids, masked = blank(template, vocab)
    refused = set(template.restrictions(ids, masked)[template.holes[0].start].ids.tolist())
    for text in ('"', "\\", "\n", "\t", "\x01", '("', '",'):
        assert refused & set(vocab.ids(text)), text
    assert not refused & set(vocab.ids("red and green"))
    # The bytes of a character that no token holds whole.
    missing = next(c for c in "\U0001239f\U00010a42\U0001f9ff" if len(vocab.ids(c)) > 1)
    assert set(vocab.ids(missing)) <= refused


def test_every_allowed_token_of_the_real_vocabulary_is_safe_in_a_json_string(real_vocab: Vocab) -> None:
    began = time.perf_counter()
    fresh = ChatTokenizer.__new__(ChatTokenizer)
    fresh.__dict__.update(real_vocab.chat.__dict__, _vocabularies={})
    template = Template.parse('{"a": "{{1}}"}', fresh, real_vocab.tokens, real_vocab.rows)
    took = time.perf_counter() - began
    ids, masked = blank(template, real_vocab)
    refused = template.restrictions(ids, masked)[template.holes[0].start].ids
    allowed = np.setdiff1d(np.arange(real_vocab.rows), refused)
    assert len(allowed) > 120_000
    text = real_vocab.chat.decode(allowed.tolist())
    assert json.loads(f'"{text}"') == text
    assert "\ufffd" not in text
    assert took < 5, "should be well below a second"


def test_pinned_positions_allow_their_own_token_only(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template("ab{{2}}c")
    ids, masked = blank(template, tiny_vocab)
    restriction = template.restrictions(ids, masked)[1]
    assert restriction.allowed
    assert restriction.ids.tolist() == tiny_vocab.ids("b")


# --------------------------------------------------------------------------------- canvas and answer


def test_literals_are_pinned_piece_by_piece(vocab: Vocab) -> None:
    template = vocab.template('{"object": "{{6}}", "n": {{int}}}')
    pieces = [vocab.ids('{"object": "'), [-1] * 6, vocab.ids('", "n": '), [-1] * 4, vocab.ids("}")]
    assert template.pinned.tolist() == [t for piece in pieces for t in piece]
    assert template.length == len(template.pinned)
    assert [(h.name, h.kind, h.length) for h in template.holes] == [("object", "text", 6), ("n", "int", 4)]
    assert [template.pinned[h.span].tolist() for h in template.holes] == [[-1] * 6, [-1] * 4]


def test_a_space_before_a_word_is_part_of_its_token(real_vocab: Vocab) -> None:
    template = real_vocab.template('{"graspable": {{bool}}, "x": "{{left|right}}"}')
    graspable, side = template.holes
    assert template.pinned[: graspable.start].tolist() == real_vocab.ids('{"graspable":')
    assert graspable.length == side.length == 1
    ids, masked = blank(template, real_vocab)
    expected = sorted(real_vocab.ids(" true") + real_vocab.ids(" false"))
    assert template.restrictions(ids, masked)[graspable.start].ids.tolist() == expected
    ids[graspable.start], ids[side.start] = real_vocab.ids(" false")[0], real_vocab.ids("right")[0]
    assert template.render(ids) == '{"graspable": false, "x": "right"}'


def test_a_space_stays_in_the_text_where_choices_would_differ_in_length_by_it(tiny_vocab: Vocab) -> None:
    # " t" is one token of this tokenizer and " n" two.
    assert len(tiny_vocab.ids(" true")) < len(tiny_vocab.ids(" null")) == 5
    template = tiny_vocab.template("is {{true|null}}")
    assert template.pinned.tolist() == [*tiny_vocab.ids("is "), -1, -1, -1, -1]
    assert template.render(put(template, tiny_vocab, **{"1": "null"})) == "is null"


def test_text_behind_a_space_and_between_holes(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template("A {{2}} {{3}}!")
    assert template.pinned.tolist() == [*tiny_vocab.ids("A"), -1, -1, -1, -1, -1, *tiny_vocab.ids("!")]
    ids = put(template, tiny_vocab, **{"1": "x", "2": " y"})
    assert template.render(ids) == "A x y!"


def test_a_hole_ends_at_its_first_filler_and_loses_white_space(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template('{"a": "{{8}}"}')
    (hole,) = template.holes
    ids = put(template, tiny_vocab, a=" q z w j")
    assert template.filler not in ids[hole.span]
    assert template.hole_text(hole, ids) == "q z w j"
    ids[hole.start + 3] = template.filler
    assert template.hole_text(hole, ids) == "q"
    assert template.render(ids) == '{"a": "q"}'
    assert template.values(ids) == {"a": "q"}


def test_masks_show_nothing(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template('{"a": "{{4}}"}')
    ids, _ = blank(template, tiny_vocab)
    assert template.render(ids) == '{"a": ""}'
    ids[template.holes[0].start + 1] = tiny_vocab.ids("x")[0]
    assert template.hole_text(template.holes[0], ids) == "x"


def test_literals_are_rendered_as_they_were_written(tiny_vocab: Vocab) -> None:
    # Decomposed letters, which tokenizers compose.
    text = "cafe\u0301 \u00a0{{1}}\r\n {a} {{bool}} }"
    template = tiny_vocab.template(text)
    ids = put(template, tiny_vocab, **{"1": "x", "2": " true"})
    assert template.render(ids) == text.replace("{{1}}", "x").replace("{{bool}}", "true")


def test_what_follows_from_what_was_committed(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template("{{4}}{{int}}{{at|of}}")
    ids, masked = blank(template, tiny_vocab)

    def implied() -> dict[int, int]:
        return template.implied(ids, masked)

    def follow(after: int) -> dict[int, int]:
        return template.follow(template.restrictions(ids, masked), ids, masked, after)

    assert not implied()
    # What stands under a mask is only provisional.
    assert not template.implied(np.where(masked, template.filler, ids), masked)
    ids[1], masked[1] = template.filler, False
    assert implied() == follow(after=1) == {2: template.filler, 3: template.filler}
    assert not follow(after=0)
    ids[0], masked[0] = tiny_vocab.ids("x")[0], False
    ids[4:6], masked[4:6] = [tiny_vocab.ids("7")[0], template.filler], False
    assert implied().keys() == {2, 3, 6, 7}
    if len(tiny_vocab.ids("at")) == 2:
        ids[8], masked[8] = tiny_vocab.ids("at")[0], False
        assert implied()[9] == follow(after=8)[9] == tiny_vocab.ids("at")[1]
    for place, token in implied().items():
        ids[place] = token
    filled = np.where(ids == tiny_vocab.tokens.mask, 0, ids)
    assert template.values(filled)["1"] == "x"
    assert template.values(filled)["2"] == 7


def test_values_have_the_type_of_their_hole(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template("{{3}} {{int}} {{bool}} {{1|2}}")
    ids = put(template, tiny_vocab, **{"1": " 12", "2": "-7", "3": " false", "4": " 2"})
    assert template.values(ids) == {"1": "12", "2": -7, "3": False, "4": "2"}

    text = '{"a": "{{int}}", "b": {{1|2}}, "c": "{{bool}}", "d": {{0.5|1.5}}, "e": {{"x"|"y"}}}'
    template = tiny_vocab.template(text)
    ids = put(template, tiny_vocab, a="12", b=" 2", c="true", d=" 1.5", e=' "y"')
    assert template.values(ids) == {"a": "12", "b": 2, "c": "true", "d": 1.5, "e": "y"}
    assert json.loads(template.render(ids)) == template.values(ids)


def test_restrictions_are_quick(real_vocab: Vocab) -> None:
    words = "|".join(f"{n}{m}" for n in range(10) for m in range(10))
    template = real_vocab.template(f'{{"a": "{{{{6}}}}", "b": "{{{{{words}}}}}", "c": {{{{int:5}}}}}}')
    ids, masked = blank(template, real_vocab)
    began = time.perf_counter()
    for _ in range(20):
        for position in np.flatnonzero(masked):
            template.restrictions(ids, masked)[int(position)]
    # 0.02 ms with two busy cores; the margin is for other machines.
    assert (time.perf_counter() - began) / 20 < 5e-3
