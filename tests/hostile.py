"""Names that mean something to some other program, names that are hard to write, and a reader of pages."""

import unicodedata
from html.parser import HTMLParser

from hypothesis import strategies as st

from pipeline.names import checked_class

NAMES = (
    *("$1", "$5", "$image", "costs $5 now", "${a}", "$a.b", "$$1", "$x_1$", "$", "{{x}}", "{x}", "{0}", "%s", "%20"),
    *("a<b", "<b>bold</b>", "<script>alert(1)</script>", "</script>", "<!--", "]]>", "&amp;", "&#36;", 'R&D "x"'),
    *("x'y`z`", "a|b", "||", "*a*", "_a_", "__a__", "# a", "- a", "1. a", "[link](x)", "![i](x)", "<http://x.y>"),
    *("http://x.y/z", "www.x.yz", "a@b.cd", "~~a~~", "\\", "\\n", "\\|", "[red]", "[/red]", "[/]", "[bold]a", ":cat:"),
    *("=cmd()", "+1", "-1", "@x", "'=a", "''", "'tis", "\uff1d1", "NA", "null", "true", "007", "1.0", "1e5", "None"),
    *("a/b", "a:b", "/", ".", "..", "..a", "a/../b", "recall/x", "_24_", "a_24_", "a_bed_b", "a, b", "a;b", "a=b"),
    *(
        "caf\xe9",
        "na\u0308gel",
        "猫",
        "قط",
        "עברית",
        "👩\u200d👩\u200d👧",
        "❤\ufe0f",
        "🫨",
        "\u0645\u06cc\u200c\u062e\u0648",
        "\U00020000",
    ),
    *("L" * 200, "ü" * 200, "two words", "choice='multiple'", 'name="label"', "choice", "label", "item_id"),
)
"""What a class or a file may be called."""

HIDDEN = (
    *("a\x1b[2Jb", "a\x1b]0;title\x07", "a\x00b", "a\x9bb", "a\nb", "a\rb", "a\tb", "a\x85b", "a\u2028b"),
    *(
        "a\xa0b",
        "a\u200bb",
        "a\ufeffb",
        "a\u2060b",
        "a\xadb",
        "a\u202eb",
        "a\u2066b",
        "a\u3164b",
        "a\uffffb",
        "a\ud800b",
    ),
)
"""What a class may not be called, and a file may."""


def is_class(name: str) -> bool:
    try:
        return checked_class(name) == name
    except ValueError:
        return False


CLASSES = tuple(name for name in NAMES if is_class(name))
TEXTS = st.one_of(
    st.sampled_from(NAMES + HIDDEN), st.text(max_size=30), st.lists(st.sampled_from(NAMES), max_size=3).map("".join)
)
"""Anything that a person, a file system or a server may hold."""
CLASS_NAMES = TEXTS.map(lambda text: unicodedata.normalize("NFC", text)).filter(is_class)


class Words(HTMLParser):
    """The words and the tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words, self.tags = "", []
        self.feed(page)
        self.close()

    def handle_data(self, data):
        self.words += data

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def shown(text: str) -> str:
    """As a page shows it: white space is one space."""
    return " ".join(text.split())
