"""Tables that people write (CSV, Parquet), read strictly: as they were meant, or an error with the row and the mend."""

import csv
import difflib
import io
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.names import shorten
from pipeline.pool.reasons import PoolError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
NOT_CSV = {
    b"PAR1": "is a Parquet file: let its name end in .parquet",
    b"PK\x03\x04": "is a spreadsheet or an archive: save it as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet: save it as CSV (UTF-8)",
    b"\x1f\x8b": "is compressed: unpack it first",
    b"\xff\xfe": "is UTF-16: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
}
"""How files begin that are no CSV in UTF-8, and what to do."""
LONGEST_FIELD = 131_072
"""Characters of a field; in a longer one a quote was left open."""
BLANK = r"[\s\u200b\u2060\ufeff]+"
"""White space, also such as nobody sees."""


@dataclass(frozen=True)
class StrictTable:
    """The content of a file.

    Attributes:
        path: of the file.
        rows: text as it was written, None where there is none; the index counts rows from 1 below the first line.
            Known columns have their known names, the others their own.
        others: names of the columns that are not known; those without text have no value here.
        notes: what was read otherwise than written; a line each.
    """

    path: Path
    rows: pd.DataFrame
    others: tuple[str, ...]
    notes: tuple[str, ...]

    def refuse(self, wrong: Iterable[bool], what: str, mend: str = "") -> None:
        """Raise for the first wrong row, with what it holds.

        Args:
            wrong: `(n,)` for each row.
            what: "has no label".
            mend: what to do.
        """
        bad = [position for position, is_wrong in enumerate(wrong) if is_wrong]
        if not bad:
            return
        row = self.rows.iloc[bad[0]].to_dict()
        held = ", ".join(
            f"{name} {shorten(value)}" for name, value in row.items() if name not in self.others and _is_text(value)
        )
        more = f"; {len(bad) - 1} more rows are like it" if len(bad) > 1 else ""
        raise PoolError(f"{self.path}: row {self.rows.index[bad[0]]} ({held}) {what}{': ' if mend else ''}{mend}{more}")


def read_strictly(path: Path, known: Mapping[str, Collection[str]], *, longest: int = LONGEST_FIELD) -> StrictTable:
    """Read a CSV (UTF-8) or, by its name, a Parquet file.

    White space, case and quotes around the name of a column are forgiven, and so are semicolons and tabs between the
    fields; rows without any value are passed over. Nothing else is.

    Args:
        path: of the file.
        known: names of the columns, the first of which must be there; each with other words for it, in lower case
            without spaces and signs, which are refused where the column itself is missing or empty.
        longest: characters of a field of a CSV.

    Raises:
        PoolError: naming the file, the row and what to write.
    """
    try:
        if path.suffix.lower() == ".parquet":
            columns, notes = _read_parquet(path, known), list[str]()
        else:
            columns, notes = _read_csv(path, next(iter(known)), longest)
    except FileNotFoundError as exc:
        raise PoolError(f"{path}: no such file") from exc
    except (OSError, ValueError, pa.ArrowException) as exc:
        if isinstance(exc, PoolError):
            raise
        raise PoolError(f"{path}: cannot be read: {exc}") from exc
    names, told = _name(path, [name for name, _ in columns], known)
    rows = pd.DataFrame({position: column for position, (_, column) in enumerate(columns)}, dtype=object)
    rows.index = pd.RangeIndex(1, len(rows) + 1)
    rows.columns = pd.Index(names)
    rows = rows.loc[:, ~rows.columns.duplicated()]
    if path.suffix.lower() != ".parquet":
        rows = rows[rows.notna().any(axis=1)]
    others = tuple(str(name) for name in rows if name not in known)
    _refuse_other_words(path, rows, others, known)
    return StrictTable(path, rows.reindex(columns=[*known, *others]), others, (*notes, *told))


