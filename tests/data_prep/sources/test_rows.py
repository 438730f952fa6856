"""Rows are read whatever wrote them, a number is one number in every kind of file, and a small file stays small."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import lzma
import resource
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.books.request import BadInput, ClipRequest, InputError
from data_prep.sources import find_clips
from data_prep.sources.hdvila import read_hdvila
from data_prep.sources.koala import read_koala
from data_prep.sources.metadata import rows as module
from data_prep.sources.metadata.numbers import parse_number
from data_prep.sources.metadata.times import parse_time
from data_prep.sources.panda import read_panda
from data_prep.sources.table import read_table
from data_prep.sources.webvid import read_webvid
from tests.material.peaks import peak_of
from videodiff.data.samples import parquet
from videodiff.data.storage.listing import Passed

COLUMNS = {"video": "path", "start": "s", "end": "e"}
WATCH = "https://www.youtube.com/watch?v=ab"


def good(items: Any) -> list[ClipRequest]:
    return [item for item in items if isinstance(item, ClipRequest)]


def bad(items: Any) -> dict[str, str]:
    return {str(item.place): item.reason for item in items if isinstance(item, BadInput)}


def table(folder: Path, kind: str, start: Any, end: Any) -> Path:
    """Write one row, as text where the kind of file has nothing else."""
    path = folder / f"list.{kind}"
    if kind == "csv":
        path.write_text(f'path,s,e\na.mp4,"{start}","{end}"\n')
    elif kind == "jsonl":
        path.write_text(json.dumps({"path": "a.mp4", "s": start, "e": end}) + "\n")
    else:
        pq.write_table(pa.table({"path": ["a.mp4"], "s": [start], "e": [end]}), path)
    return path


@pytest.mark.parametrize(
    ("start", "end", "span", "unit"),
    [
        ("24.0", "36.0", (1, Fraction(3, 2)), "frames"),
        ("500000.0", "1.5e6", (Fraction(1, 2), Fraction(3, 2)), "microseconds"),
        ("1e-05", "1.5", (Fraction(1, 100_000), Fraction(3, 2)), ""),
        (" 0.5", " 1.5\u00a0", (Fraction(1, 2), Fraction(3, 2)), ""),
        (".5", "1.", (Fraction(1, 2), 1), ""),
        ("+0.5", "1", (Fraction(1, 2), 1), ""),
        ("-0", "1", (0, 1), ""),
        (" 0:00:00,500 ", "00:00:01.5", (Fraction(1, 2), Fraction(3, 2)), ""),
        ("0 days 00:00:00.500000", "1 day 0:00:00", (Fraction(1, 2), 86400), ""),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_text_that_is_a_number_is_it_in_every_kind_of_file(tmp_path, kind, start, end, span, unit) -> None:
    columns = COLUMNS | ({"fps": "fps"} if unit == "frames" else {})
    path = table(tmp_path, kind, start, end)
    if unit == "frames":
        text = path.read_text() if kind != "parquet" else ""
        if kind == "csv":
            path.write_text(text.replace("s,e\n", "s,e,fps\n").replace('"36.0"', '"36.0",24.0'))
        elif kind == "jsonl":
            path.write_text(text.replace("}", ', "fps": 24.0}'))
        else:
            pq.write_table(pq.read_table(path).append_column("fps", pa.array([24.0])), path)
    (found,) = good(read_table(path, columns, unit))
    assert found.span == span


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0.1, pa.float64()),
        (0.1, pa.float32()),
        (Decimal("0.1000"), pa.decimal128(9, 4)),
        (datetime.timedelta(milliseconds=100), pa.duration("ns")),
        (datetime.time(0, 0, 0, 100_000), pa.time64("us")),
        (datetime.datetime(1970, 1, 1, 0, 0, 0, 100_000), pa.timestamp("ns")),
        (datetime.datetime(1970, 1, 1, 0, 0, 0, 100_000), pa.timestamp("ms", tz="UTC")),
    ],
)
def test_a_tenth_of_a_second_is_one_id_whatever_type_a_column_has(tmp_path, value, kind) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["a.mp4"], "s": pa.array([value], kind), "e": [1]}), path)
    (found,) = good(read_table(path, COLUMNS))
    (text,) = good(read_table(table(tmp_path, "csv", "0.1", "1"), COLUMNS))
    assert (found.span, found.id) == ((Fraction(1, 10), 1), text.id)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1,5", "1.000,5", "1,000", "0x1", "1_0", "1e400", "", " ", "１"])
def test_what_is_no_time_costs_its_row_and_is_named(tmp_path, value) -> None:
    (found,) = read_table(table(tmp_path, "csv", value, "2"), COLUMNS)
    assert (found.reason, str(found.place)) == ("bad-time", "list.csv:2")


def test_a_comma_is_refused_by_name() -> None:
    for text in ("1,5", "1,000", "12,345.6", "-1,5"):
        with pytest.raises(InputError, match="a comma is ambiguous"):
            parse_number(text)
    for value in (True, None, float("nan"), float("inf"), Decimal("NaN"), [1], "one", 10**400):
        with pytest.raises(InputError, match="expected a finite number"):
            parse_number(value)


def test_a_date_is_no_time_in_a_video() -> None:
    with pytest.raises(InputError, match="found the date 2024-05-01 00:00:10"):
        parse_time(datetime.datetime(2024, 5, 1, 0, 0, 10))


@given(st.decimals(0, 10**9, places=3, allow_nan=False) | st.integers(0, 10**12))
def test_every_way_to_write_a_number_is_that_number(value) -> None:
    assert parse_number(value) == parse_number(str(value)) == parse_number(f"  {value}\t") == Fraction(value)


def test_a_note_that_is_no_number_costs_no_clip(tmp_path) -> None:
    (tmp_path / "webvid.csv").write_text(
        "videoid,name,page_dir,duration,contentUrl\n"
        "1,one,x,PT00H00M17S,https://h/1.mp4\n2,two,x,,https://h/2.mp4\n3,three,x,soon,https://h/3.mp4\n"
    )
    found = good(read_webvid(tmp_path / "webvid.csv"))
    assert [(item.notes, item.omitted) for item in found] == [
        ({"duration": 17.0}, ()),
        ({}, ("duration",)),
        ({}, ("duration",)),
    ]
    span = "\"['0:00:01.000', '0:00:02.000']\""
    (tmp_path / "koala.csv").write_text(
        f"videoID,url,timestamp,caption,clarity score,aesthetic score\nab_1,{WATCH},{span},a,nan,4.5\n"
        f'ab_2,{WATCH},{span},a,,"4,5"\n'
    )
    found = good(read_koala(tmp_path / "koala.csv"))
    assert [(item.notes, item.omitted) for item in found] == [
        ({"aesthetic score": 4.5}, ("clarity score",)),
        ({}, ("aesthetic score",)),
    ]
    (tmp_path / "panda.csv").write_text(
        "videoID,url,timestamp,caption,matching_score,desirable_filtering\n"
        f"ab,{WATCH},\"[['0:00:01.0', '0:00:02.0'], ['0:00:02.0', '0:00:03.0']]\",\"['a', 'b']\","
        '"[nan, 0.5]",[oops]\n'
        f"ac,{WATCH},\"[['0:00:01.0', '0:00:02.0']]\",\"['a']\",__import__('os'),\"['d', 'e']\"\n"
    )
    found = good(read_panda(tmp_path / "panda.csv"))
    assert [item.captions[0].score for item in found] == [None, 0.5, None]
    assert [item.omitted for item in found] == [("desirable_filtering",)] * 2 + [NOTES]
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4", "score": NaN, "text": NaN, "k": [NaN]}\n')
    (found,) = good(read_table(tmp_path / "list.jsonl", {"video": "path", "caption": "text"}))
    assert (found.captions, found.omitted, "score" in found.notes) == ((), ("score",), False)


NOTES = ("matching_score", "desirable_filtering")


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "mixed"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\n", "sep=;\n"])
def test_a_csv_is_read_whatever_ends_its_lines_and_parts_its_cells(tmp_path, monkeypatch, end, delimiter, mark) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)  # ends of lines lie across blocks
    rows = [
        ["path", "text"],
        ["a.mp4", '"red, ""big""; ball"'],
        ["b.mp4", "blue"],
        ["c.mp4", '"two\nlines"'],
        ["d.mp4"],
    ]
    ends = ["\r", "\n", "\r\n", "\r", "\n"] if end == "mixed" else [end] * 5
    text = mark + "".join(delimiter.join(row) + end for row, end in zip(rows, ends, strict=True))
    (tmp_path / "list.csv").write_bytes(text.encode())
    items = list(read_table(tmp_path / "list.csv", {"video": "path", "caption": "text"}))
    assert [item.captions[0].text for item in good(items)] == ['red, "big"; ball', "blue", "two lines"]
    (reason,) = bad(items).values()
    assert reason == "malformed-line"


def test_a_nul_byte_costs_its_line_and_utf_16_is_named(tmp_path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path,text\na.mp4,x\0y\nb.mp4,fine\n")
    items = list(read_table(tmp_path / "list.csv", {"video": "path", "caption": "text"}))
    assert (bad(items), len(good(items))) == ({"list.csv:2": "malformed-line"}, 1)
    (tmp_path / "list.csv").write_bytes("path,text\na.mp4,x\n".encode("utf-16"))
    (item,) = read_table(tmp_path / "list.csv", {"video": "path"})
    assert (item.reason, "save it so" in item.detail) == ("unreadable-file", True)


def test_a_tab_separated_file_may_be_named_so(tmp_path) -> None:
    (tmp_path / "list.tsv").write_text("path\ttext\na.mp4\tred, big\n")
    (item,) = read_table(tmp_path / "list.tsv", {"video": "path", "caption": "text"})
    assert item.captions[0].text == "red, big"


def test_a_column_that_stands_twice_is_named(tmp_path) -> None:
    (tmp_path / "list.csv").write_text("path,path\na.mp4,b.mp4\n")
    with pytest.raises(ValueError, match=r"list\.csv: found the column path twice"):
        list(read_table(tmp_path / "list.csv", {"video": "path"}))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b"")), max_size=8),
    st.data(),
)
def test_lines_are_those_of_any_system_wherever_blocks_end(lines, data) -> None:
    ends = [data.draw(st.sampled_from([b"\n", b"\r", b"\r\n"])) for _ in lines]
    text = b"".join(line + end for line, end in zip(lines, ends, strict=True))
    found = [line for _, line in module.bounded_lines(Chopped(text, data.draw(st.integers(1, 9))))]
    assert found == text.splitlines(keepends=True)


class Chopped(io.BytesIO):
    """A file that gives a few bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self.size = size

    def read(self, size: int = -1) -> bytes:
        return super().read(self.size)


