"""What people write into a table of images is read as it was meant, or refused with the row and the mend."""

import contextlib
import datetime
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from connectors.image_folder.manifest import read_manifest
from pipeline.pool.notes import changes, unused_lines
from pipeline.pool.reasons import PoolError
from pipeline.pool.table import set_aside_counts, usable
from tests.images import index_images

CAFE, CAFE_TOO = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
CLASSES = ("cat", "dog", CAFE)
NAMES = ("a.png", "b.png", "c.png", "sub/a.png", "sub/d e.png", f"{CAFE}.png", f"sub/{CAFE_TOO}.png", "IMG_1.JPG")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pool" / "sub").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pool" / name)
    return tmp_path / "pool"


@pytest.fixture
def read(folder):
    """Index a manifest of this content; the labels and groups by name, and what people are told."""

    def index(content, known=None, *, name="manifest.csv", **options):
        path, told = folder / name, []
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        table = index_images(path, known, classes=CLASSES, tell=told.append, **options)
        return table, told

    return index


def labels_of(table, folder):
    rows = usable(table).astype(object)
    rows = rows.where(rows.notna(), None)
    return {str(Path(uri).relative_to(folder)): label for uri, label in zip(rows["uri"], rows["label"], strict=True)}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("uri,label\na.png,cat\nb.png,dog\n", None),
        ("uri, label\na.png,cat\nb.png,dog\n", "the column ' label' is read as label"),
        ("uri,Label\na.png,cat\nb.png,dog\n", "the column 'Label' is read as label"),
        ("URI ,label\na.png,cat\nb.png,dog\n", "the column 'URI ' is read as uri"),
        ("uri,\ufefflabel\na.png,cat\nb.png,dog\n", "is read as label"),
        ("\ufeffuri,label\na.png,cat\nb.png,dog\n", None),
        ("\ufeff\ufeffuri,label\na.png,cat\nb.png,dog\n", "is read as uri"),
        ("uri,label\na.png,cat \nb.png,\u00a0dog\n", "white space around values of label is passed over, in 2 rows"),
        ("uri,label\n a.png,cat\nb.png,dog\n", "without white space around them, in 1 rows, such as ' a.png' in row 1"),
        ('"uri", "label"\n"a.png", "cat"\n"b.png", "dog"\n', None),
        ("uri;label\na.png;cat\nb.png;dog\n", "separated by semicolons"),
        ("label\turi\ncat\ta.png\ndog\tb.png\n", "separated by tabs"),
        ("uri,label\r\na.png,cat\rb.png,dog\n", None),
        ("\n\nuri,label\n\na.png,cat\n,\n ,\nb.png,dog", None),
        ("uri,label,\na.png,cat,\nb.png,dog\n", None),
        (",uri,label\n0,a.png,cat\n1,b.png,dog\n", None),
        ("Unnamed: 0,uri,label\n0,a.png,cat\n1,b.png,dog\n", None),
        ("id,uri,label,width\n7,a.png,cat,6\n8,b.png,dog,6\n", "columns that are not used: 'id', 'width'"),
        ("uri,label,split\na.png,cat,train\nb.png,dog,\n", "columns that are not used: 'split'"),
        (
            "uri,label\n.\\a.png,cat\nb.png,dog\n",
            "with / for back-slashes, in 1 rows, such as '.\\\\a.png' in row 1",
        ),
    ],
)
def test_is_read_as_it_was_meant_with_a_word(read, folder, content, note):
    table, told = read(content)
    assert labels_of(table, folder) == {"a.png": "cat", "b.png": "dog"}
    assert (len(told), note in "".join(told)) == (1, True) if note else told == []