def trim(table: StrictTable, name: str) -> StrictTable:
    """The table without white space around the values of a column, and a note where there was some."""
    before = table.rows[name]
    after = before.map(lambda value: _trimmed(value) if _is_text(value) else None)
    changed = before[before.map(_is_text) & (before != after)]
    notes = table.notes
    if not changed.empty:
        notes += (
            f"{table.path.name}: white space around values of {name} is passed over, in {len(changed)} rows, such as "
            f"{shorten(changed.iloc[0])} in row {changed.index[0]}",
        )
    return replace(table, rows=table.rows.assign(**{name: after.replace({"": None})}), notes=notes)


def nfc(text: str) -> str:
    """The text in the Unicode form that letters with accents are one character in."""
    return unicodedata.normalize("NFC", text)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _trimmed(text: str) -> str:
    return re.sub(rf"^{BLANK}|{BLANK}$", "", text)


# Columns: which name means what.


def _plain(name: str) -> str:
    """The name of a column without what is forgiven."""
    return _trimmed(_trimmed(unicodedata.normalize("NFKC", name)).strip("\"'`")).casefold()


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", _plain(name))


def _name(path: Path, written: Sequence[str], known: Mapping[str, Collection[str]]) -> tuple[list[str], list[str]]:
    """The names of the columns as they were meant, and what to say of it."""
    names = [_plain(name) if _plain(name) in known else name for name in written]
    first = next(iter(known))
    for name in known:
        if names.count(name) > 1:
            forms = ", ".join(shorten(text) for text, meant in zip(written, names, strict=True) if meant == name)
            raise PoolError(f"{path}: has the column {name} {names.count(name)} times ({forms}): keep one")
    if first not in names:
        listed = ", ".join(name if name.isprintable() and name == _trimmed(name) else repr(name) for name in written)
        near = [name for name in written if _bare(name) in known[first] or _is_like(name, first)]
        if near:
            mend = f"call {shorten(near[0])} {first} in the first line"
        elif any(re.search(r"\.\w{2,4}$", name) for name in written):
            mend = f"the first line must name the columns, for example {first},label"
        else:
            mend = f"the first line must name the columns; known are {', '.join(known)}"
        raise PoolError(f"{path}: needs a column {first}, has {listed or 'no columns'}: {mend}")
    changed = [(text, name) for text, name in zip(written, names, strict=True) if text != name]
    return names, [f"{path.name}: the column {shorten(text)} is read as {name}" for text, name in changed]


def _refuse_other_words(
    path: Path, rows: pd.DataFrame, others: Sequence[str], known: Mapping[str, Collection[str]]
) -> None:
    """Raise where a column that is not known takes the place of one that is."""
    for name in known:
        if name in rows and rows[name].notna().any():
            continue
        for other in others:
            if _bare(other) in known[name] or _is_like(other, name):
                raise PoolError(
                    f"{path}: the column {shorten(other)} is not known: call it {name} if that is what it holds, or "
                    f"take it away. Known columns are {', '.join(known)}"
                )


def _is_like(name: str, known: str) -> bool:
    return bool(difflib.get_close_matches(_bare(name), [known], cutoff=0.8))


# CSV


def _read_csv(path: Path, first: str, longest: int) -> tuple[list[tuple[str, list[str | None]]], list[str]]:
    """Names and values of the columns, an empty field as None, and what to say of it."""
    if path.exists() and not path.is_file():
        raise PoolError(f"{path}: is not a regular file")
    text = _decode(path, path.read_bytes())
    if not text.strip():
        raise PoolError(f"{path}: needs a column {first}, has no columns: the file is empty")
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = next((d for d in DELIMITERS if first in map(_plain, header.split(d))), ",")
    notes = [] if delimiter == "," else [f"{path.name}: the fields are read as separated by {DELIMITERS[delimiter]}"]
    is_spaced = f'{delimiter} "' in text  # "a.png", "cat": the quotes count although a space is before them
    records = _records(
        path,
        csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=is_spaced),
        longest,
    )
    names = next((record for record in records if any(map(_trimmed, record))), None)
    if names is None:
        raise PoolError(f"{path}: needs a column {first}, has no columns: nothing is written in it")
    named = max(place for place, name in enumerate(names, start=1) if _trimmed(name))
    values = [_fields(path, row, record, names, named) for row, record in enumerate(records, start=1)]
    columns = [[row[place] or None for row in values] for place in range(len(names))]
    for place, (name, column) in enumerate(zip(names, columns, strict=True), start=1):
        if not _trimmed(name) and not all(value is None or value.isdecimal() for value in column):
            raise PoolError(f"{path}: column {place} has no name: name it in the first line, or take it away")
    return [(name, column) for name, column in zip(names, columns, strict=True) if _trimmed(name)], notes