@pytest.mark.parametrize("ending", [".csv.gz", ".jsonl.xz"])
def test_a_bomb_is_one_rejection_and_costs_little(tmp_path, monkeypatch, ending) -> None:
    monkeypatch.setattr(module, "FREE", 2**20)
    pack = gzip.compress if ending.endswith("gz") else lzma.compress
    head = b"path,text\n" if "csv" in ending else b'{"path": "a.mp4"}\n'
    (tmp_path / f"list{ending}").write_bytes(pack(head + (b"x" * 2**20 + b"\n") * 100))
    items = list(read_table(tmp_path / f"list{ending}", {"video": "path"}))
    assert bad(items)[f"list{ending}"] == "unreadable-file"
    assert len(items) < 100
    assert peak_of(lambda: list(read_table(tmp_path / f"list{ending}", {"video": "path"}))) < 2**26


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"abcdefghijkl\nnext\n", [(1, b"abcdefgh"), (2, b"next\n")]),
        (b"abcdefghijklmnopq", [(1, b"abcdefgh")]),
        (b"abcdefgh", [(1, b"abcdefgh")]),
        # A \r at the end of a block ends the line, whether a \n follows or not.
        (b"abcdefghijk\rnext\r", [(1, b"abcdefgh"), (2, b"next\r")]),
        (b"abcdefghijk\r\nnext\n", [(1, b"abcdefgh"), (2, b"next\n")]),
    ],
)
def test_a_line_that_is_cut_off_counts_once_and_costs_no_other(text, lines, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 8)
    monkeypatch.setattr(module, "BLOCK", 4)
    assert list(module.bounded_lines(io.BytesIO(text))) == lines