def test_class_that_a_spreadsheet_would_take_for_a_formula_is_known_as_tables_have_it(tmp_path):
    classes = ("-1", "'=x", "=x", "cat")
    path = tmp_path / "manifest.csv"
    path.write_text("uri,label\na,-1\nb,'-1\nc,''=x\nd,'=x\ne,=x\n", encoding="utf-8")
    assert read_manifest(path, classes).rows["label"].tolist() == ["-1", "-1", "'=x", "'=x", "=x"]
    path.write_text("uri,label\na,'cat\n", encoding="utf-8")
    with pytest.raises(PoolError, match="has a label that is not one of the classes"):
        read_manifest(path, classes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("uri,class\na.png,cat\n", "the column 'class' is not known: call it label if that is what it holds, or take"),
        ("uri,Labels\na.png,cat\n", "the column 'Labels' is not known: call it label"),
        ("uri,lable\na.png,cat\n", "the column 'lable' is not known: call it label"),
        ("uri,label,class\na.png,,cat\n", "the column 'class' is not known: call it label"),
        ("uri,Klasse\na.png,cat\nb.png,\n", "the column 'Klasse' holds names of classes: call it label"),
        ("uri,group_id\na.png,3\n", "the column 'group_id' is not known: call it group"),
        ("file_name,label\na.png,cat\n", "needs a column uri, has file_name, label: call 'file_name' uri in the first"),
        (
            "a.png,cat\nb.png,dog\n",
            "needs a column uri, has a.png, cat: the first line must name the columns, for exam",
        ),
        ("uri,label,Label\na.png,cat,dog\n", r"has the column label 2 times \('label', 'Label'\): keep one"),
        ("uri,label,\na.png,cat,tabby\n", "column 3 has no name"),
        ("uri,label\na.png,cat,\nb.png,dog,\n", "row 1 has more fields than the first line, 3 for 2: .*at the ends of"),
        ("uri,label\na.png,cat\nb, c.png,dog\n", "row 2 has more fields than the first line, 3 for 2: .*in quotes"),
        ("uri,label\na.png,cat\nb.png\n", "row 2 has fewer fields than the first line, 1 for 2"),
        ('uri,label\na.png,cat\n"b.png,dog\n', "row 2: a quote that is opened here is not closed"),
        ('uri,label\n"a.png,cat\n"b.png",dog\n', "row 1: text follows a closing quote"),
        ('uri,label\n"a.png,cat\nb.png",dog\n', "row 1 .* holds a line break, .*is a quote left open"),
        (f"uri,label\na.png,cat\n{'x' * 140_000},dog\n", "row 2: a field is longer than 131,072 characters"),
        ("uri,label\na.png,Cat\n", r"row 1 \(uri 'a.png', label 'Cat'\) has a label that .* cat, dog, .*mean 'cat'\?"),
        ("uri,label\na.png,c\u0430t\n", r"did you mean 'cat' \(not 'c\\u0430t'\)\?"),
        ("uri,label\na.png,cat\n\nb.png,NA\n", r"row 3 \(uri 'b.png', label 'NA'\) .*: leave the field empty"),
        ("uri,label\na.png,cow\nb.png,cow\nc.png,cow\n", "row 1 .*; 2 more rows are like it"),
        ("uri,label\na.png,cat\n  ,dog\n", r"row 2 \(uri '  ', label 'dog'\) has no uri"),
        ("uri,label\na.png,cat\n./sub/../a.png,dog\n", r"row 2 .* gives a second label to an image: row 1 says 'cat'"),
        ("uri,group\na.png,x\na.png,y\n", "row 2 .* gives a second group to an image: row 1 says 'x'"),
        (
            "uri,split\na.png,train\nb.png,test\n",
            r"row 2 \(uri 'b.png'\) says 'test' in the column 'split': a campaign",
        ),
        (
            "uri,Usage\na.png,train\nb.png,Val\n",
            "row 2 .* says 'Val' in the column 'Usage': a campaign draws its audit",
        ),
        ("uri,split\na.png,fold 3\n", "row 1 .* says 'fold 3' in the column 'split'"),
        ("uri,label\na.png,c\0t\n", "line 2 holds a NUL byte"),
        ("uri,label\na.png,cat\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("uri,label\na.png,cat\n".encode("utf-16-le"), "looks like UTF-16; save it as UTF-8"),
        ("uri,label\na.png,caf\u00e9\n".encode("cp1252"), "line 2 is not UTF-8 .*Windows-1252; save it as UTF-8"),
        (b"PK\x03\x04", "is a spreadsheet or an archive: save it as CSV"),
        (b"PAR1", r"is a Parquet file: let its name end in \.parquet"),
        ("", "needs a column uri, has no columns: the file is empty"),
        (" ,\n", "needs a column uri, has no columns"),
        ("uri,label\n", "is empty: wanted at least one image"),
    ],
)
def test_is_refused_with_what_to_write(read, content, message):
    with pytest.raises(PoolError, match=r"manifest\.csv.*" + message):
        read(content)