def _decode(path: Path, content: bytes) -> str:
    for start, what in NOT_CSV.items():
        if content.startswith(start):
            raise PoolError(f"{path}: {what}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise PoolError(
            f"{path}: line {line} is not UTF-8 (byte 0x{content[exc.start]:02x}): it was saved in another encoding, "
            "such as Windows-1252; save it as UTF-8"
        ) from exc
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        if text.count("\0") > len(text) // 4:
            raise PoolError(f"{path}: line {line} is not UTF-8: the file looks like UTF-16; save it as UTF-8")
        raise PoolError(f"{path}: line {line} holds a NUL byte: the file is damaged; write it anew")
    return text


def _records(path: Path, reader: Iterator[list[str]], longest: int) -> Iterator[list[str]]:
    n_read = 0
    before = csv.field_size_limit(longest)  # of the whole process
    try:
        for record in reader:
            yield record
            n_read += 1
    except csv.Error as exc:
        if "expected after" in str(exc):
            mend = "text follows a closing quote; a quote within a quoted field is written twice"
        elif "limit" in str(exc):
            mend = f"a field is longer than {csv.field_size_limit():,} characters; is a quote left open?"
        else:
            mend = "a quote that is opened here is not closed"
        raise PoolError(f"{path}: {f'row {n_read}' if n_read else 'the first line'}: {mend}") from exc
    finally:
        csv.field_size_limit(before)


def _fields(path: Path, row: int, record: list[str], names: Sequence[str], named: int) -> list[str]:
    """The fields of a row, one for each column."""
    missing = len(names) - len(record)
    if not any(map(str.strip, record)):
        return [""] * len(names)
    if missing < 0:
        raise PoolError(
            f"{path}: row {row} has more fields than the first line, {len(record)} for {len(names)}: put a value that "
            "holds a comma in quotes, and take commas at the ends of lines away"
        )
    if len(record) < named:
        raise PoolError(
            f"{path}: row {row} has fewer fields than the first line, {len(record)} for {named}: end it with a comma "
            "where the last value is missing"
        )
    return record + [""] * missing


# Parquet


def _read_parquet(path: Path, known: Collection[str]) -> list[tuple[str, list[str | None]]]:
    """Names and values of the columns, as text; missing and empty values, and what else a column holds, as None."""
    with pq.ParquetFile(path) as file:
        kinds = {field.name: field.type for field in file.schema_arrow}
        names = file.schema_arrow.names
        repeated = [name for name in kinds if names.count(name) > 1]
        if repeated:
            raise PoolError(f"{path}: has the column {repeated[0]} {names.count(repeated[0])} times: keep one")
        wanted = [name for name, kind in kinds.items() if _plain(name) in known or _is_text_kind(kind)]
        table = file.read(columns=wanted)
    return [(name, _texts(path, table.column(name)) if name in wanted else [None] * table.num_rows) for name in kinds]


def _is_text_kind(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(path: Path, column: pa.ChunkedArray) -> list[str | None]:
    return [_text(path, row, value) or None for row, value in enumerate(column.to_pylist(), start=1)]


def _text(path: Path, row: int, value: object) -> str | None:
    """Text of a value; a whole number among missing ones is a float."""
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if isinstance(value, str) and "\0" in value:
        raise PoolError(f"{path}: row {row} holds a NUL character ({shorten(value)}): take it away")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise PoolError(f"{path}: row {row} holds {shorten(value)}, which is a {type(value).__name__}: write text")
