"""What every kind of region tells: how a page asks for it, how a region is written for Label Studio and read back."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from unicodedata import normalize

from pipeline.types import Region, RegionKind, Size

CONTROL, NOTHING, OBJECT = "label", "nothing", "image"
"""Names on a page: what asks for regions, what is ticked where there are none, what shows the image."""
KEYS = "123456789abcdefgijklmnopqrstwxyz"
"""Keys of classes to choose from, in the order in which classes get them; h, u and v do something else in Label
Studio."""
KEYS_BESIDE_TOOLS = "123456789acdfgijlnqstxyz"
"""Keys of classes to draw: b, e, k, m, o, p, r and w are tools."""
NOTHING_KEY = "0"
WORDS = 100


class Spoilt(ValueError):
    """An answer cannot be used because of what is in it."""


class LeftOut(ValueError):
    """A part of an answer cannot be used; what else is in the answer can."""


class Found(NamedTuple):
    """What an answer holds.

    Attributes:
        left_out: of each part that cannot be used why, the answer being of use without it.
        spoilt: why the answer cannot be used.
    """

    regions: tuple[Region, ...] = ()
    left_out: tuple[str, ...] = ()
    spoilt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """The result of an annotation, of any shape, and what it takes to read it.

    Attributes:
        renamed: what a class was called -> what it is called now.
        size: of the image that people were asked about, None where nobody knows it.
    """

    result: Any
    classes: Sequence[str]
    renamed: Mapping[str, str]
    size: Size | None = None

    @property
    def parts(self) -> list[dict[str, Any]]:
        """What controls of the page gave, ours and others."""
        return [part for part in self.result if isinstance(part, dict)] if isinstance(self.result, list) else []

    def of(self, control: str) -> list[dict[str, Any]]:
        """What one control gave."""
        return [part for part in self.parts if part.get("from_name") == control]

    def present(self, name: str) -> str:
        """The name that a class has now; a page that a person has typed may write it in another form."""
        composed = normalize("NFC", name)
        return self.renamed.get(composed, composed)

    @property
    def says_nothing(self) -> bool:
        """Whether the tick is there that stands for no region."""
        return any(isinstance(value := part.get("value"), dict) and value.get("choices") for part in self.of(NOTHING))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of region in Label Studio.

    Attributes:
        region: the kind.
        tag: of the control that asks for it; its classes are `option`s.
        attributes: of the control.
        shown: attributes of the image.
        keys: those that classes get.
        instructions: what annotators read first.
        write: regions and the names under which the page keeps classes -> parts of a result. None of them has an id:
            where two have the same, a page gives the second region the place of the first.
        read: what an answer holds.
        nothing: what people tick where there is no region; None where there is always one.
        has_parts: whether regions are parts of the image, so that they have colours, and its size is to be known.
        tasks_a_page: how many tasks are read at once.
    """

    region: RegionKind
    tag: str
    option: str
    attributes: Mapping[str, str]
    shown: Mapping[str, str]
    keys: str
    instructions: str
    write: Callable[[Sequence[Region], Mapping[str, str]], list[dict[str, Any]]]
    read: Callable[[Given], Found]
    nothing: str | None = None
    has_parts: bool = False
    tasks_a_page: int = 500

    def write_all(self, regions: Sequence[Region], names: Mapping[str, str]) -> list[dict[str, Any]]:
        """The result of a person who found these regions; where there are none, the tick that says so."""
        if regions or self.nothing is None:
            return self.write(regions, names)
        return [part(NOTHING, "choices", {"choices": [self.nothing]})]


def part(control: str, type_: str, value: Mapping[str, Any], score: float | None = None) -> dict[str, Any]:
    """A part of a result."""
    written = {"from_name": control, "to_name": OBJECT, "type": type_, "value": dict(value)}
    return written if score is None else written | {"score": score}


def number(value: Any) -> float:
    """A number of a foreign value; NaN for what is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else math.nan


def words(value: Any) -> str:
    """A foreign value in a message: short, in one line, and nothing that a file or a screen stumbles over."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return "".join(letter if letter.isprintable() else "?" for letter in text[:WORDS])