class TestNames:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            (f"{CAFE_TOO}.png", f"{CAFE}.png"),
            (f"sub/{CAFE}.png", f"sub/{CAFE_TOO}.png"),
            ("sub\\a.png", "sub/a.png"),
            (f"sub\\{CAFE}.png", f"sub/{CAFE_TOO}.png"),
            ("sub/d%20e.png", "sub/d e.png"),
            ("sub\\d%20e.png", "sub/d e.png"),
        ],
    )
    def test_written_otherwise_are_found_with_a_word(self, read, folder, written, meant):
        table, (note,) = read(f"uri,label\n{written},cat\n")
        assert labels_of(table, folder) == {meant: "cat"}
        assert re.search(r"manifest\.csv: names of files are read .*, in 1 rows, such as .* in row 1", note)
        again, _ = read(f"uri,label\n{written},cat\n", table)
        assert again.equals(table)

    def test_are_taken_as_they_are_where_they_are_there(self, read, folder):
        names = ["sub\\a.png", "d%20e.png", "~", f"{CAFE_TOO}.png", " a.png"]
        for seed, name in enumerate(names, start=50):
            Image.fromarray(np.full((4, 4), seed, dtype=np.uint8)).save(folder / name, format="PNG")
        table, told = read("uri\n" + "\n".join(names) + "\n")
        assert set(labels_of(table, folder)) == set(names)
        assert told == []

    def test_may_be_addresses_of_files_and_absolute(self, read, folder):
        table, told = read(f"uri\nfile://{folder}/sub/d%20e.png\n{folder}/a.png\nfile://localhost{folder}/b.png\n")
        assert set(labels_of(table, folder)) == {"sub/d e.png", "a.png", "b.png"}
        assert told == []

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("img_1.jpg", "cannot be read: No such file or directory; there is IMG_1.JPG"),
            ("SUB\\A.png", "cannot be read: No such file or directory"),
            ("../x.png", "outside the pool's folder: images must lie in "),
            ("/etc/passwd", "outside the pool's folder: images must lie in "),
            ("file:///etc/passwd", "outside the pool's folder: images must lie in "),
            ("~/x.png", "outside the pool's folder: images must lie in "),
            ("ftp://x.org/a.png", "an address, not a file: images must be on a disk that this machine sees"),
            ("HDFS://bucket/a.png", "an address, not a file: images must be on a disk that this machine sees"),
            ("file://server/share/a.png", "an address, not a file: images must be on a disk that this machine sees"),
            ("C:\\images\\a.png", "cannot be read: No such file or directory"),
            ("sub", "not an image: not a regular file"),
            (".", "outside the pool's folder"),
            ("x" * 300, "cannot be read: File name too long"),
        ],
    )
    def test_that_nothing_is_found_for_are_set_aside_with_the_reason(self, read, name, reason):
        table, _ = read(f"uri\na.png\n{name}\n")
        (row,) = table["set_aside_reason"].dropna()
        assert row.startswith(reason)
        assert len(usable(table)) == 1

    def test_that_differ_in_form_alone_are_told_apart(self, read, folder):
        Image.new("L", (4, 4)).save(folder / f"{CAFE_TOO}.png")
        table, _ = read(f"uri,label\n{CAFE}.png,cat\n{CAFE_TOO}.png,dog\n")
        assert labels_of(table, folder) == {f"{CAFE}.png": "cat", f"{CAFE_TOO}.png": "dog"}

    def test_of_labels_are_read_in_either_form(self, read, folder):
        table, _ = read(f"uri,label\na.png,{CAFE_TOO}\nb.png,{CAFE}\n")
        assert labels_of(table, folder) == {"a.png": CAFE, "b.png": CAFE}


def test_rows_that_cannot_be_used_are_told_with_an_example_and_what_to_do(read):
    table, _ = read("uri,label\na.png,cat\nsub\\x.png,cat\nsub\\y.png,dog\nftp://x/z.png,\n")
    lines = unused_lines(table, wrong_only=True)
    assert re.match(r"2 cannot be read: such as .*sub\\x.png: No such file .*\(check their paths", lines[0])
    assert lines[1].startswith("1 an address, not a file: such as ftp://x/z.png: ")
    with pytest.raises(PoolError, match=r"3 of 4 images cannot be used, more than max_unused = 0\.5 .*sub\\x\.png"):
        read("uri,label\na.png,cat\nsub\\x.png,cat\nsub\\y.png,dog\nftp://x/z.png,\n", max_unused=0.5)
    with pytest.raises(PoolError, match=r"no usable image: 1 cannot be read: such as .*x\.png: No such file"):
        read("uri\nx.png\n")


