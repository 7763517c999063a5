"""What a class may be called."""

import pytest

from pipeline.names import checked_class, mistakable
from tests.hostile import CLASSES, HIDDEN


@pytest.mark.parametrize("name", CLASSES)
def test_any_name_that_people_can_see_is_taken_as_it_is(name):
    assert checked_class(name) == name


@pytest.mark.parametrize("name", HIDDEN)
def test_what_nobody_can_see_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=rf"must not hold U\+{ord(name[1]):04X}.*: write it without"):
        checked_class(name)


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a  b", "\u200d", "\ufe0f"])
def test_a_name_has_something_in_it_and_single_spaces_inside(name):
    with pytest.raises(ValueError, match="is not empty and has single spaces inside only"):
        checked_class(name)


def test_a_name_does_not_begin_with_half_a_letter():
    with pytest.raises(ValueError, match=r"must not begin with U\+0301 COMBINING ACUTE ACCENT"):
        checked_class("\u0301a")


def test_both_forms_of_a_letter_are_one():
    assert checked_class("cafe\u0301") == checked_class("caf\xe9") == "caf\xe9"


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("Cat", "dog", "cat"), "'Cat' and 'cat' differ only in capitals"),
        (("ÉCLAIR", "éclair"), "differ only in capitals"),
        (("fish", "\ufb01sh"), "how the same letters are written: U+FB01 LATIN SMALL LIGATURE FI"),
        (("\uff11\uff10", "10"), "U+FF10 FULLWIDTH DIGIT ZERO, U+FF11 FULLWIDTH DIGIT ONE"),
        (("Straße", "STRASSE"), "U+00DF LATIN SMALL LETTER SHARP S"),
        (("ab", "a\u200db"), "what nobody sees: U+200D ZERO WIDTH JOINER"),
        (("❤", "❤\ufe0f"), "what nobody sees: U+FE0F VARIATION SELECTOR-16"),
    ],
)
def test_names_that_can_be_taken_for_each_other_are_told(names, difference):
    assert difference in mistakable(names)


def test_letters_of_an_alphabet_and_other_names_can_be_told_apart():
    assert mistakable([chr(code) for code in (*range(0x41, 0x5B), *range(0x61, 0x7B))]) is None
    assert mistakable(["1", "1.0", "01", "+1", "-1", "a b", "ab", "a_b", "a-b", "①"]) is None
