"""A folder as people have it goes the whole way: other containers, a hub's links, and what is passed over is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_prep.books.ledger import Ends
from data_prep.books.request import ClipRequest, Place
from data_prep.fetch.acquire import Acquirer, check_local
from data_prep.fetch.failures import AcquireError
from data_prep.report.figures import examples, figures
from data_prep.report.page import write_preparation
from data_prep.report.summary import ClipCounts, Summary, format_summary, nothing_kept
from tests.material.made_clips import moving_square, write_video
from tests.material.preparing import prep
from videodiff.data.samples.manifest import Manifest
from videodiff.data.video.encode import encode

GOOD = encode(moving_square(), 5.0)
FRAMES = moving_square(8, 32, 48)
HOW = {"encode": {"short_side": 32}, "workers": 1, "score": False}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict]:
    """Return where a snapshot of a hub's cache was prepared, and the summary."""
    root = tmp_path_factory.mktemp("hub")
    snapshot, blobs = root / "snapshots" / "abc", root / "blobs"
    files = {
        "a.mp4": GOOD,
        "a.txt": b"linked",
        "b.TS": write_video(FRAMES, "mpeg2video", container="mpegts"),
        "c.gif": write_video(FRAMES, "gif", "rgb8", "gif"),
        "deep/d.mkv": write_video(FRAMES, container="matroska"),
        "e.srt": b"1",
        "f.jpg": b"picture",
        "g.mp4": b"no video",
        "README": b"",
    }
    blobs.mkdir()
    for number, (name, data) in enumerate(files.items()):
        (blobs / f"{number:04}").write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blobs / f"{number:04}")
    (snapshot / "gone.mp4").symlink_to("nowhere")
    return root / "out", prep(root / "out", snapshot, **HOW)


def test_every_container_and_every_link_of_the_folder_is_taken(prepared):
    out, summary = prepared
    manifest = Manifest.load(out)
    rows = {row["source"]: row for row in map(manifest.row, range(len(manifest)))}
    assert {name: row["frames"] for name, row in rows.items()} == {"a.mp4": 8, "b.TS": 8, "c.gif": 8, "deep/d.mkv": 8}
    assert {name: row["captions"] for name, row in rows.items()}["a.mp4"] == 1
    assert summary["failed"] == {"undecodable": {"permanent": 1}, "unreadable-file": {"permanent": 1}}


def test_what_is_passed_over_and_has_no_caption_is_told_also_in_later_calls(prepared):
    out, summary = prepared
    passed = {".srt": 1, ".jpg": 1, "no ending": 1}
    assert summary["passed_over"] == json.loads((out / "summary.json").read_text())["passed_over"] == passed
    lines = format_summary(Summary.from_json(summary), out).splitlines()
    assert "3 clips have no caption" in lines
    (line,) = (line for line in lines if line.startswith("passed over: "))
    assert {".srt 1", ".jpg 1 (`videodiff pack` takes pictures)", "no ending 1"} == set(line[13:].split(", "))
    assert prep(out, **HOW)["passed_over"] == passed


def test_an_input_of_each_class_that_failed_is_named_with_its_cause(prepared):
    out, summary = prepared
    lines = format_summary(Summary.from_json(summary), out, examples(figures(out, {}).failures)).splitlines()
    starts = [line.partition(" (permanent); the first one: ") for line in lines if " failed: " in line]
    assert [(what, found.partition(": ")[0]) for what, _, found in starts] == [
        ("1 failed: undecodable", "g.mp4"),
        ("1 failed: unreadable-file", "gone.mp4"),
    ]
    assert "cannot be opened" in starts[0][2]
    assert "link to 'nowhere', which does not exist" in starts[1][2]


STATUS = {
    "good and broken": (("a.mp4", "b.mp4"), [], 0, ""),
    "all broken": (("b.mp4",), [], 1, "1 input (1 failed), so out is no dataset; retry=all works again on inputs"),
    "all filtered": (
        ("a.mp4",),
        ["+prep.filter.frames.min=99"],
        1,
        "1 input (1 filtered), so out is no dataset; other",
    ),
}


@pytest.mark.parametrize(("names", "keys", "expected", "line"), STATUS.values(), ids=STATUS)
def test_prep_and_pack_end_with_status_1_where_they_leave_no_dataset(
    call, tmp_path, monkeypatch, names, keys, expected, line
):
    monkeypatch.chdir(tmp_path)
    files = {"a.mp4": GOOD, "b.mp4": b"no video"}
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(files[name])
    how = ["prep=all", *keys, "encode.short_side=32"]
    status, printed, errors = call("prep", "source=in", "out=out", "workers=1", *how)
    assert (status, (tmp_path / "out" / "manifest.parquet").exists()) == (expected, not expected)
    assert "report: out/report.html" in printed, errors
    assert (f"videodiff prep: error: no clip is kept of {line}" in errors) == bool(expected)
    if not keys:
        status, _, errors = call("pack", "source=in", "out=packed", "workers=1", "require_caption=false")
        assert (status, (tmp_path / "packed" / "manifest.parquet").exists()) == (expected, not expected)
        assert ("found no clip in in that can be packed: 1 rejected" in errors) == bool(expected)


def test_a_call_that_keeps_no_clip_tells_what_may_help():
    ends = Ends(3, 0, {"no caption": 1}, {"missing": {"permanent": 1}, "timeout": {"retryable": 1}}, 0)
    assert nothing_kept(Summary(ends, ClipCounts(made=1)), "out") == (
        "no clip is kept of 3 inputs (1 filtered, 2 failed), so out is no dataset; other limits (prep.filter), or "
        "prep=all, keep more; retry=failed works again on what may succeed now; retry=all works again on inputs that "
        "you have mended"
    )


def test_the_page_tells_it_too(prepared):
    out, _ = prepared
    page = write_preparation(out, figures(out, {})).read_text()
    assert "3 clips have no caption." in page
    (told,) = re.findall(r"Passed over: (.*)\.</p>", page)
    assert set(told.split(", ")) == {".srt 1", ".jpg 1", "no ending 1"}


def test_a_folder_without_videos_tells_what_is_there(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").touch()
    with pytest.raises(
        ValueError, match=r"found no inputs in .*, expected .* format=folder, .*; there are \.tar 1 \(`videodiff index`"
    ):
        prep(tmp_path / "out", tmp_path / "in", **HOW)
    assert not (tmp_path / "out").exists()


def test_a_link_that_a_table_names_is_refused_with_its_target(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    (tmp_path / "secret.mp4").write_bytes(GOOD)
    (root / "a.mp4").symlink_to("../secret.mp4")
    with pytest.raises(AcquireError, match=r"by the link 'a\.mp4' to '\.\./secret\.mp4'") as caught:
        check_local(root, root / "a.mp4")
    assert caught.value.reason == "bad-path"
    acquirer = Acquirer(tmp_path, root)
    with pytest.raises(AcquireError, match="leads out"):
        acquirer.fetch(ClipRequest(Place("list.csv", 2), "a.mp4"))
    found = acquirer.fetch(ClipRequest(Place("a.mp4"), "a.mp4", followed=True))
    assert found.path.read_bytes() == GOOD
