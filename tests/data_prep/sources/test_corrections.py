"""What metadata says of a clip comes in rows, files and calls: it is joined, corrected, and costs no decode."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.books.ledger import Ledger, Outcome
from data_prep.books.plan import Plan
from data_prep.books.reading import Reading
from data_prep.books.request import Caption, ClipRequest, Place
from data_prep.report.summary import Summary, format_summary
from data_prep.sources.hdvila import read_hdvila
from data_prep.sources.webdataset import read_webdataset
from tests.material.made_clips import encode
from tests.material.preparing import prep
from tests.material.scored_clips import panning
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_captions, read_sample

VIDEOS = {
    f"{name}.mp4": encode(panning(12, height=32, width=48, speed=2, seed=seed), 8.0) for seed, name in enumerate("ab")
}


def row(
    source: str, *texts: str, origin: str = "table", file: str = "list.csv", line: int = 1, **more: Any
) -> ClipRequest:
    """Return what a row of a table with captions says."""
    return ClipRequest(
        Place(file, line), source, captions=tuple(Caption(text, origin) for text in texts), origin=origin, **more
    )


def read(folder: Path, *rows: ClipRequest, batch: int = 50) -> Reading:
    """Enter a reading into the books of a folder."""
    ledger = Ledger(folder / "ledger.sqlite")
    plan = Plan(folder / "plan.sqlite", folder / "ledger.sqlite")
    found = plan.add(ledger.admit(rows, batch), batch)
    ledger.record([Outcome(request.id, "ok") for request in rows])
    plan.close(), ledger.close()
    return found


def known(folder: Path) -> dict[str, ClipRequest]:
    plan = Plan(folder / "plan.sqlite", folder / "ledger.sqlite")
    found = {request.source: request for _, request in plan.made()}
    plan.close()
    return found


def texts(folder: Path, source: str = "a.mp4") -> list[str]:
    return [caption.text for caption in known(folder)[source].captions]


@pytest.mark.parametrize("batch", [1, 2, 50])
def test_rows_of_one_id_add_captions_and_say_each_once(tmp_path: Path, batch: int) -> None:
    said = ["one", "two", "one", "three"]
    rows = [row("b.mp4", "x", line=9), *(row("a.mp4", text, line=line) for line, text in enumerate(said))]
    for _ in range(2):
        found = read(tmp_path, *rows, batch=batch)
        assert (texts(tmp_path), texts(tmp_path, "b.mp4")) == (["one", "two", "three"], ["x"])
        assert (found.repeated, found.updated) == (3, 0)


def test_a_row_that_says_nothing_takes_nothing_from_another_row(tmp_path: Path) -> None:
    said = {"licence": "CC0", "parent": "film", "name": "film.1", "followed": True}
    rows = [row("a.mp4", "one", notes={"x": 1, "y": 1}, **said), row("a.mp4", line=2, notes={"y": 2})]
    for _ in range(2):
        read(tmp_path, *rows)
        found = known(tmp_path)["a.mp4"]
        assert (texts(tmp_path), found.notes) == (["one"], {"x": 1, "y": 2})
        assert {name: getattr(found, name) for name in said} == said


@pytest.mark.parametrize("file", ["list.csv", "another.csv"])
def test_a_later_reading_replaces_captions_of_the_same_origin(tmp_path: Path, file: str) -> None:
    read(tmp_path, row("a.mp4", "old", "older"), row("b.mp4", "kept", line=2))
    found = read(tmp_path, row("a.mp4", "new", file=file, line=9))
    assert (texts(tmp_path), texts(tmp_path, "b.mp4"), found.updated) == (["new"], ["kept"], 1)
    # A reading that speaks of captions, and has none any more, takes them away; one without captions does not.
    read(tmp_path, row("a.mp4", origin="", file=file))
    assert texts(tmp_path) == ["new"]
    read(tmp_path, row("a.mp4", file=file))
    assert texts(tmp_path) == []


def test_licence_and_notes_are_those_of_the_last_version_of_a_file_and_join_those_of_another(tmp_path: Path) -> None:
    read(tmp_path, row("a.mp4", licence="CC0", notes={"x": 1, "y": 1}))
    assert read(tmp_path, row("a.mp4", file="more.csv", notes={"y": 2, "z": 2})).updated == 1
    found = known(tmp_path)["a.mp4"]
    assert (found.licence, found.notes) == ("CC0", {"x": 1, "y": 2, "z": 2})
    read(tmp_path, row("a.mp4", file="more.csv", licence="none", notes={"z": 3}))
    found = known(tmp_path)["a.mp4"]
    assert (found.licence, found.notes) == ("none", {"z": 3})
    read(tmp_path, row("a.mp4", file="more.csv"))
    assert known(tmp_path)["a.mp4"].licence == "", "the file says nothing of it any more"


def test_notes_that_were_left_out_are_counted_by_name(tmp_path: Path) -> None:
    rows = [row("a.mp4", omitted=("x", "y")), row("b.mp4", line=2, omitted=("x",))]
    found = read(tmp_path, *rows)
    assert found.to_json() == {"notes_left_out": {"x": 2, "y": 1}}
    assert Reading.from_json(found.to_json()) == found


def test_a_move_to_another_line_is_no_update(tmp_path: Path) -> None:
    read(tmp_path, row("a.mp4", "x", line=1), row("b.mp4", "y", line=2))
    found = read(tmp_path, row("b.mp4", "y", line=1), row("a.mp4", "x", line=2))
    assert (found.updated, found.repeated) == (0, 0)
    assert list(known(tmp_path)) == ["a.mp4", "b.mp4"], "the order is that in which they were first named"


READINGS = st.lists(
    st.tuples(st.sampled_from(["asr", "hand", "qwen"]), st.lists(st.sampled_from(["u", "v", "w"]), max_size=3)),
    max_size=3,
    unique_by=lambda reading: reading[0],
)


@settings(max_examples=6, deadline=None)
@given(readings=READINGS, order=st.randoms(use_true_random=False), batch=st.integers(1, 4))
def test_no_order_of_calls_with_captions_by_different_hands_shows(tmp_path_factory, readings, order, batch) -> None:
    calls = [
        [row(source, text, origin=by, file=f"{by}.csv", line=n, notes={by: 1}) for n, text in enumerate(said, 1)]
        for by, said in readings
        for source in ("a.mp4", "b.mp4")
    ]
    first, second = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    listed = [row("a.mp4", origin=""), row("b.mp4", origin="", line=2)]
    order.shuffle(shuffled := list(calls))
    for folder, these in ((first, calls), (second, [*shuffled, *shuffled[:2]])):
        for rows in (listed, *these):
            read(folder, *rows, batch=batch)
    one, two = known(first), known(second)
    assert list(one) == list(two)
    for source, request in one.items():
        assert (request.captions, request.notes) == (two[source].captions, two[source].notes)
        assert list(request.captions) == sorted(request.captions, key=lambda caption: caption.origin)
        assert {(c.origin, c.text) for c in request.captions} == {(by, text) for by, said in readings for text in said}


def captions(out: Path) -> dict[str, list[str]]:
    manifest = Manifest.load(out)
    rows = [manifest.row(n) for n in range(len(manifest))]
    return {row["source"]: read_captions(read_sample(out, row)) for row in rows}


def test_corrected_captions_are_in_the_shards_and_nothing_is_decoded_again(tmp_path: Path) -> None:
    for name, video in VIDEOS.items():
        (tmp_path / name).write_bytes(video)
    columns = {"video": "path", "caption": "text"}
    how = {"reader": {"columns": columns}, "score": False, "workers": 1, "encode": {"short_side": 32}}
    table = tmp_path / "list.csv"
    table.write_text("path,text\na.mp4,old a\nb.mp4,old b\nnone,\n")
    first = prep(tmp_path / "out", table, "table", **how)
    assert (first["ok"], "updated" in first) == (2, False)
    made = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out/.work/clips").rglob("*.mp4"))
    # Another order of lines, a second caption, a line less that fails.
    table.write_text('path,text\nb.mp4,new b\na.mp4,new a\nb.mp4,"more, of b"\nb.mp4,new b\n')
    again = prep(tmp_path / "out", table, "table", **how)
    assert captions(tmp_path / "out") == {"a.mp4": ["new a"], "b.mp4": ["new b", "more, of b"]}
    assert (again["updated"], again["repeated"], again["inputs"], again["filtered"]) == (2, 2, 3, {})
    assert "2 inputs updated" in format_summary(Summary.from_json(again), "out")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out/.work/clips").rglob("*.mp4")) == made
    # The summary of a call that reads nothing says how the list was, not what an earlier call changed in it.
    (tmp_path / "gone.txt").write_text("b.mp4\n")
    taken = prep(tmp_path / "out", takedown=tmp_path / "gone.txt", score=False, workers=1, encode={"short_side": 32})
    assert (taken["repeated"], "updated" in taken) == (2, False)
    # Once taken down it stays so, whatever is said of it later.
    table.write_text("path,text\nb.mp4,newest b\na.mp4,newest a\n")
    assert prep(tmp_path / "out", table, "table", **how)["filtered"] == {"takedown": 1}
    assert captions(tmp_path / "out") == {"a.mp4": ["newest a"]}


def test_a_clip_that_was_taken_down_by_its_name_stays_out_under_another_name(tmp_path: Path) -> None:
    for name, video in VIDEOS.items():
        (tmp_path / name).write_bytes(video)
    table = tmp_path / "list.jsonl"
    columns = {"video": "path", "name": "clip"}
    how = {"reader": {"columns": columns}, "score": False, "workers": 1, "encode": {"short_side": 32}}
    table.write_text("".join(json.dumps({"path": name, "clip": f"old {name}"}) + "\n" for name in VIDEOS))
    prep(tmp_path / "out", table, "table", **how)
    (tmp_path / "gone.txt").write_text("old a.mp4\n")
    assert prep(tmp_path / "out", takedown=tmp_path / "gone.txt", **how)["filtered"] == {"takedown": 1}
    table.write_text("".join(json.dumps({"path": name, "clip": f"new {name}"}) + "\n" for name in VIDEOS))
    assert prep(tmp_path / "out", table, "table", **how)["filtered"] == {"takedown": 1}
    assert list(captions(tmp_path / "out")) == ["b.mp4"]


def failed(folder: Path, items: Any) -> list[str]:
    """Enter a reading into the ledger of a folder and return the places of what failed."""
    ledger = Ledger(folder / "ledger.sqlite")
    list(ledger.admit(items))
    found = [row.place for row in ledger.ended()]
    ledger.close()
    return found


def test_a_name_that_a_tar_holds_twice_is_forgotten_once_the_tar_is_written_anew(tmp_path: Path) -> None:
    def tar(*names: str) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 3
                file.addfile(info, io.BytesIO(b"mp4"))

    tar("x.mp4", "x.mp4", "y.mp4")
    assert failed(tmp_path, read_webdataset(tmp_path / "a.tar")) == ["a.tar/x.mp4"]
    tar("x.mp4", "y.mp4")
    assert failed(tmp_path, read_webdataset(tmp_path / "a.tar")) == []


def test_a_bad_line_of_a_folder_of_captions_is_forgotten_once_it_is_mended(tmp_path: Path) -> None:
    video = {"video_id": "v", "url": "https://a.b/v", "clip": [{"clip_id": "v.0.mp4", "span": ["0:00:01", "0:00:02"]}]}
    (tmp_path / "meta.jsonl").write_text(json.dumps(video))
    captions = tmp_path / "\udce9"  # a byte that is no UTF-8
    captions.mkdir()
    reading = lambda: read_hdvila(tmp_path / "meta.jsonl", captions, work=tmp_path / "work")  # noqa: E731
    (captions / "\udce9.jsonl").write_text("no JSON")
    (captions / "b.jsonl").write_text('{"clip_id": "v.0.mp4"}')
    assert sorted(failed(tmp_path, reading())) == ["\\udce9.jsonl:1", "b.jsonl:1"]
    (captions / "\udce9.jsonl").write_text('{"clip_id": "v.0.mp4", "text": "a ball"}')
    (captions / "b.jsonl").unlink()
    assert failed(tmp_path, reading()) == []
