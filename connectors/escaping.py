r"""Text that somebody else chose, written into the language of another program: one function for each language.

A class may be called `$5`, `<b>`, `=1+1` or `[red]`, a file anything at all. Whoever writes such a text where text is
more than text calls the function of that language here. XML, HTML and JSON are written by libraries that escape.
"""

import hashlib
import html
import re

from pipeline.names import HIDDEN

LONGEST_MLFLOW_KEY = 250

_HIDDEN_SIGN = re.compile(f"[{HIDDEN}]")
_MARKDOWN = re.compile(r"[!#$&()*+\-.:<=>@\[\\\]_`{|}~]")
_FORMULA = re.compile(r"'*\s*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r]")
_NOT_FOR_MLFLOW = re.compile(r"[^\w .:\-]|^\.|_(?=[0-9a-f]{2,6}(?:_|[^\w .:\-]))")
"""The last is an underscore that would begin one of our own codes."""
_VARIABLE = re.compile(r"\$(?=[\w\[\].{}])")


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""Text for a terminal or a log: what would move the cursor, hide or reorder is shown as an escape.

    >>> print(visible("\x1b[2Jtidy\u202egpj.exe"))
    \x1b[2Jtidy\u202egpj.exe

    Args:
        keep: signs that stay as they are; none, where the text must be one line.
    """
    return _HIDDEN_SIGN.sub(
        lambda sign: sign[0] if sign[0] in keep else sign[0].encode("unicode_escape").decode("ascii"), text
    )


def markdown(text: str) -> str:
    """Text within a line or a cell of a table in Markdown, shown there as it is.

    >>> markdown("a|b <i>")
    'a&#124;b &#60;i&#62;'
    """
    return _MARKDOWN.sub(lambda sign: f"&#{ord(sign[0])};", visible(text, keep=""))


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; `from_csv_cell` gives the text back.

    >>> [csv_cell(text) for text in ("=1+1", "-1", "'=x", "'tis", "cat")]
    ["'=1+1", "'-1", "''=x", "'tis", 'cat']
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv_cell(cell: str) -> str:
    """The text that `csv_cell` wrote; other texts stay.

    >>> [from_csv_cell(cell) for cell in ("'=1+1", "''=x", "'tis")]
    ['=1+1', "'=x", "'tis"]
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def mlflow_key(name: str) -> str:
    """A metric, parameter or tag as MLflow takes its name; other names never get the same one.

    >>> mlflow_key("recall/$5 (new)"), mlflow_key("recall/.."), mlflow_key("recall/fire_engine")
    ('recall/_24_5 _28_new_29_', 'recall/_2e_.', 'recall/fire_engine')
    """
    key = "/".join(
        _NOT_FOR_MLFLOW.sub(lambda sign: f"_{ord(sign[0]):02x}_", part) or "_000000_" for part in name.split("/")
    )
    if len(key) <= LONGEST_MLFLOW_KEY:
        return key
    ending = f"_{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"
    return key[: LONGEST_MLFLOW_KEY - len(ending)] + ending


def prefect_key(text: str) -> str:
    """The key of an artifact in Prefect: small letters, digits and dashes.

    >>> prefect_key("My_pets, round 3")
    'my-pets--round-3'
    """
    return re.sub(r"[^a-z0-9-]", "-", text.lower())


def label_studio_choice(label: str) -> dict[str, str]:
    r"""Attributes of a `Choice` that Label Studio shows as `label`, and gives back as it.

    Its pages take `$5` and `$name` anywhere in a value for a variable of the task. There the answer is in `alias` and
    what is shown in `html`, which are taken as they are; the value only tells the choices apart.

    >>> label_studio_choice("cat")
    {'value': 'cat'}
    >>> label_studio_choice("$5 <")
    {'value': '$\u20605 <', 'alias': '$5 <', 'html': '$5 &lt;'}
    """
    if not reads_as_variable(label):
        return {"value": label}
    return {"value": _VARIABLE.sub("$\u2060", label), "alias": label, "html": html.escape(label)}


def reads_as_variable(value: str) -> bool:
    """Whether Label Studio would put something of the task in the place of a part of the value.

    >>> [reads_as_variable(value) for value in ("$5", "5 $", "US$ 5", "US$5")]
    [True, False, False, True]
    """
    return _VARIABLE.search(value) is not None
