"""What a work folder goes through between two calls: killed work, mended sources, damaged files, places to write."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from data_prep.books.work_folder import VIDEOS
from data_prep.engine.local import Local
from data_prep.report.summary import Summary, format_summary
from tests.material.preparing import prep
from tests.material.scored_clips import panning
from videodiff.data.samples.manifest import Manifest
from videodiff.data.video.encode import encode

GOOD = encode(panning(16, height=32, width=48, speed=2, seed=0), 8.0)
HOW = {"encode": {"short_side": 16}, "workers": 1, "score": False}


class Killed(Local):
    """An engine whose leading process ends before it notes the first answer of a worker."""

    def run(self, work):
        for _ in super().run(work):
            raise KeyboardInterrupt


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    """Return a folder with one video."""
    (folder := tmp_path / "in").mkdir()
    (folder / "a.mp4").write_bytes(GOOD)
    return folder


@pytest.fixture
def killed(footage: Path, tmp_path: Path) -> Path:
    """Return the dataset folder of a call that was killed when its clip lay in the work folder."""
    with pytest.raises(KeyboardInterrupt):
        prep(tmp_path / "out", footage, engine=Killed(), **HOW)
    (tmp_path / "out/.work" / VIDEOS / "download").touch()
    assert len(of_clips(tmp_path / "out")) == 2
    return tmp_path / "out"


def of_clips(out: Path) -> list[Path]:
    """Return the files of clips and requests in the work folder."""
    return [*out.glob(".work/clips/*/*")]


@pytest.mark.parametrize("again", [True, False])
def test_a_takedown_leaves_nothing_of_a_call_that_was_killed(killed: Path, footage: Path, tmp_path: Path, again: bool):
    (gone := tmp_path / "gone.txt").write_text("a.mp4\n")
    (footage / "b.mp4").write_bytes(encode(panning(16, height=32, width=48, speed=2, seed=1), 8.0))
    summary = prep(killed, footage if again else None, takedown=gone, **HOW)
    assert (summary["ok"], summary["filtered"], summary["open"]) == ((1, {"takedown": 1}, 0) if again else (0, {}, 1))
    assert len(of_clips(killed)) == (2 if again else 0)
    assert not (killed / ".work" / VIDEOS).exists()
    assert prep(killed, footage, **HOW)["filtered"] == {"takedown": 1}
    assert [row["source"] for row in map(Manifest.load(killed).row, [0])] == ["b.mp4"]


def test_files_that_were_mended_are_made_on_request(tmp_path: Path):
    """They failed for good: nothing but a change of the files could help."""
    names = ["cut", "gone", "good", "void"]
    (tmp_path / "good.mp4").write_bytes(GOOD)
    (tmp_path / "cut.mp4").write_bytes(GOOD[: len(GOOD) // 2])
    lines = [json.dumps({"video": f"{name}.mp4", "from": 0, "to": 2}) for name in names]
    (table := tmp_path / "list.jsonl").write_text("\n".join([*lines, "no JSON"]))
    how = {**HOW, "reader": {"columns": {"video": "video", "start": "from", "end": "to"}}}
    bad = {"malformed-line": {"permanent": 1}}
    failed = {"undecodable": {"permanent": 1}, "missing": {"permanent": 2}}
    assert prep(tmp_path / "out", table, "table", **how)["failed"] == bad | failed
    for name in ("cut", "gone"):
        (tmp_path / f"{name}.mp4").write_bytes(encode(panning(16, height=32, width=48, speed=2, seed=len(name)), 8.0))
    for retry in (None, "failed"):
        summary = prep(tmp_path / "out", table if retry is None else None, "table", retry=retry, **how)
        assert (summary["ok"], summary["failed"]) == (1, bad | failed)
    summary = prep(tmp_path / "out", None, "table", retry="all", **how)
    assert (summary["inputs"], summary["ok"], summary["failed"]) == (5, 3, bad | {"missing": {"permanent": 1}})
    manifest = Manifest.load(tmp_path / "out")
    assert [manifest.row(n)["source"] for n in range(3)] == ["cut.mp4", "gone.mp4", "good.mp4"]


def test_a_work_folder_that_cannot_be_written_ends_the_call_and_fails_no_input(footage: Path, tmp_path: Path):
    (work := tmp_path / "out/.work").mkdir(parents=True)
    (work / "clips").touch()
    with pytest.raises(OSError, match=r"Not a directory; run the same command again to continue: '.*/\.work/clips/"):
        prep(tmp_path / "out", footage, **HOW)
    (work / "clips").unlink()
    summary = prep(tmp_path / "out", footage, **HOW)
    assert (summary["ok"], summary["failed"]) == (1, {})


@pytest.mark.parametrize("damage", ["no file", "other bytes"])
def test_a_clip_that_is_damaged_in_the_work_folder_is_named_and_not_packed(footage: Path, tmp_path: Path, damage: str):
    prep(out := tmp_path / "out", footage, **HOW)
    (clip,) = out.glob(".work/clips/*/*.mp4")
    shard = (out / "shard-00000.tar").read_bytes()
    clip.unlink() if damage == "no file" else clip.write_bytes(clip.read_bytes()[:-9] + bytes(9))
    with pytest.raises(ValueError, match=rf"{clip}: found {damage}.*: restore it, or take {clip.stem} down"):
        prep(out, **HOW)
    assert (out / "shard-00000.tar").read_bytes() == shard
    (tmp_path / "gone.txt").write_text(clip.stem)
    assert prep(out, takedown=tmp_path / "gone.txt", **HOW)["filtered"] == {"takedown": 1}


def replaced(path: Path, data: bytes) -> None:
    """Replace a file by one of the same size and another time."""
    time = path.stat().st_mtime_ns + 10**9
    path.write_bytes(data.ljust(path.stat().st_size, b" ")[: path.stat().st_size])
    os.utime(path, ns=(time, time))


def test_a_file_that_was_replaced_under_its_name_is_named_and_its_clip_stays(footage: Path, tmp_path: Path):
    out, other = tmp_path / "out", encode(panning(16, height=32, width=48, speed=2, seed=1), 8.0)
    for name in ("b.mp4", "c.mp4", "short.mp4"):
        (footage / name).write_bytes(other)
    shots = {**HOW, "cut": {"by": "scenes", "minimum": 1.0, "maximum": 2.0}}
    (footage / "short.mp4").write_bytes(encode(panning(4, height=32, width=48, speed=2, seed=2), 8.0))
    assert "changed" not in (first := prep(out, footage, **shots))
    assert (first["ok"], first["filtered"]) == (2, {"duplicate": 1, "no scene": 1})
    assert "changed" not in prep(out, footage, **shots)
    before = of_clips(out)
    replaced(footage / "a.mp4", other)
    (footage / "short.mp4").write_bytes(other)
    (footage / "c.mp4").unlink()
    for source in (footage, footage, None):
        summary = prep(out, source, **shots)
        assert (summary["changed"], summary["changed_files"]) == (2, ["a.mp4", "short.mp4"])
    assert (of_clips(out), summary["ok"]) == (before, 2)
    told = "2 files with another size or time than when worked on: a.mp4, short.mp4; what was made"
    assert told in format_summary(Summary.from_json(summary), out)
    # What is taken down has nothing that stays.
    (tmp_path / "gone.txt").write_text("a.mp4\n")
    summary = prep(out, footage, takedown=tmp_path / "gone.txt", **shots)
    assert (summary["changed"], summary["changed_files"]) == (1, ["short.mp4"])


def test_a_failed_input_is_no_changed_file_and_one_that_was_mended_has_its_new_time(footage: Path, tmp_path: Path):
    (footage / "a.mp4").write_bytes(b"no video")
    assert prep(out := tmp_path / "out", footage, **HOW)["failed"] == {"undecodable": {"permanent": 1}}
    (footage / "a.mp4").write_bytes(GOOD)
    assert "changed" not in prep(out, footage, **HOW)
    assert prep(out, retry="all", **HOW)["ok"] == 1
    assert "changed" not in prep(out, footage, **HOW)


def test_a_damaged_ledger_is_named(footage: Path, tmp_path: Path):
    (work := tmp_path / "out/.work").mkdir(parents=True)
    (work / "ledger.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(OSError, match=rf"not a database: '{work}'"):
        prep(tmp_path / "out", footage, **HOW)


def test_a_dataset_that_has_no_work_folder_is_not_replaced(footage: Path, tmp_path: Path):
    prep(out := tmp_path / "out", footage, **HOW)
    (other := tmp_path / "other").mkdir()
    tar = (out / "shard-00000.tar").rename(other / "shard-00000.tar")
    before = tar.read_bytes()
    for source, kind in ((footage, "folder"), (tar, "webdataset")):
        with pytest.raises(ValueError, match=rf"out: found {tar} of another dataset, expected a folder without one"):
            prep(other, source, kind, **HOW)
    assert [path.read_bytes() for path in other.iterdir()] == [before]
