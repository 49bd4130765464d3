from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROWS, tiny_tokenizer
from tokenizers import Tokenizer

from lladav.errors import OptionError
from lladav.manifest import SpecialTokens
from lladav.runtime.holes import choice_shapes, integer_shapes
from lladav.runtime.prompt import ChatTokenizer
from lladav.runtime.template import Template
from lladav.runtime.template_syntax import read_template

DEMO = Path(__file__).resolve().parents[2] / "benchmarks" / "demo_checkpoint" / "checkpoint" / "tokenizer.json"
ROLES = {
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "mask": "<|mdm_mask|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "end_of_turn": "<|eot_id|>",
}
ROBOT = '{"object": "{{6}}", "colour": "{{2}}", "graspable": {{bool}}, "side": "{{1}}", "count": {{int}}}'


class Vocab:
    """A tokenizer with all that a template asks of it, and rows without a token behind it."""

    def __init__(self, file: Path, rows: int | None = None) -> None:
        raw = Tokenizer.from_file(str(file))
        ids = {role: raw.token_to_id(name) for role, name in ROLES.items()}
        suppressed = tuple(ids[role] for role in ("bos", "eos", "start_header", "end_header"))
        self.tokens = SpecialTokens(**ids, suppressed=suppressed, mask_aliases=(ids["mask"],))
        self.chat = ChatTokenizer(file, self.tokens, "")
        self.rows = rows or max(raw.get_vocab().values()) + 116

    def template(self, text: str) -> Template:
        return Template.parse(text, self.chat, self.tokens, self.rows)

    def refusal(self, text: str) -> OptionError:
        with pytest.raises(OptionError) as caught:
            self.template(text)
        assert "--template" in caught.value.what
        return caught.value

    def ids(self, text: str) -> list[int]:
        return self.chat.encode(text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Vocab:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(json.dumps(tiny_tokenizer()), "utf-8")
    return Vocab(file, ROWS)


@pytest.fixture(scope="module")
def demo() -> Vocab:
    return Vocab(DEMO)


@pytest.fixture(scope="module")
def real(shared: Path) -> Vocab:
    return Vocab(shared / "reference" / "tokenizer.json", 126464)


@pytest.fixture(params=["tiny", "demo", "real"])
def vocab(request: pytest.FixtureRequest) -> Vocab:
    found: Vocab = request.getfixturevalue(request.param)
    return found


def blank(template: Template, vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    masked = template.pinned < 0
    return np.where(masked, vocab.tokens.mask, template.pinned), masked


def put(template: Template, vocab: Vocab, **texts: str) -> np.ndarray:
    """A canvas with these texts in its holes, filled up with fillers."""
    ids, _ = blank(template, vocab)
    for hole in template.holes:
        found = vocab.ids(texts.get(hole.name, ""))
        ids[hole.span] = [*found, *[template.filler] * (hole.length - len(found))]
    return ids


class Filler:
    """Fills canvases with random tokens among those that are allowed, in random orders."""

    def __init__(self, template: Template, vocab: Vocab, seed: int) -> None:
        self.template, self.vocab = template, vocab
        self.rng = np.random.default_rng(seed)
        self.free: np.ndarray | None = None

    def pick(self, position: int, ids: np.ndarray, masked: np.ndarray) -> int:
        restriction = self.template.restrictions(ids, masked)[position]
        assert restriction.ids.dtype == np.int64
        pool = restriction.ids
        if not restriction.allowed:
            if self.rng.random() < 0.2:
                return self.template.filler
            if self.free is None:
                self.free = np.setdiff1d(np.arange(self.vocab.rows), pool)
            pool = self.free
        return int(self.rng.choice(pool))

    def fill(self) -> np.ndarray:
        ids, masked = blank(self.template, self.vocab)
        close = self.rng.random() < 0.5
        if close:
            self.close(ids, masked)
        rules = self.template.restrictions(ids, masked)
        while masked.any():
            position = int(self.rng.choice(np.flatnonzero(masked)))
            ids[position] = self.pick(position, ids, masked)
            masked[position] = False
            self.template.narrow(rules, ids, masked, after=position)
            now = self.template.restrictions(ids, masked)
            assert [rule.ids.tolist() for rule in rules] == [rule.ids.tolist() for rule in now]
            if close:
                assert self.implied(ids, masked, after=position) == self.implied(ids, masked)
                self.close(ids, masked)
        return ids

    def close(self, ids: np.ndarray, masked: np.ndarray) -> None:
        for place, token in self.implied(ids, masked).items():
            ids[place], masked[place] = token, False

    def implied(self, ids: np.ndarray, masked: np.ndarray, after: int | None = None) -> dict[int, int]:
        return self.template.implied(self.template.restrictions(ids, masked), ids, masked, after)


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


def test_thousands_of_fills_of_one_template(tiny: Vocab) -> None:
    template = tiny.template('{"s": "{{4}}", "b": {{bool}}, "n": {{int}}, "c": "{{left|nope|done}}"}')
    filler = Filler(template, tiny, 5)
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


def test_several_commits_in_one_pass_are_valid_if_each_sees_the_ones_before(demo: Vocab) -> None:
    template = demo.template('{"b": {{bool}}, "n": {{int}}, "m": {{int}}}')
    filler = Filler(template, demo, 9)
    for _ in range(200):
        ids, masked = blank(template, demo)
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


def integers(most: int) -> set[str]:
    return {str(n) for n in range(-(10**most) + 1, 10**most)}


def walk(shapes: tuple[tuple[frozenset[int], ...], ...]) -> set[tuple[int, ...]]:
    """Every value of some shapes, one by one."""
    found: set[tuple[int, ...]] = set()
    for shape in shapes:
        prefixes: list[tuple[int, ...]] = [()]
        for tokens in shape:
            prefixes = [(*p, t) for p in prefixes for t in tokens]
        assert not found & set(prefixes)
        found |= set(prefixes)
    return found


@pytest.mark.parametrize("most", [1, 2, 3])
def test_shapes_of_integers_are_all_integers_and_nothing_else(most: int) -> None:
    end = 99
    spelled = set()
    for value in walk(integer_shapes(range(10), 10, most, end)):
        assert len(value) == most + 1
        written = value[: value.index(end)] if end in value else value
        assert set(value[len(written) :]) <= {end}
        spelled.add("".join("0123456789-"[t] for t in written))
    assert spelled == integers(most)


def test_shapes_of_choices_end_in_fillers() -> None:
    assert walk(choice_shapes([[1, 2], [3]], 9)) == {(1, 2), (3, 9)}


@settings(max_examples=60)
@given(data=st.data(), number=st.integers(-999, 999))
def test_every_integer_can_be_reached_in_every_order(data: st.DataObject, number: int, tiny: Vocab) -> None:
    template = tiny.template("n={{int}}")
    (hole,) = template.holes
    target = put(template, tiny, **{"1": str(number)})
    ids, masked = blank(template, tiny)
    for position in data.draw(st.permutations(range(hole.start, hole.start + hole.length))):
        restriction = template.restrictions(ids, masked)[position]
        assert restriction.allowed
        assert target[position] in restriction.ids
        ids[position], masked[position] = target[position], False
    assert template.values(ids) == {"1": number}


@settings(max_examples=60)
@given(data=st.data())
def test_restriction_of_a_choice_is_the_union_over_words_that_still_fit(data: st.DataObject, tiny: Vocab) -> None:
    words = ["abcd", "abxy", "qbcy", "zzzz", "abcy"]
    template = tiny.template("{{" + "|".join(words) + "}}")
    target = data.draw(st.sampled_from(words))
    ids, masked = blank(template, tiny)
    for position in data.draw(st.permutations(range(4))):
        fitting = [w for w in words if all(masked[p] or ids[p] == tiny.ids(w)[p] for p in range(4))]
        for other in np.flatnonzero(masked):
            expected = sorted({tiny.ids(w)[other] for w in fitting})
            assert template.restrictions(ids, masked)[int(other)].ids.tolist() == expected
        ids[position], masked[position] = tiny.ids(target)[position], False
    assert template.values(ids) == {"1": target}


def test_a_token_that_was_not_allowed_is_noticed(tiny: Vocab) -> None:
    template = tiny.template("{{left|nope}}")
    ids, masked = blank(template, tiny)
    ids[0], masked[0] = tiny.ids("z")[0], False
    with pytest.raises(ValueError, match="no value"):
        template.restrictions(ids, masked)[1]


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


def test_text_refuses_what_is_never_predicted(tiny: Vocab) -> None:
    never = tiny.ids("x")[0]
    tokens = tiny.tokens.model_copy(update={"suppressed": (never,)})
    template = Template.parse("{{2}}", tiny.chat, tokens, tiny.rows)
    ids, masked = blank(template, tiny)
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


def test_every_allowed_token_of_the_real_vocabulary_is_safe_in_a_json_string(real: Vocab) -> None:
    began = time.perf_counter()
    fresh = ChatTokenizer.__new__(ChatTokenizer)
    fresh.__dict__.update(real.chat.__dict__, _vocabularies={})
    template = Template.parse('{"a": "{{1}}"}', fresh, real.tokens, real.rows)
    took = time.perf_counter() - began
    ids, masked = blank(template, real)
    refused = template.restrictions(ids, masked)[template.holes[0].start].ids
    allowed = np.setdiff1d(np.arange(real.rows), refused)
    assert len(allowed) > 120_000
    text = real.chat.decode(allowed.tolist())
    assert json.loads(f'"{text}"') == text
    assert "\ufffd" not in text
    assert took < 5, "should be well below a second"


def test_pinned_positions_allow_their_own_token_only(tiny: Vocab) -> None:
    template = tiny.template("ab{{2}}c")
    ids, masked = blank(template, tiny)
    restriction = template.restrictions(ids, masked)[1]
    assert restriction.allowed
    assert restriction.ids.tolist() == tiny.ids("b")


# --------------------------------------------------------------------------------- canvas and answer


def test_literals_are_pinned_piece_by_piece(vocab: Vocab) -> None:
    template = vocab.template('{"object": "{{6}}", "n": {{int}}}')
    pieces = [vocab.ids('{"object": "'), [-1] * 6, vocab.ids('", "n": '), [-1] * 4, vocab.ids("}")]
    assert template.pinned.tolist() == [t for piece in pieces for t in piece]
    assert template.length == len(template.pinned)
    assert [(h.name, h.kind, h.length) for h in template.holes] == [("object", "text", 6), ("n", "int", 4)]
    assert [template.pinned[h.span].tolist() for h in template.holes] == [[-1] * 6, [-1] * 4]


def test_a_space_before_a_word_is_part_of_its_token(real: Vocab) -> None:
    template = real.template('{"graspable": {{bool}}, "x": "{{left|right}}"}')
    graspable, side = template.holes
    assert template.pinned[: graspable.start].tolist() == real.ids('{"graspable":')
    assert graspable.length == side.length == 1
    ids, masked = blank(template, real)
    expected = sorted(real.ids(" true") + real.ids(" false"))
    assert template.restrictions(ids, masked)[graspable.start].ids.tolist() == expected
    ids[graspable.start], ids[side.start] = real.ids(" false")[0], real.ids("right")[0]
    assert template.render(ids) == '{"graspable": false, "x": "right"}'


def test_a_space_stays_in_the_text_where_choices_would_differ_in_length_by_it(tiny: Vocab) -> None:
    # " t" is one token of this tokenizer and " n" two.
    assert len(tiny.ids(" true")) < len(tiny.ids(" null")) == 5
    template = tiny.template("is {{true|null}}")
    assert template.pinned.tolist() == [*tiny.ids("is "), -1, -1, -1, -1]
    assert template.render(put(template, tiny, **{"1": "null"})) == "is null"


def test_text_behind_a_space_and_between_holes(tiny: Vocab) -> None:
    template = tiny.template("A {{2}} {{3}}!")
    assert template.pinned.tolist() == [*tiny.ids("A"), -1, -1, -1, -1, -1, *tiny.ids("!")]
    ids = put(template, tiny, **{"1": "x", "2": " y"})
    assert template.render(ids) == "A x y!"


def test_a_hole_ends_at_its_first_filler_and_loses_white_space(tiny: Vocab) -> None:
    template = tiny.template('{"a": "{{8}}"}')
    (hole,) = template.holes
    ids = put(template, tiny, a=" q z w j")
    assert template.filler not in ids[hole.span]
    assert template.hole_text(hole, ids) == "q z w j"
    ids[hole.start + 3] = template.filler
    assert template.hole_text(hole, ids) == "q"
    assert template.render(ids) == '{"a": "q"}'
    assert template.values(ids) == {"a": "q"}


def test_masks_show_nothing(tiny: Vocab) -> None:
    template = tiny.template('{"a": "{{4}}"}')
    ids, _ = blank(template, tiny)
    assert template.render(ids) == '{"a": ""}'
    ids[template.holes[0].start + 1] = tiny.ids("x")[0]
    assert template.hole_text(template.holes[0], ids) == "x"


def test_literals_are_rendered_as_they_were_written(tiny: Vocab) -> None:
    # Decomposed letters, which tokenizers compose.
    text = "cafe\u0301 \u00a0{{1}}\r\n {a} {{bool}} }"
    template = tiny.template(text)
    ids = put(template, tiny, **{"1": "x", "2": " true"})
    assert template.render(ids) == text.replace("{{1}}", "x").replace("{{bool}}", "true")


def test_what_follows_from_what_was_committed(tiny: Vocab) -> None:
    template = tiny.template("{{4}}{{int}}{{at|of}}")
    ids, masked = blank(template, tiny)

    def implied(after: int | None = None) -> dict[int, int]:
        return template.implied(template.restrictions(ids, masked), ids, masked, after)

    assert not implied()
    # What stands under a mask is only provisional.
    assert not template.implied(template.restrictions(ids, masked), np.where(masked, template.filler, ids), masked)
    ids[1], masked[1] = template.filler, False
    assert implied() == implied(after=1) == {2: template.filler, 3: template.filler}
    assert not implied(after=0)
    ids[0], masked[0] = tiny.ids("x")[0], False
    ids[4:6], masked[4:6] = [tiny.ids("7")[0], template.filler], False
    assert implied().keys() == {2, 3, 6, 7}
    if len(tiny.ids("at")) == 2:
        ids[8], masked[8] = tiny.ids("at")[0], False
        assert implied()[9] == implied(after=8)[9] == tiny.ids("at")[1]
    for place, token in implied().items():
        ids[place] = token
    filled = np.where(ids == tiny.tokens.mask, 0, ids)
    assert template.values(filled)["1"] == "x"
    assert template.values(filled)["2"] == 7


def test_values_have_the_type_of_their_hole(tiny: Vocab) -> None:
    template = tiny.template("{{3}} {{int}} {{bool}} {{1|2}}")
    ids = put(template, tiny, **{"1": " 12", "2": "-7", "3": " false", "4": " 2"})
    assert template.values(ids) == {"1": "12", "2": -7, "3": False, "4": "2"}

    template = tiny.template('{"a": "{{int}}", "b": {{1|2}}, "c": "{{bool}}", "d": {{0.5|1.5}}, "e": {{"x"|"y"}}}')
    ids = put(template, tiny, a="12", b=" 2", c="true", d=" 1.5", e=' "y"')
    assert template.values(ids) == {"a": "12", "b": 2, "c": "true", "d": 1.5, "e": "y"}
    assert json.loads(template.render(ids)) == template.values(ids)


def test_restrictions_are_quick(real: Vocab) -> None:
    words = "|".join(f"{n}{m}" for n in range(10) for m in range(10))
    template = real.template(f'{{"a": "{{{{6}}}}", "b": "{{{{{words}}}}}", "c": {{{{int:5}}}}}}')
    ids, masked = blank(template, real)
    began = time.perf_counter()
    for _ in range(20):
        for position in np.flatnonzero(masked):
            template.restrictions(ids, masked)[int(position)]
    # 0.02 ms with two busy cores; the margin is for other machines.
    assert (time.perf_counter() - began) / 20 < 5e-3


# ------------------------------------------------------------------------------------- how it is written


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
def test_refusals(text: str, says: str, cure: str, tiny: Vocab) -> None:
    error = tiny.refusal(text)
    assert says in error.what
    assert cure in error.cure


def test_choices_that_the_tokenizer_cannot_spell(real: Vocab) -> None:
    error = real.refusal("{{cafe\u0301|tea}}")
    assert "cannot spell the choice 'cafe\u0301'" in error.what
    assert "'caf\u00e9'" in error.what


def test_choices_of_unequal_lengths_are_listed(real: Vocab) -> None:
    error = real.refusal('{"side": "{{left|right|counterclockwise turn}}"}')
    count = len(real.ids("counterclockwise turn"))
    assert f"left 1, right 1, counterclockwise turn {count}" in error.what
    assert f"{{{{{count}}}}}" in error.cure


def test_a_mask_under_another_id_counts_as_a_mask(tiny: Vocab) -> None:
    alias = tiny.ids("x")[0]
    tokens = tiny.tokens.model_copy(update={"mask_aliases": (tiny.tokens.mask, alias)})
    for text in ("x{{2}}", "{{x|y}}"):
        with pytest.raises(OptionError, match=re.escape("--template")):
            Template.parse(text, tiny.chat, tokens, tiny.rows)
    template = Template.parse("{{2}}", tiny.chat, tokens, tiny.rows)
    ids, masked = blank(template, tiny)
    assert alias in template.restrictions(ids, masked)[0].ids


@settings(max_examples=150)
@given(text=st.text('{}[]":,|ab1\\ ', max_size=24))
def test_any_text_is_a_template_or_refused(text: str, tiny: Vocab) -> None:
    for candidate in (text, f"{text}{{{{bool}}}}", f'{{"a": {text}{{{{bool}}}}}}', f'{{"a": "{text}{{{{2}}}}"}}'):
        try:
            template = tiny.template(candidate)
        except OptionError:
            continue
        answer = template.render(Filler(template, tiny, 1).fill())
        if template.is_json:
            json.loads(answer)
