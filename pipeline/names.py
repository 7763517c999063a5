"""Names that people give: what is hidden in them, how they are printed, and what a class may be called."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

HIDDEN = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
)
"""Signs that nobody sees, or that move the cursor or reorder other text, as in the brackets of a regular expression:
controls, Unicode's Default_Ignorable_Code_Point, ends of lines, halves of surrogates. Without the joiners and selectors
that scripts and emoji need."""
JOINERS = "\u200c\u200d\ufe0e\ufe0f"

_NOT_FOR_CLASSES = re.compile(f"[{HIDDEN}]|(?! )\\s")


def checked_class(name: str) -> str:
    r"""The name of a class, its letters composed (Unicode's NFC), so that names that look alike are alike.

    >>> checked_class("cafe\u0301") == "caf\u00e9"
    True

    Raises:
        ValueError: for what nobody can see in it, or tell from nothing.
    """
    name = unicodedata.normalize("NFC", name)
    wrong = _NOT_FOR_CLASSES.search(name)
    if wrong:
        raise ValueError(f"a class name must not hold {_named(wrong[0])}, which nobody can see: write it without")
    if not name or name != " ".join(name.split()) or not name.strip(JOINERS):
        raise ValueError("a class name is not empty and has single spaces inside only")
    if unicodedata.category(name[0]).startswith("M"):
        raise ValueError(f"a class name must not begin with {_named(name[0])}, which belongs to a letter before it")
    return name


def checked_classes(names: Sequence[str], *, fewest: int = 2) -> tuple[str, ...]:
    """The names of classes to choose from.

    Args:
        fewest: so many there must be.

    Raises:
        ValueError: nobody could choose among them.
    """
    checked = tuple(checked_class(name) for name in names)
    if len(set(checked)) != len(checked) or len(checked) < fewest:
        raise ValueError(f"wanted {fewest} or more distinct classes, got {list(names)}")
    return checked


def mistakable(names: Iterable[str]) -> str | None:
    r"""How two of the names can be taken for each other, for people to read; None where all are distinct to the eye.

    A single letter and its capital are distinct: where letters are to be read, both are classes.

    >>> mistakable(["Cat", "dog", "cat"])
    "'Cat' and 'cat' differ only in capitals"
    >>> mistakable(["a", "A", "fish", "\ufb01sh"])
    "'fish' and '\ufb01sh' differ only in how the same letters are written: U+FB01 LATIN SMALL LIGATURE FI"
    """
    seen: dict[str, str] = {}
    for name in names:
        bare = "".join(sign for sign in name if sign not in JOINERS)
        plain = bare if len(bare) == 1 else unicodedata.normalize("NFKC", bare.casefold()).casefold()
        other = seen.setdefault(plain, name)
        if other != name:
            return f"{other!r} and {name!r} differ only in {_difference(other, name)}"
    return None


def shorten(value: object, length: int = 80) -> str:
    """A value for people to read: quoted, with what cannot be printed escaped, and not too long."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]}...{text[-1]}"


def printable(text: str) -> str:
    """The text with what cannot be printed escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _difference(one: str, other: str) -> str:
    if one.lower() == other.lower():
        return "capitals"
    signs = ", ".join(_named(sign) for sign in sorted(set(one.lower()) ^ set(other.lower())) if sign > "\x7f")
    hidden = any(sign in JOINERS for sign in set(one) ^ set(other))
    return f"{'what nobody sees' if hidden else 'how the same letters are written'}: {signs}"


def _named(sign: str) -> str:
    """
    >>> _named("\\xa0")
    'U+00A0 NO-BREAK SPACE'
    """
    return f"U+{ord(sign):04X} {unicodedata.name(sign, '')}".rstrip()
