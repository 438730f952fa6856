"""Metadata as published becomes requests; a row that cannot says where it stands and why, and costs no other row."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.books.request import BadInput, Caption, ClipRequest, InputError, Part, Place
from data_prep.sources.folder import read_folder
from data_prep.sources.hdvila import read_hdvila
from data_prep.sources.internvid import read_internvid
from data_prep.sources.koala import read_koala
from data_prep.sources.metadata.captions import CaptionIndex
from data_prep.sources.metadata.rows import MAX_CELL, MAX_LINE, parse_literal
from data_prep.sources.openvid import read_openvid
from data_prep.sources.panda import read_panda
from data_prep.sources.table import read_table
from data_prep.sources.webdataset import read_webdataset
from data_prep.sources.webvid import read_webvid
from tests.material.peaks import peak_of
from videodiff.data.storage.listing import Passed

WATCH = "https://www.youtube.com/watch?v="
VIDEO = {
    "video_id": "QMi8x8o55Ns",
    "url": WATCH + "QMi8x8o55Ns",
    "clip": [
        {"clip_id": "QMi8x8o55Ns.1.mp4", "span": ["00:00:17.759", "00:00:23.279"]},
        {"clip_id": "QMi8x8o55Ns.16.mp4", "span": ["00:04:52.140", "00:05:03.350"]},
    ],
}
PANDA = "videoID,url,timestamp,caption,matching_score\n"
SPANS = "[['0:00:16.300', '0:00:32.566'], ['0:01:00.000', '0:01:02.500']]"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def cells(*values: str) -> str:
    return ",".join('"' + value.replace('"', '""') + '"' for value in values) + "\n"


def bad(items: Iterable[ClipRequest | BadInput]) -> dict[str, str]:
    """Return the reasons of bad inputs by their places."""
    return {str(item.place): item.reason for item in items if isinstance(item, BadInput)}


def good(items: Iterable[ClipRequest | BadInput]) -> list[ClipRequest]:
    return [item for item in items if isinstance(item, ClipRequest)]


def test_hdvila_as_published(tmp_path: Path) -> None:
    first, second = read_hdvila(write(tmp_path / "meta_part0.jsonl", lines(VIDEO)))
    assert (first.source, first.parent, first.name) == (WATCH + "QMi8x8o55Ns", "QMi8x8o55Ns", "QMi8x8o55Ns.1.mp4")
    assert first.span == (Fraction(17759, 1000), Fraction(23279, 1000))
    assert (str(second.place), second.name) == ("meta_part0.jsonl:1#2", "QMi8x8o55Ns.16.mp4")
    assert (first.captions, first.licence) == ((), "Microsoft R-UDA v1.0")


def test_hdvila_takes_captions_of_a_second_file_by_clip_id(tmp_path: Path) -> None:
    meta = write(tmp_path / "meta" / "part.jsonl", lines(VIDEO))
    texts = [
        {"clip_id": "QMi8x8o55Ns.16.mp4", "text": " sixteen "},
        {"clip_id": "other.1.mp4", "text": "another"},
        "{",
        {"clip_id": "QMi8x8o55Ns.16.mp4", "text": ["again", {"caption": "again", "origin": "somebody"}]},
        {"clip_id": "QMi8x8o55Ns.1.mp4", "text": ""},
    ]
    path = write(tmp_path / "text.jsonl", lines(*texts))
    items = list(read_hdvila(meta, CaptionIndex(path, tmp_path / "index", "asr")))
    first, second = good(items)
    assert first.captions == ()
    assert second.captions == (Caption("sixteen", "asr"), Caption("again", "asr"))
    assert bad(items) == {"text.jsonl:3": "malformed-line", "text.jsonl:5": "bad-text"}
    # What is there is used again, and made anew where the captions have changed.
    made = (tmp_path / "index").stat().st_mtime_ns
    assert list(read_hdvila(meta, CaptionIndex(path, tmp_path / "index", "asr"))) == items
    assert (tmp_path / "index").stat().st_mtime_ns == made
    write(path, lines({"clip_id": "QMi8x8o55Ns.1.mp4", "text": "first"}))
    captions = [item.captions for item in read_hdvila(meta, CaptionIndex(path, tmp_path / "index", "asr"))]
    assert captions == [(Caption("first", "asr"),), ()]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_captions_of_a_folder_or_a_url_cost_only_what_cannot_be_read(tmp_path: Path) -> None:
    folder, name = tmp_path / "captions", "QMi8x8o55Ns.1.mp4"
    write(folder / "a.jsonl", lines({"clip_id": name, "text": "one"}))
    (folder / "b.jsonl").symlink_to("nowhere")
    index = CaptionIndex(folder, tmp_path / "index", "asr")
    assert index.find(name) == (Caption("one", "asr"),)
    assert bad(index.bad) == {"b.jsonl": "unreadable-file"}
    (folder / "b.jsonl").unlink()
    assert CaptionIndex(folder, tmp_path / "index", "asr").bad == []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
        for text in ("one", "two"):
            write(folder / "a.jsonl", lines({"clip_id": name, "text": text}))
            assert CaptionIndex(url, tmp_path / "other", "asr").find(name) == (Caption(text, "asr"),)
        server.shutdown()


def clip(**change: Any) -> dict[str, Any]:
    return {"clip_id": "a.0.mp4", "span": ["00:00:00.000", "00:00:01.000"]} | change


def video(**change: Any) -> dict[str, Any]:
    return {"video_id": "a", "url": WATCH + "a", "clip": [clip()]} | change


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "malformed-line"),
        ("[1]", "malformed-line"),
        ("null", "malformed-line"),
        ("[" * 100_000, "malformed-line"),
        ('{"a": ' * 50_000, "malformed-line"),
        (json.dumps({"video_id": "a", "clip": [clip()]}), "missing-field"),
        (json.dumps(video(clip=[])), "missing-field"),
        (json.dumps(video(clip={"clip_id": "a"})), "missing-field"),
        (json.dumps(video(url="-oProxyCommand=touch /tmp/x")), "bad-url"),
        (json.dumps(video(url="--exec")), "bad-url"),
        (json.dumps(video(url="file:///etc/passwd")), "bad-url"),
        (json.dumps(video(url="simplecache::file:///etc/passwd")), "bad-url"),
        (json.dumps(video(url="http://a/b c")), "bad-url"),
        (json.dumps(video(url="http://[")), "bad-url"),
        (json.dumps(video(url=5)), "bad-url"),
        (json.dumps(video(video_id="../a")), "bad-name"),
    ],
)
def test_a_video_that_cannot_be_used_is_rejected_alone(tmp_path: Path, line: str, reason: str) -> None:
    items = list(read_hdvila(write(tmp_path / "meta.jsonl", lines(VIDEO, line, "", video()))))
    assert len(good(items)) == 3
    assert bad(items) == {"meta.jsonl:2": reason}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"clip_id": "../../etc/passwd"}, "bad-name"),
        ({"clip_id": "a\\b.mp4"}, "bad-name"),
        ({"clip_id": ".."}, "bad-name"),
        ({"clip_id": "a\u0000.mp4"}, "bad-name"),
        ({"clip_id": "\ud800.mp4"}, "bad-name"),
        ({"clip_id": ""}, "bad-name"),
        ({"clip_id": None}, "missing-field"),
        ({"span": ["00:00:02.000", "00:00:01.000"]}, "bad-span"),
        ({"span": ["00:00:01.000", "00:00:01.000"]}, "bad-span"),
        ({"span": ["00:00:01.000"]}, "bad-span"),
        ({"span": ["-00:00:01.000", "00:00:01.000"]}, "bad-time"),
        ({"span": [0, float("nan")]}, "bad-time"),
        ({"span": [[], {}]}, "bad-time"),
    ],
)
def test_a_clip_that_cannot_be_used_costs_none_of_its_videos_others(tmp_path: Path, change: dict, reason: str) -> None:
    row = video(clip=[clip(), clip(**change), clip(clip_id="a.2.mp4")])
    items = list(read_hdvila(write(tmp_path / "meta.jsonl", lines(row))))
    assert [item.name for item in good(items)] == ["a.0.mp4", "a.2.mp4"]
    assert bad(items) == {"meta.jsonl:1#2": reason}


def test_an_id_is_that_of_source_and_span_and_of_nothing_else() -> None:
    place, span = Place("a.jsonl", 1), (Fraction(1, 3), Fraction(2))
    one = ClipRequest(place, "v.mp4", span)
    assert one.id == ClipRequest(Place("b.csv", 9), "v.mp4", span, licence="CC0", name="x").id
    others = [
        ClipRequest(place, "w.mp4", span),
        ClipRequest(place, "v.mp4"),
        ClipRequest(place, "v.mp4", (Fraction(1, 3), Fraction(3))),
        ClipRequest(place, "v.mp4", span, part=Part("x", 0, 1)),
    ]
    assert len({one.id, *(other.id for other in others)}) == 5
    # Fixed for ever: captions, latents and takedowns join by it.
    assert one.id == "4a52c3b3-d3e5-5266-9a8e-d127159bea71"


def test_panda_as_published(tmp_path: Path) -> None:
    head = PANDA.strip() + ",desirable_filtering,shot_boundary_detection\n"
    shots = "[[['0:00:00.000', '0:00:16.000']], [['0:00:00.000', '0:00:02.500']]]"
    captions, notes = "['It\\'s a \"red\" ball, rolling', 'two']", "['desirable', '1_still_foreground_image']"
    row = cells("--abc", WATCH + "--abc", SPANS, captions, "[0.43, 1]", notes, shots)
    first, second = read_panda(write(tmp_path / "panda.csv", head + row))
    assert first.captions == (Caption('It\'s a "red" ball, rolling', "panda-70m", 0.43),)
    assert first.span == (Fraction(163, 10), Fraction(32566, 1000))
    assert (second.parent, second.name, second.captions[0].score) == ("--abc", "--abc.1", 1.0)
    assert second.notes["desirable_filtering"] == "1_still_foreground_image"


@pytest.mark.parametrize(
    ("timestamp", "caption", "score", "reason"),
    [
        ("__import__('os').system('touch pwned')", "['a', 'b']", "[1, 1]", "bad-cell"),
        (SPANS, "[print('a'), 'b']", "[1, 1]", "bad-cell"),
        (SPANS, "['a' 'b', *'cd']", "[1, 1]", "bad-cell"),
        (SPANS, "{'a': 'b'}", "[1, 1]", "bad-cell"),
        (SPANS, "[" * 10_000, "[1, 1]", "bad-cell"),
        (SPANS, "-" * 10_000 + "1", "[1, 1]", "bad-cell"),
        (SPANS, "[b'a', 'b']", "[1, 1]", "bad-cell"),
        (SPANS, "['a', 'b', 'c']", "[1, 1]", "unequal-lists"),
        ("[]", "[]", "[]", "unequal-lists"),
        ("", "['a', 'b']", "[1, 1]", "bad-cell"),
    ],
)
def test_code_and_nonsense_in_a_cell_reject_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timestamp: str, caption: str, score: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fine = cells("a", WATCH + "a", SPANS, "['a', 'b']", "[1, 0.5]")
    wrong = cells("b", WATCH + "b", timestamp, caption, score)
    items = list(read_panda(write(tmp_path / "panda.csv", PANDA + fine + wrong + fine)))
    assert len(good(items)) == 4
    assert bad(items) == {"panda.csv:3": reason}
    assert not (tmp_path / "pwned").exists()


def test_a_clip_of_panda_that_cannot_be_used_costs_no_other(tmp_path: Path) -> None:
    spans = "[['0:00:01.000', '0:00:02.000'], ['0:00:02.000', '0:00:01.000'], 5, ['0:00:01.000', '0:00:03.000']]"
    row = cells("a", WATCH + "a", spans, "['a', 'b', 'c', 4]", "[1, 1, 1, 1]")
    items = list(read_panda(write(tmp_path / "panda.csv", PANDA + row)))
    assert [item.captions[0].text for item in good(items)] == ["a"]
    assert bad(items) == {"panda.csv:2#2": "bad-span", "panda.csv:2#3": "bad-span", "panda.csv:2#4": "bad-text"}


def test_a_literal_may_not_be_too_long() -> None:
    with pytest.raises(InputError, match="bad-cell"):
        parse_literal("[" + "1," * MAX_CELL + "]")


def test_webvid_as_published(tmp_path: Path) -> None:
    text = "videoid,duration,page_dir,name,contentUrl\n"
    text += '1066674784,PT00H00M17S,006001_006050,"Loading bar, blue",https://ak.example.com/preview.mp4\n'
    text += "2,,x,y,https://ak.example.com/preview.mp4\n3,PT1Y,x,y,-\n4,17.5,x,,https://ak.example.com/preview.mp4\n"
    items = list(read_webvid(write(tmp_path / "webvid.csv", text)))
    found, *others = good(items)
    assert (found.source, found.span, found.name) == ("https://ak.example.com/preview.mp4", None, "1066674784")
    assert (found.captions, found.notes) == ((Caption("Loading bar, blue", "webvid"),), {"duration": 17.0})
    assert [(item.notes, item.omitted) for item in others] == [({}, ("duration",)), ({"duration": 17.5}, ())]
    assert bad(items) == {"webvid.csv:4": "bad-url"}


def test_openvid_as_published(tmp_path: Path) -> None:
    text = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"
    name = "---_iRTHryQ_13_0to241.mp4"
    text += f'{name},"In the video, a person",5.20,9.61,0.9896,static,241,29.97,8.04\n'
    text += "a_1_9to3.mp4,x,5,9,1,static,241,29.97,8.04\n"
    text += "../a_1_0to3.mp4,x,5,9,1,static,241,24,8\nplain.mp4,x,5,n,1,,1,24,8\n"
    items = list(read_openvid(write(tmp_path / "OpenVid-1M.csv", text)))
    found, reversed_frames, plain = good(items)
    assert (found.source, found.span, found.parent, found.name) == (name, None, "---_iRTHryQ", name)
    assert found.notes["parent_frames"] == [0, 241]
    assert found.notes["parent_seconds"] == [0.0, pytest.approx(241 * 1.001 / 30, abs=0.001)]
    assert (found.notes["motion score"], found.notes["camera motion"]) == (9.61, "static")
    assert (reversed_frames.parent, reversed_frames.omitted) == ("a", ("parent_frames", "parent_seconds"))
    assert (plain.omitted, "motion score" in plain.notes) == (("motion score",), False)
    assert bad(items) == {"OpenVid-1M.csv:4": "bad-name"}


def test_internvid_as_published(tmp_path: Path) -> None:
    row = {
        "YoutubeID": "-abc",
        "Start_timestamp": "00:00:10.500",
        "End_timestamp": "00:00:12.300",
        "Caption": "a dog",
        "Aesthetic_Score": 4.2,
        "UMT_Score": 0.41,
    }
    items = list(read_internvid(write(tmp_path / "flt.jsonl", lines(row, row | {"UMT_Score": "high"}))))
    found, unrated = good(items)
    assert (found.source, found.span) == (WATCH + "-abc", (Fraction(21, 2), Fraction(123, 10)))
    assert (found.captions, found.notes) == ((Caption("a dog", "internvid", 0.41),), {"Aesthetic_Score": 4.2})
    assert (unrated.captions, unrated.omitted, bad(items)) == ((Caption("a dog", "internvid"),), ("UMT_Score",), {})


def test_koala_rows(tmp_path: Path) -> None:
    text = "videoID,url,timestamp,caption,clarity_score,motion_score\n"
    text += cells("a_b_12", WATCH + "a_b", "['0:00:01.000', '0:00:02.000']", "words", "0.9", "")
    text += cells("a_b_13", WATCH + "a_b", "open('x')", "words", "0.9", "")
    items = list(read_koala(write(tmp_path / "koala.csv", text)))
    (found,) = good(items)
    assert (found.parent, found.name, found.notes) == ("a_b", "a_b_12", {"clarity_score": 0.9})
    assert bad(items) == {"koala.csv:3": "bad-cell"}


def as_table(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    elif kind == "jsonl":
        write(folder / "table.jsonl", lines(*rows))
    else:
        body = "".join(cells(*map(str, row.values())) for row in rows)
        write(folder / "table.csv", ",".join(rows[0]) + "\n" + body)
    return folder / f"table.{kind}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("unit", "start", "end"), [("", "1.5", "2"), ("microseconds", 1_500_000, 2_000_000), ("frames", 36, 48)]
)
def test_a_table_with_named_columns(tmp_path: Path, kind: str, unit: str, start: Any, end: Any) -> None:
    row = {"file": "./b/a.mp4", "from": start, "to": end, "words": "a  ball", "by": "CC0", "rate": 24, "k": 7}
    path = as_table(tmp_path, kind, [row, row | {"file": "../a.mp4"}, row | {"from": end, "to": start}])
    columns = {"video": "file", "start": "from", "end": "to", "caption": "words", "licence": "by", "fps": "rate"}
    items = list(read_table(path, columns, unit))
    (found,) = good(items)
    assert (found.source, found.span) == ("b/a.mp4", (Fraction(3, 2), Fraction(2)))
    assert (found.captions, found.licence) == ((Caption("a ball", "table"),), "CC0")
    assert found.notes in ({"k": 7}, {"k": "7"})
    places = {str(item.place): item.reason for item in items if isinstance(item, BadInput)}
    first = 3 if kind == "csv" else 2
    assert places == {f"table.{kind}:{first}": "bad-path", f"table.{kind}:{first + 1}": "bad-span"}


def test_a_table_may_hold_several_captions_and_whole_videos_by_url(tmp_path: Path) -> None:
    row = {"video": "https://example.com/a.mp4", "caption": ["one", "", "two"]}
    items = read_table(
        write(tmp_path / "a.jsonl", lines(row, {"caption": "x"})), {"video": "video", "caption": "caption"}
    )
    found, missing = items
    assert ([caption.text for caption in found.captions], found.span) == (["one", "two"], None)
    assert missing.reason == "missing-field"


@pytest.mark.parametrize(
    ("columns", "unit"),
    [
        ({"caption": "c"}, ""),
        ({"video": "v", "start": "s"}, ""),
        ({"video": "v", "title": "t"}, ""),
        ({"video": "v", "start": "s", "end": "e"}, "frames"),
    ],
)
def test_columns_that_make_no_sense_are_an_error(tmp_path: Path, columns: dict[str, str], unit: str) -> None:
    with pytest.raises(ValueError, match="columns: found"):
        read_table(tmp_path, columns, unit)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_a_table_lacks_is_an_error_that_names_both(tmp_path: Path, kind: str) -> None:
    path = as_table(tmp_path, kind, [{"file": "a.mp4"}])
    with pytest.raises(ValueError, match=rf"table\.{kind}: found columns 'file', expected also video"):
        list(read_table(path, {"video": "video"}))


def test_a_quote_that_nobody_closes_costs_its_own_line_only(tmp_path: Path) -> None:
    rows = [
        "a.mp4,fine",
        'b.mp4,"open',
        "c.mp4,fine",
        'd.mp4,"two\nlines"',
        'e.mp4,"x"y',
        "f.mp4",
        "g.mp4,fine,3",
        "h.mp4,ok",
    ]
    items = list(read_table(write(tmp_path / "a.csv", "video,caption\n" + "\n".join(rows)), {"video": "video"}))
    assert [item.source for item in good(items)] == ["a.mp4", "c.mp4", "d.mp4", "h.mp4"]
    assert bad(items) == {f"a.csv:{line}": "malformed-line" for line in (3, 7, 8, 9)}


def test_bytes_that_are_no_text_reject_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"video,caption\na.mp4,\xff\nb.mp4,\xc3\xa4\n")
    items = list(read_table(path, {"video": "video", "caption": "caption"}))
    assert [item.captions[0].text for item in good(items)] == ["ä"]
    assert bad(items) == {"a.csv:2": "malformed-line"}
    path = write(tmp_path / "a.jsonl", b'{"video": "\xff"}\n{"video": "b.mp4"}\n')
    assert bad(read_table(path, {"video": "video"})) == {"a.jsonl:1": "malformed-line"}


def test_a_line_of_any_length_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    long = b'{"video": "' + b"x" * (8 * MAX_LINE) + b'"}\n'
    path = write(tmp_path / "a.jsonl", b'{"video": "a.mp4"}\n' + long + b'{"video": "b.mp4"}\n')
    items = list(read_table(path, {"video": "video"}))
    assert [item.source for item in good(items)] == ["a.mp4", "b.mp4"]
    assert bad(items) == {"a.jsonl:2": "malformed-line"}
    assert peak_of(lambda: list(read_table(path, {"video": "video"}))) < 4.5 * MAX_LINE


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_are_read_as_they_are_asked_for(tmp_path: Path, kind: str) -> None:
    path = as_table(tmp_path, kind, [{"video": f"{number:08}.mp4", "caption": "x" * 8000} for number in range(5000)])

    def read() -> None:
        assert sum(isinstance(item, ClipRequest) for item in read_table(path, {"video": "video"})) == 5000

    # The table has 40 MB; a batch of 500 rows has 4.
    assert peak_of(read) < 8e6


def test_compressed_files_and_folders_of_files(tmp_path: Path) -> None:
    write(tmp_path / "meta" / "b.jsonl.gz", gzip.compress(lines(VIDEO).encode()))
    write(tmp_path / "meta" / "a.jsonl", lines(video()))
    write(tmp_path / "meta" / "notes.txt", "no")
    places = [str(item.place) for item in read_hdvila(tmp_path / "meta")]
    assert places == ["a.jsonl:1#1", "b.jsonl.gz:1#1", "b.jsonl.gz:1#2"]
    cut = gzip.compress(lines(*[VIDEO] * 5000).encode())[:-100]
    write(tmp_path / "meta" / "a.jsonl.gz", cut)
    items = list(read_hdvila(tmp_path / "meta"))
    assert bad(items) == {"a.jsonl.gz": "unreadable-file"}
    assert len(good(items)) > 3


def test_a_parquet_that_is_none_is_one_rejection(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", b"PAR1 no")
    as_table(tmp_path, "parquet", [{"video": "a.mp4"}])
    items = list(read_table(tmp_path, {"video": "video"}))
    assert (bad(items), len(good(items))) == ({"a.parquet": "unreadable-file"}, 1)


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for reader in (read_hdvila, read_panda, read_webdataset):
        with pytest.raises(FileNotFoundError, match="found no"):
            list(reader(tmp_path / "none"))
        with pytest.raises(ValueError, match="expected at least one"):
            list(reader(tmp_path))
    with pytest.raises(FileNotFoundError, match="found no folder"):
        list(read_folder(tmp_path / "none"))


def test_a_folder_of_video(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    write(root / "b.mp4", "")
    write(root / "b.txt", " a red\n ball ")
    write(root / "b.json", json.dumps({"captions": ["two", "a red ball"], "license": "CC0", "camera": "still"}))
    write(root / "a" / "-c.MKV", "")
    write(root / "d.mp4", "")
    write(root / "d.json", "[1]")
    write(root / "e.mp4", "")
    write(root / "e.json", '{"caption": 5}')
    write(root / "f.mp4", "")
    write(root / "f.txt", b"\xff\xfe\x80")
    write(tmp_path / "outside.mp4", "")
    (root / "g.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "h").symlink_to(tmp_path)
    (root / "\udcff.mp4").touch()  # a name of bytes that are no UTF-8
    passed = Passed()
    items = list(read_folder(root, licence="ours", passed=passed))
    first, second, linked = good(items)
    assert (linked.source, linked.followed, first.followed) == ("g.mp4", True, True)
    assert passed == {"linked folder read already": 1}
    assert (first.source, first.captions, first.licence) == ("a/-c.MKV", (), "ours")
    assert second.captions == (Caption("a red ball", "sidecar"), Caption("two", "sidecar"))
    assert (second.licence, second.notes) == ("CC0", {"camera": "still"})
    assert bad(items) == {
        "d.mp4": "bad-sidecar",
        "e.mp4": "bad-text",
        "f.mp4": "bad-sidecar",
        "\\udcff.mp4": "bad-path",
    }


def test_a_licence_that_is_no_text_costs_no_clip(tmp_path: Path) -> None:
    stated = {"text": "CC0", "number": 4, "list": ["CC-BY-4.0"], "object": {"name": "CC0"}, "none": None, "empty": ""}
    known = {"text": "CC0", "number": "4", "list": "", "object": "", "none": "ours", "empty": "ours"}
    for name, licence in stated.items():
        write(tmp_path / "videos" / f"{name}.mp4", "")
        write(tmp_path / "videos" / f"{name}.json", json.dumps({"license": licence}))
    lines = [json.dumps({"video": f"{name}.mp4", "license": licence}) for name, licence in stated.items()]
    write(tmp_path / "table.jsonl", "\n".join(lines))
    table = read_table(tmp_path / "table.jsonl", {"video": "video", "licence": "license"}, licence="ours")
    for items in (list(read_folder(tmp_path / "videos", licence="ours")), list(table)):
        assert {Path(item.source).stem: item.licence for item in good(items)} == known
        assert {Path(item.source).stem for item in good(items) if item.omitted == ("licence",)} == {"list", "object"}


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_existing_tars(tmp_path: Path) -> None:
    notes = json.dumps({"licence": "CC0", "width": 64}).encode()
    members = {"x/0.mp4": b"first", "x/0.txt": b"one", "x/0.json": notes, "1.txt": b"no video", "2.webm": b"second"}
    path = tar_of(tmp_path / "tars" / "00000.tar", members | {"3.mp4": b"third", "3.json": b"{"})
    items = list(read_webdataset(tmp_path / "tars"))
    first, second = good(items)
    assert (first.source, first.part.name, first.name) == ("00000.tar", "x/0.mp4", "x/0")
    assert (first.captions, first.licence) == ((Caption("one", "sidecar"),), "CC0")
    assert first.notes == {"width": 64}
    data = path.read_bytes()
    bodies = [data[item.part.offset : item.part.offset + item.part.size] for item in (first, second)]
    assert bodies == [b"first", b"second"]
    assert bad(items) == {"00000.tar#2": "no-video", "00000.tar#4": "bad-sidecar"}


@pytest.mark.parametrize(("keep", "whole"), [(100, 0), (1024, 0), (1536, 1), (2000, 1), (3072, 2)])
def test_a_tar_that_was_cut_gives_what_is_sure_and_one_rejection(tmp_path: Path, keep: int, whole: int) -> None:
    path = tar_of(tmp_path / "a.tar", {f"{number}.mp4": bytes(400) for number in range(5)})
    path.write_bytes(path.read_bytes()[:keep])
    items = list(read_webdataset(path))
    assert bad(items) == {"a.tar": "unreadable-file"}
    assert len(good(items)) == whole


def test_tars_that_cannot_be_read_in_place_are_told_apart(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "in" / "a.tar", {"0.mp4": b"first"})
    (tmp_path / "in" / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.rename(path.with_name(b"caf\xe9.tar".decode("utf-8", "surrogateescape")))
    items = list(read_webdataset(tmp_path / "in"))
    assert bad(items) == {"b.tar.gz": "unreadable-file", "caf\\udce9.tar#1": "bad-path"}


def test_a_tar_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {f"{number}.mp4": b"x" for number in range(3000)})

    def read() -> None:
        assert sum(isinstance(item, ClipRequest) for item in read_webdataset(path)) == 3000

    assert peak_of(read) < 1e6


def test_a_member_that_would_leave_the_folder_is_rejected(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {"../../a.mp4": b"x", "/b.mp4": b"x", "c.mp4": b"x"})
    items = list(read_webdataset(path))
    assert [item.name for item in good(items)] == ["c"]
    assert set(bad(items).values()) == {"bad-path"}


def test_the_tables_of_a_folder_are_read_whatever_the_case_of_their_endings(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.JSONL"):
        write(tmp_path / "in" / name, lines(VIDEO))
    assert [item.place.file for item in good(read_hdvila(tmp_path / "in"))] == ["a.jsonl"] * 2 + ["b.JSONL"] * 2


def tar_of_list(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def captions(items: Iterable[Any]) -> dict[str, list[str]]:
    return {item.name: [caption.text for caption in item.captions] for item in good(items)}


def test_members_that_are_apart_in_a_tar_are_joined(tmp_path: Path) -> None:
    videos = [(f"{key}.mp4", key.encode()) for key in "abc"]
    texts = [(f"{key}.txt", f"caption {key}".encode()) for key in "abc"]
    path = tar_of_list(tmp_path / "a.tar", ("0.mp4", b"0"), ("0.txt", b"zero"), *videos, ("d.mp4", b"d"), *texts)
    items = list(read_webdataset(path))
    expected = {"0": ["zero"], "d": [], "a": ["caption a"], "b": ["caption b"], "c": ["caption c"]}
    assert captions(items) == expected
    assert bad(items) == {}
    data = path.read_bytes()
    assert [data[i.part.offset : i.part.offset + i.part.size] for i in good(items)] == [b"0", b"d", b"a", b"b", b"c"]
    assert len({item.place for item in items}) == 5


def test_members_that_are_apart_in_a_damaged_tar_are_told(tmp_path: Path) -> None:
    members = [("a.mp4", b"a"), ("b.mp4", b"b"), ("b.txt", b"two"), ("c.mp4", b"c"), ("a.txt", b"one"), ("d.mp4", b"d")]
    path = tar_of_list(tmp_path / "a.tar", *members)
    path.write_bytes(path.read_bytes()[: 5 * 1024 + 100])
    items = list(read_webdataset(path))
    assert captions(items) == {"b": ["two"], "c": []}
    assert bad(items) == {"a.tar": "unreadable-file", "a.tar#1": "unreadable-file"}


@pytest.mark.parametrize("between", [[], [("m.mp4", b"m"), ("m.txt", b"between")]])
def test_of_members_of_one_name_the_first_is_used_and_the_others_are_told(tmp_path: Path, between: list) -> None:
    twice = [("a.mp4", b"first"), ("a.txt", b"one"), *between, ("a.mp4", b"second"), ("a.txt", b"two")]
    path = tar_of_list(tmp_path / "a.tar", *twice, ("b.mp4", b"b"), ("b.txt", b"x"), ("b.txt", b"corrected"))
    items = list(read_webdataset(path))
    found = captions(items)
    assert (found["a"], found["b"]) == (["one"], ["x"])
    data = path.read_bytes()
    (part,) = [item.part for item in good(items) if item.name == "a"]
    assert data[part.offset : part.offset + part.size] == b"first"
    assert bad(items) == {"a.tar/a.mp4": "repeated-name", "a.tar/b.txt": "repeated-name"}
    assert len({item.id for item in items}) == len(items)


def test_a_tar_as_others_make_them_is_read(tmp_path: Path) -> None:
    noise = [(f"./._{name}", b"macOS") for name in ("a.mp4", "a.txt")] + [("./.DS_Store", b"x")]
    members = [
        noise[0],
        ("./a.mp4", b"a"),
        noise[1],
        ("./a.txt", b"one"),
        noise[2],
        ("x/y/b.MP4", b"b"),
        ("x/y/b.TXT", b""),
    ]
    members += [("c.mp4", b"c"), ("c.jpg", b"preview"), ("d.mp4", b"d"), ("d.webm", b"d"), ("README", b"?")]
    members += [(f"{'n' * 150}.mp4", b"n"), (f"{'n' * 150}.txt", b"long"), ("e.gif", b"e"), ("f.jpg", b"f")]
    passed = Passed()
    items = list(read_webdataset(tar_of_list(tmp_path / "in" / "A.TAR", *members), passed=passed))
    assert captions(items) == {"a": ["one"], "x/y/b": [], "c": [], "n" * 150: ["long"], "e": []}
    assert bad(items) == {"A.TAR#4": "no-video", "A.TAR#5": "bad-member", "A.TAR#8": "no-video"}
    assert passed == {"hidden in a tar": 3}
    found = list(read_webdataset(tmp_path / "in"))
    assert captions(found) == captions(items)


def test_a_sidecar_in_a_tar_that_is_too_large_is_told(tmp_path: Path) -> None:
    path = tar_of_list(tmp_path / "a.tar", ("a.mp4", b"a"), ("a.txt", bytes(2**22 + 1)), ("b.mp4", b"b"))
    items = list(read_webdataset(path))
    assert captions(items) == {"a": [], "b": []}
    assert bad(items) == {"a.tar#2": "bad-member"}


def test_a_tar_that_is_compressed_says_so_whatever_its_name(tmp_path: Path) -> None:
    path = tar_of_list(tmp_path / "a.tar", ("a.mp4", b"a"))
    path.write_bytes(gzip.compress(path.read_bytes()))
    (item,) = read_webdataset(path)
    assert "compressed by gzip: uncompress it" in item.detail


def test_tars_that_are_links_are_read_and_what_is_no_tar_is_counted(tmp_path: Path) -> None:
    tar_of_list(tmp_path / "blobs" / "0123", ("a.mp4", b"a"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").symlink_to(tmp_path / "blobs" / "0123")
    write(tmp_path / "in" / "b.tgz", b"")
    write(tmp_path / "in" / "list.csv", "")
    passed = Passed()
    items = list(read_webdataset(tmp_path / "in", passed=passed))
    assert [(item.source, item.followed) for item in good(items)] == [("a.tar", True)]
    assert bad(items) == {"b.tgz": "unreadable-file"}
    assert passed == {".csv": 1}


def test_items_travel_between_processes(tmp_path: Path) -> None:
    for item in read_hdvila(write(tmp_path / "meta.jsonl", lines(VIDEO, "{"))):
        assert pickle.loads(pickle.dumps(item)) == item  # noqa: S301
    error = pickle.loads(pickle.dumps(InputError("bad-time", "found 5")))  # noqa: S301
    assert str(error) == "bad-time: found 5"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["clip_id", "span", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


# What may begin one value over many lines is another test's.
RUBBISH = st.binary(max_size=30).filter(lambda row: not row.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[", b"{")))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(st.sampled_from(["video_id", "url", "clip"]), JSON) | RUBBISH, max_size=4))
def test_no_line_stops_the_reader_and_each_is_accounted_for(tmp_path_factory: Any, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "meta.jsonl"
    in_one = bytes.maketrans(b"\r\n", b"  ")
    texts = [row.translate(in_one) if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    items = list(read_hdvila(path))
    wanted = {number for number, text in enumerate(texts, 1) if text.strip()}
    assert {item.place.line for item in items} == wanted
    assert len({item.id for item in items if isinstance(item, BadInput)}) == len(bad(items))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text('ab,"\n', max_size=8), max_size=6))
def test_whatever_stands_in_a_csv_good_rows_around_it_are_read(tmp_path_factory: Any, rubbish: list[str]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    path.write_text("video,caption\nfirst.mp4,x\n" + "\n".join(rubbish) + "\nlast.mp4,y\n")
    sources = [item.source for item in good(read_table(path, {"video": "video"}))]
    assert (sources[0], sources[-1]) == ("first.mp4", "last.mp4")
