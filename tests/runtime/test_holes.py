"""What a hole allows: all of its values, in every order, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_fills import Vocab, blank, put

from lladav.runtime.holes import choice_shapes, integer_shapes


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
def test_every_integer_can_be_reached_in_every_order(data: st.DataObject, number: int, tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template("n={{int}}")
    (hole,) = template.holes
    target = put(template, tiny_vocab, **{"1": str(number)})
    ids, masked = blank(template, tiny_vocab)
    for position in data.draw(st.permutations(range(hole.start, hole.start + hole.length))):
        restriction = template.restrictions(ids, masked)[position]
        assert restriction.allowed
        assert target[position] in restriction.ids
        ids[position], masked[position] = target[position], False
    assert template.values(ids) == {"1": number}


@settings(max_examples=60)
@given(data=st.data())
def test_restriction_of_a_choice_is_the_union_over_words_that_still_fit(data: st.DataObject, tiny_vocab: Vocab) -> None:
    words = ["abcd", "abxy", "qbcy", "zzzz", "abcy"]
    template = tiny_vocab.template("{{" + "|".join(words) + "}}")
    target = data.draw(st.sampled_from(words))
    ids, masked = blank(template, tiny_vocab)
    for position in data.draw(st.permutations(range(4))):
        fitting = [w for w in words if all(masked[p] or ids[p] == tiny_vocab.ids(w)[p] for p in range(4))]
        for other in np.flatnonzero(masked):
            expected = sorted({tiny_vocab.ids(w)[other] for w in fitting})
            assert template.restrictions(ids, masked)[int(other)].ids.tolist() == expected
        ids[position], masked[position] = tiny_vocab.ids(target)[position], False
    assert template.values(ids) == {"1": target}


def test_a_token_that_was_not_allowed_is_noticed(tiny_vocab: Vocab) -> None:
    template = tiny_vocab.template("{{left|nope}}")
    ids, masked = blank(template, tiny_vocab)
    ids[0], masked[0] = tiny_vocab.ids("z")[0], False
    with pytest.raises(ValueError, match="no value"):
        template.restrictions(ids, masked)[1]