def test_a_small_file_may_unpack_to_any_number_of_times_its_size(tmp_path) -> None:
    row = {"text": "a" * 3_000_000}
    (path := tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    assert path.stat().st_size * module.EXPANSION < 3_000_000
    assert [found for _, found in module.json_rows(path)] == [row]


def test_lists_in_lists_cost_no_clip(tmp_path) -> None:
    deep = "[" * 500 + "]" * 500
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4", "k": ' + deep + "}\n")
    (item,) = read_table(tmp_path / "list.jsonl", {"video": "path"})
    assert (item.notes, item.omitted) == ({}, ("k",))


def memory(function: Any) -> int:
    """Return by how many bytes the most memory that this process had grows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_a_small_parquet_that_means_gigabytes_is_refused_row_by_row(tmp_path) -> None:
    path, rows = tmp_path / "list.parquet", 200
    huge = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 10_000_000]))
    names = pa.array([f"{n}.mp4" for n in range(rows)])
    pq.write_table(pa.table({"path": names, "text": huge}), path, compression="zstd")
    assert path.stat().st_size < 50_000
    found: list[Any] = []
    grown = memory(lambda: found.extend(read_table(path, {"video": "path", "caption": "text"})))
    assert {item.reason for item in found} == {"malformed-line"}
    assert (len(found), grown < 2**27) == (rows, True)


def test_a_large_row_costs_itself_and_none_beside_it(tmp_path) -> None:
    path = tmp_path / "list.parquet"
    texts = ["small", "x" * 5_000_000, "also small", ["y" * 3_000_000] * 2]
    pq.write_table(pa.table({"path": [f"{n}.mp4" for n in range(3)], "text": texts[:3]}), path)
    items = list(read_table(path, {"video": "path", "caption": "text"}))
    assert bad(items) == {"list.parquet:2": "malformed-line"}
    assert [item.captions[0].text for item in good(items)] == ["small", "also small"]
    pq.write_table(pa.table({"path": ["a.mp4", "b.mp4"], "text": [["fine"], texts[3]]}), path)
    items = list(read_table(path, {"video": "path", "caption": "text"}))
    assert (bad(items), len(good(items))) == ({"list.parquet:2": "malformed-line"}, 1)


def test_a_parquet_that_declares_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "VALUES", 1000)
    path = tmp_path / "list.parquet"
    lists = pa.ListArray.from_arrays(pa.array([0, 1001], pa.int32()), pa.array([0] * 1001))
    pq.write_table(pa.table({"path": ["a.mp4"], "k": lists}), path)
    (found,) = read_table(path, {"video": "path"})
    assert (found.reason, "1001 values in lists, expected at most 1000" in found.detail) == ("unreadable-file", True)
    monkeypatch.setattr(parquet, "CHUNK", 100)
    pq.write_table(pa.table({"path": ["x" * 1000]}), path)
    (found,) = read_table(path, {"video": "path"})
    assert (found.reason, "expected at most 100" in found.detail) == ("unreadable-file", True)


def test_a_cell_that_is_no_text_costs_its_row(tmp_path) -> None:
    path = tmp_path / "list.parquet"
    texts = pa.array([b"fine", b"\xff\xfe", b"too"]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(3, *texts.buffers()[1:])
    pq.write_table(pa.table({"path": ["a.mp4", "b.mp4", "c.mp4"], "text": broken}), path)
    items = list(read_table(path, {"video": "path", "caption": "text"}))
    assert (bad(items), len(good(items))) == ({"list.parquet:2": "bad-cell"}, 2)


def test_hdvila_lines_of_a_mac_are_read(tmp_path) -> None:
    line = {"video_id": "a", "url": WATCH, "clip": [{"clip_id": "a.0.mp4", "span": ["00:00:01.000", "00:00:02.000"]}]}
    (tmp_path / "meta.jsonl").write_text("\r".join([json.dumps(line)] * 2) + "\r")
    assert [str(item.place) for item in read_hdvila(tmp_path / "meta.jsonl")] == ["meta.jsonl:1#1", "meta.jsonl:2#1"]


def test_tables_in_linked_folders_are_read_once_and_no_link_leads_in_a_circle(tmp_path) -> None:
    listed, far = tmp_path / "listed", tmp_path / "far"
    for folder, name in ((listed / "own", "a"), (far / "deep", "b"), (far, "c")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.csv").write_text(f"video\n{name}.mp4\n")
    (listed / "again").symlink_to(listed / "own")
    (listed / "far").symlink_to(far)
    (listed / "far too").symlink_to(far)
    (far / "deep" / "back").symlink_to(listed)
    (far / "deep" / "up").symlink_to(tmp_path)
    items = good(read_table(listed, {"video": "video"}))
    assert [(item.place.file, item.source) for item in items] == [
        ("far/c.csv", "c.mp4"), ("far/deep/b.csv", "b.mp4"), ("own/a.csv", "a.mp4"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_of_a_folder_only_the_tables_are_read_and_what_else_is_there_is_counted(tmp_path, kind):
    path = table(tmp_path, kind, 0.5, 2.5)
    old = tmp_path / "old"
    old.mkdir()
    other = table(old, kind, 5.0, 6.0).read_bytes()
    # A backup, an unfinished download, what Spark, macOS and Jupyter leave behind.
    for name in (f"list.{kind}.bak", f"list.{kind}.part", f".list.{kind}.crc", f"._list.{kind}"):
        (tmp_path / name).write_bytes(other)
    old.rename(tmp_path / ".ipynb_checkpoints")
    for name in ("a.mp4", "README.md"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / f"gone.{kind}").symlink_to(tmp_path / "nowhere")
    passed = Passed()
    items = list(read_table(tmp_path, COLUMNS, passed=passed))
    assert [str(item.place) for item in good(items)] == [f"{path.name}:1" if kind != "csv" else f"{path.name}:2"]
    assert bad(items) == {f"gone.{kind}": "unreadable-file"}
    # A video is no file that is left out: the table may name it.
    assert passed == {"hidden": 3, ".bak": 1, ".part": 1, ".md": 1}


def test_compressed_tables_of_a_folder_are_read(tmp_path):
    rows = table(tmp_path, "csv", 0.5, 2.5).read_bytes()
    (tmp_path / "part-1.CSV.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "part-2.csv.xz").write_bytes(lzma.compress(rows))
    assert [item.place.file for item in good(read_table(tmp_path, COLUMNS))] == [
        "list.csv",
        "part-1.CSV.gz",
        "part-2.csv.xz",
    ]


ROWS = [{"url": f"{WATCH}{number}", "clip": []} for number in range(3)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (json.dumps(ROWS), "array"),
        (json.dumps(ROWS, indent=1), "array"),
        ("[" + ",\n".join(map(json.dumps, ROWS)) + "]", "array"),
        ("\ufeff" + json.dumps({"videos": ROWS}, indent=2), "object over several lines"),
    ],
)
def test_a_file_that_is_one_json_is_one_line_that_says_what_is_expected(tmp_path, text, found) -> None:
    (tmp_path / "list.jsonl").write_text(text)
    ((place, error),) = module.json_rows(tmp_path / "list.jsonl")
    assert str(place) == "list.jsonl"
    assert str(error) == f"unreadable-file: found one JSON {found}, expected JSON lines: an object a line"
    # pack takes a table of any ending, and has no other file to go on with.
    (tmp_path / "list.jsonl").rename(tmp_path / "list.json")
    with pytest.raises(ValueError, match=rf"list.json: found one JSON {found}, expected JSON lines"):
        find_clips(tmp_path / "list.json")


@pytest.mark.parametrize("line", ["[]", "[1, 2]", "[", '[{"url": "a"},', "{", '{"url": "a', "3"])
def test_a_first_line_that_is_no_object_costs_no_other(tmp_path, line) -> None:
    (tmp_path / "list.jsonl").write_text("\n".join([line, *map(json.dumps, ROWS)]))
    first, *others = module.json_rows(tmp_path / "list.jsonl")
    assert (str(first[0]), first[1].reason) == ("list.jsonl:1", "malformed-line")
    assert [row for _, row in others] == ROWS