class TestReadAgain:
    def test_takes_labels_back_and_changes_them(self, read, folder):
        first, _ = read("uri,label\na.png,cat\nb.png,dog\nc.png,\n")
        second, _ = read("uri,label\na.png,\nb.png,cat\nc.png,dog\n", first)
        assert labels_of(second, folder) == {"a.png": None, "b.png": "cat", "c.png": "dog"}
        assert changes(first, second) == ["labels of the manifest: 1 new, 1 changed, 1 withdrawn"]
        third, _ = read("uri\na.png\nb.png\nc.png\n", second)
        assert third["label"].isna().all()

    def test_takes_rows_out_of_the_pool_until_they_are_back(self, read, folder):
        first, _ = read("uri,label,group\na.png,cat,x\nb.png,dog,y\nc.png,,\n")
        without_a = "uri,label,group\nb.png,dog,y\nc.png,,\n"
        second, _ = read(without_a, first)
        assert set(labels_of(second, folder)) == {"b.png", "c.png"}
        assert set_aside_counts(second) == {"no longer in the manifest": 1}
        assert set(second["item_id"]) == set(first["item_id"])
        assert read(without_a, second)[0].equals(second)
        (line,) = changes(first, second)
        assert line == f"the pool has 2 images: 1 image not used any more, such as {folder}/a.png"
        third, _ = read("uri,label,group\na.png,cat,x\nb.png,dog,y\nc.png,,\n", second)
        assert third.equals(first)
        assert changes(second, third)[0].startswith("the pool has 3 images: 1 image used again, such as ")

    def test_keeps_an_image_that_another_row_names(self, read, folder):
        (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
        first, told = read("uri\na.png\nb.png\ncopy.png\n")
        assert re.match(r"1 file has the same content as another.*copy\.png, which is a copy of .*a\.png", told[0])
        second, _ = read("uri\nb.png\ncopy.png\n", first)
        assert set(labels_of(second, folder)) == {"b.png", "copy.png"}
        assert set_aside_counts(second) == {}

    def test_keeps_the_audit_set(self, read, folder):
        path = folder / "manifest.csv"
        read("uri\na.png\nb.png\nc.png\n")
        first = index_images(path, audit_size=2, classes=CLASSES)
        audit = first.loc[first["split"] == "audit"]
        gone = Path(audit["uri"].iloc[0]).name
        rest = [name for name in ("a.png", "b.png", "c.png") if name != gone]
        second, told = read("uri,label\n" + "".join(f"{name},cat\n" for name in rest), first)
        assert "labels of the manifest are not used" in told[0]
        assert set(second.loc[second["split"] == "audit", "item_id"]) == set(audit["item_id"])
        assert second.loc[second["split"] == "audit", "label"].isna().all()
        third, _ = read("uri\na.png\nb.png\nc.png\n", second)
        assert third.equals(first)

    def test_stops_where_it_lost_most_of_its_rows(self, read):
        first, _ = read("uri\na.png\nb.png\nc.png\n")
        with pytest.raises(
            PoolError, match=r"2 of the 3 images of the last run cannot be used any more, .*a\.png: no l"
        ):
            read("uri\nc.png\n", first, max_unused=0.5)
        assert len(usable(read("uri\nb.png\nc.png\n", first, max_unused=0.5)[0])) == 2
        with pytest.raises(PoolError, match="has no columns"):
            read("", first)

    def test_reads_groups(self, read, folder):
        table, _ = read("uri,group\na.png, film 1\nb.png,film 1 \nc.png,\n")
        groups = table.set_index("uri")["group"].astype(object)
        assert groups[str(folder / "a.png")] == groups[str(folder / "b.png")] == "film 1"
        assert groups.isna().sum() == 1
        with pytest.raises(PoolError, match=r"a\.png was in 'film 1' when .* and is in 'film 2' now"):
            read("uri,group\na.png,film 2\nb.png,film 1\nc.png,\n", table)


class TestParquet:
    def read(self, folder, columns, classes=("0", "1", "cat")):
        path = folder / "m.parquet"
        pq.write_table(pa.table(columns), path)
        return read_manifest(path, classes)

    @pytest.mark.parametrize(
        "labels",
        [
            pa.array(["1", None, ""]),
            pa.array(["1", None, " "], pa.large_string()),
            pa.array(["1", None, None]).dictionary_encode(),
            pa.array([1, None, None], pa.int8()),
            pa.array([1.0, None, float("nan")]),
        ],
    )
    def test_holds_labels_as_text_numbers_and_categories(self, folder, labels):
        table = self.read(folder, {"uri": ["a.png", "b.png", "c.png"], "label": labels})
        assert table.rows["label"].tolist() == ["1", None, None]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (pa.array([datetime.date(2026, 1, 1), None]), "row 1 holds datetime.date.* write text"),
            (pa.array([["cat"], None]), r"row 1 holds \['cat'\], which is a list: write text"),
            (pa.array([None, b"cat"]), "row 2 holds b'cat', which is a bytes: write text"),
            (pa.array([None, True]), "row 2 holds True, which is a bool: write text"),
            (pa.array([0.5, None]), "row 1 holds 0.5, which is a float: write text"),
            (pa.array(["ca\0t", None]), "row 1 holds a NUL character"),
            (
                pa.array(["2", None]),
                r"row 1 \(uri 'a.png', label '2'\) has a label that is not one of the classes 0, 1",
            ),
        ],
    )
    def test_of_other_things_is_refused_with_the_row(self, folder, labels, message):
        with pytest.raises(PoolError, match=message):
            self.read(folder, {"uri": ["a.png", "b.png"], "label": labels})

    def test_may_have_an_index_and_images_beside(self, folder):
        rows = pd.DataFrame({"uri": ["a.png"], "image": [b"\x89PNG"]}, index=[7])
        rows.to_parquet(folder / "m.parquet")
        table = read_manifest(folder / "m.parquet", CLASSES)
        assert table.rows["uri"].tolist() == ["a.png"]
        assert table.notes == ("m.parquet: columns that are not used: 'image'",)
        rows.set_index("uri").to_parquet(folder / "m.parquet")
        assert read_manifest(folder / "m.parquet", CLASSES).rows["uri"].tolist() == ["a.png"]

    def test_with_a_null_uri_is_refused(self, folder):
        with pytest.raises(PoolError, match=r"row 2 .*has no uri"):
            self.read(folder, {"uri": pa.array(["a.png", None])})


TEXT = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["cat", "dog ", "a.png", "", "\0", '"', "\r"]
)
BOUNDED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def names_a_place(error):
    return re.search(r"row \d|line \d|first line|column|is empty", str(error)) is not None


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5), suffix=st.sampled_from(["csv", "parquet"]))
@example(rows=[("a.png", "cat", "x"), ("", "", "")], suffix="csv")
@BOUNDED
def test_any_table_comes_back_or_is_refused_with_its_row(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.mktemp("any") / f"m.{suffix}"
    table = pd.DataFrame(rows, columns=["uri", "label", "group"], index=range(1, len(rows) + 1))
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path, index=False)
    try:
        read = read_manifest(path, CLASSES).rows
    except PoolError as exc:
        assert names_a_place(exc)  # noqa: PT017
        return
    kept = table if suffix == "parquet" else table[table.apply(lambda row: any(v.strip() for v in row), axis=1)]
    assert read["uri"].tolist() == kept["uri"].tolist()
    for name in ("label", "group"):
        for came, was in zip(read[name], kept[name], strict=True):
            trimmed = unicodedata.normalize(
                "NFC", re.sub(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$", "", was)
            )
            assert came == (trimmed or None)


@given(content=st.binary(max_size=60) | st.text("uri,label;\t|\r\n\"' a.png\u00e9\ufeff0", max_size=60).map(str.encode))
@example(content=b"uri\x1clabel\n")
@BOUNDED
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    (folder / "m.csv").write_bytes(content)
    (folder / "m.parquet").write_bytes(content)
    for name in ("m.csv", "m.parquet"):
        with contextlib.suppress(PoolError):
            read_manifest(folder / name, CLASSES)
