"""Prep, end to end: real videos to shards, with every input accounted for, whatever is killed and how many work."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep import pipeline
from data_prep.books.plan import from_json, to_json
from data_prep.books.request import Caption, ClipRequest, Part, Place
from data_prep.choose.takedown import read_lines, remember
from tests.material import warm
from tests.material.made_clips import moving_square
from tests.material.preparing import prep
from tests.material.scored_clips import panning, still
from tests.material.servers.loopback import free_port
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_captions, read_notes, read_sample
from videodiff.data.video.decode import decode, probe
from videodiff.data.video.encode import encode

# `make soak` asks for 500 faults, of which a tenth are kills.
KILLS = int(os.environ.get("PREP_RUNS", "50")) // 10
FPS, SIZE = 8.0, {"height": 64, "width": 96}
MADE = {"encode": {"short_side": 32}, "acquire": {"rate": 1000.0}}
RULES = {"filter": {"duration": {"min": 1.0}, "motion": {"min": 0.005}}, "near": 24}
GOOD = [encode(panning(24, **SIZE, speed=2, seed=seed), FPS) for seed in range(3)]


def lines() -> list[dict]:
    """Return the rows of a table over the videos of `fill`, each bound to end in its own way."""
    rows = [
        {"video": "good0.mp4", "from": 0, "to": 1.5, "text": "first half", "licence": "CC0-1.0"},
        {"video": "cut.mp4", "from": 0, "to": 2},
        {"video": "good1.mp4", "from": 0.5, "to": 2.5, "text": "middle", "licence": "CC-BY-4.0"},
        {"video": "gone.mp4", "from": 0, "to": 1},
        {"video": "zero.mp4", "from": 0, "to": 1},
        {"video": "good0.mp4", "from": 1.5, "to": 3, "text": "second half", "licence": "CC0-1.0"},
        {"video": "copy.mp4", "from": 0, "to": 1.5},
        {"video": "good0.mp4", "from": 0, "to": 1.5},
        {"video": "good2.mp4", "from": 0, "to": 0.5},
        {"video": "good2.mp4", "from": 2, "to": 9},
        {"video": "good2.mp4", "from": 2, "to": 1},
        {"video": "still.mp4", "from": 0, "to": 2},
        {"video": "scaled.mp4", "from": 0, "to": 3},
        {"video": "../etc/passwd", "from": 0, "to": 1},
        {"video": "good2.mp4", "from": 0, "to": 3, "text": "all", "licence": "CC0-1.0"},
    ]
    return rows


ENDS = {
    "inputs": 14,
    "repeated": 1,
    "ok": 5,
    "filtered": {"duplicate": 1, "duration below 1": 1, "motion below 0.005": 1},
    "failed": {
        "bad-path": {"permanent": 1},
        "bad-span": {"permanent": 2},
        "empty": {"permanent": 1},
        "missing": {"permanent": 1},
        "truncated": {"permanent": 1},
    },
    "open": 0,
}


def fill(folder: Path) -> Path:
    """Write the videos and the table over them, and return the table."""
    folder.mkdir(parents=True)
    videos = {f"good{number}.mp4": video for number, video in enumerate(GOOD)}
    videos |= {
        "cut.mp4": GOOD[0][: len(GOOD[0]) // 2],
        "zero.mp4": b"",
        "copy.mp4": GOOD[0],
        "still.mp4": encode(still(24, **SIZE), FPS),
        "scaled.mp4": encode(panning(24, **SIZE, speed=2, seed=7), FPS),
    }
    for name, video in videos.items():
        (folder / name).write_bytes(video)
    table = folder / "list.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    return table


COLUMNS = {"video": "video", "start": "from", "end": "to", "caption": "text", "licence": "licence"}
READER = {"columns": COLUMNS}


def run(table: Path | None, out: Path, **how) -> dict:
    return prep(out, table, "table", reader=READER, **{**MADE, **RULES, "workers": 2, "shard_bytes": 30_000, **how})


def dataset(out: Path) -> dict[str, bytes]:
    """Return the files of a dataset, without the work folder and the page, which tells how long things took."""
    files = [path for path in sorted(out.iterdir()) if path.is_file() and path.name != "report.html"]
    return {path.name: path.read_bytes() for path in files}


def temporaries(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if ".partial" in path.name or "videos" in path.parts]


def captions(out: Path) -> list[str]:
    manifest = Manifest.load(out)
    return [" ".join(read_captions(read_sample(out, manifest.row(n)))) for n in range(len(manifest))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict]:
    """Return the folder of sources `in` and the dataset `out`, and its summary."""
    root = tmp_path_factory.mktemp("prep")
    return root, run(fill(root / "in"), root / "out")


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    """Return a copy of the dataset that may be changed."""
    return Path(shutil.copytree(prepared[0] / "out", tmp_path / "out"))


def test_every_input_ends_in_its_class(prepared):
    root, summary = prepared
    assert {key: summary[key] for key in ENDS} == ENDS
    failed = sum(count for kinds in summary["failed"].values() for count in kinds.values())
    assert (
        summary["ok"] + sum(summary["filtered"].values()) + failed
        == summary["inputs"]
        == len(lines()) - summary["repeated"]
    )
    assert json.loads((root / "out/summary.json").read_text()) == summary
    assert temporaries(root / "out") == []


def test_the_shards_hold_the_clips_in_the_order_of_the_inputs_with_their_provenance(prepared):
    out = prepared[0] / "out"
    manifest = Manifest.load(out)
    assert captions(out) == ["first half", "middle", "second half", "", "all"]
    assert len(manifest.shards) > 1
    rows = [manifest.row(number) for number in range(len(manifest))]
    assert [row["source"] for row in rows] == ["good0.mp4", "good1.mp4", "good0.mp4", "scaled.mp4", "good2.mp4"]
    assert all(row["score_motion"] >= 0.005 for row in rows)
    members = read_sample(out, rows[1])
    notes = read_notes(members)
    assert (notes["span"], notes["licence"], notes["parameters"]["encode"]["short_side"]) == (
        [0.5, 2.5],
        "CC-BY-4.0",
        32,
    )
    assert notes["times"] == [500_000 + 125_000 * number for number in range(16)]
    assert (probe(members["mp4"]).width, probe(members["mp4"]).height) == (48, 32)
    shown, whole = (
        decode(members["mp4"], range(16)),
        decode(GOOD[1], range(24)).reshape(24, 32, 2, 48, 2, 3).mean((2, 4)),
    )
    errors = [np.abs(shown - whole[first : first + 16]).mean() for first in range(9)]
    assert np.argmin(errors) == 4
    assert errors[4] < 15
    scores = pq.read_table(out / "scores.parquet").to_pylist()
    assert {row["reason"] for row in scores} == {"", "duplicate", "duration below 1", "motion below 0.005"}
    assert len(scores) == prepared[1]["clips"]["made"] == 8


def test_the_number_of_workers_changes_nothing(prepared, tmp_path):
    run(prepared[0] / "in/list.jsonl", tmp_path / "out", workers=1)
    assert dataset(tmp_path / "out") == dataset(prepared[0] / "out")


def footprint(out: Path) -> int:
    """Return how many files a run has written: 8 clips and their notes, the scores, and what becomes the dataset."""
    return len([*out.glob(".work/clips/*/*"), *out.glob("*.parquet"), *out.glob(".shard-*"), *out.glob("*.tar")])


def test_killed_at_random_moments_it_ends_with_the_same_shards(prepared, tmp_path):
    """Kill the whole process group, or the main process alone, whose workers then have to end by themselves."""
    out, rng = tmp_path / "out", random.Random(0)
    how = {**MADE, **RULES, "workers": 2, "shard_bytes": 30_000, "reader": READER}
    table = prepared[0] / "in/list.jsonl"
    # Away from here: a worker starts by importing the main module, which must not be this one.
    (script := tmp_path / "main.py").write_text(
        "if __name__ == '__main__':\n    from tests.material.preparing import prep\n"
        f"    prep({str(out)!r}, {str(table)!r}, 'table', **{how})\n"
    )

    def start() -> warm.Popen:
        return warm.start([sys.executable, script], process_group=0)

    def check() -> None:
        printed, _ = (process := start()).communicate(timeout=600)
        assert process.returncode == 0, printed
        summary = json.loads((out / "summary.json").read_text())
        assert {key: summary[key] for key in ENDS} == ENDS
        assert dataset(out) == dataset(prepared[0] / "out")
        assert temporaries(out) == []

    for number in range(KILLS):
        process, files = start(), footprint(out) + rng.randrange(0, 12)
        while process.poll() is None and footprint(out) < files:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        # It may have come to its end before.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if number % 2 else process.kill()
        process.communicate()
        # Now and then it may go on to its end, and the next one begins with nothing.
        if number + 1 < KILLS and rng.random() < 0.2:
            check()
            shutil.rmtree(out)
    check()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_goes_on_after_a_signal(prepared, tmp_path, number):
    out = tmp_path / "out"
    columns = "{" + ",".join(f"{name}:{column}" for name, column in COLUMNS.items()) + "}"
    command = [sys.executable, "-m", "videodiff", "prep", f"source={prepared[0]}/in/list.jsonl", f"out={out}"]
    command += ["format=table", f"reader.columns={columns}", "encode.short_side=32", "shard_bytes=30000", "workers=2"]
    command += ["prep=all", "+prep.filter={duration:{min:1.0},motion:{min:0.005}}", "prep.duplicates.near=24"]
    process = warm.start(command)
    while process.poll() is None and footprint(out) < 5:
        time.sleep(0.005)
    process.send_signal(number)
    printed, _ = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert printed.endswith("\nvideodiff prep: error: terminated\n")
        assert list(out.rglob("*.partial")) == []
    done = warm.run(command, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "5 of 14 inputs ok: 5 of 8 clips" in done.stdout
    assert dataset(out) == dataset(prepared[0] / "out")


def test_what_stopped_workers_have_not_finished_is_removed(tmp_path):
    clips = tmp_path / "out" / ".work" / "clips" / "b4f"
    clips.mkdir(parents=True)
    unfinished, whole = clips / ".b4f1.mp4.here.12.0123456789ab.partial", clips / "b4f1.mp4"

    def stopped() -> None:
        with pipeline.locked(clips.parents[1]):
            unfinished.touch()
            whole.touch()
            raise SystemExit

    with pytest.raises(SystemExit):
        stopped()
    assert list(clips.iterdir()) == [whole]


def test_other_thresholds_need_no_video(copied, prepared):
    videos = prepared[0] / "in"
    hidden = videos.rename(prepared[0] / "hidden")
    wider = run(None, copied, filter={"duration": {"min": 0.1}})
    assert (wider["ok"], wider["filtered"]) == (7, {"duplicate": 1})
    narrow = run(None, copied, filter={"duration": {"min": 2.5}, "motion": {"min": 0.005}})
    assert (narrow["ok"], narrow["filtered"]["duration below 2.5"]) == (2, 6)
    assert captions(copied) == ["", "all"]
    again = run(None, copied)
    assert {key: again[key] for key in ENDS} == ENDS
    hidden.rename(videos)


def test_a_name_to_take_down_may_hold_what_ends_a_line_elsewhere(tmp_path):
    name = "one\u2028two.mp4"
    (tmp_path / "gone.txt").write_text(f"{name}\n")
    remember(tmp_path, read_lines(tmp_path / "gone.txt"))
    assert remember(tmp_path, frozenset()) == {name}


def test_a_list_to_take_down_may_have_remarks_and_blanks(tmp_path):
    (tmp_path / "gone.txt").write_text("\ufeff# by request\n\n  a.mp4 \n#b.mp4\nc #1.mp4\n")
    assert read_lines(tmp_path / "gone.txt") == {"a.mp4", "c #1.mp4"}


def test_a_takedown_leaves_shards_scores_and_work_folder(copied, tmp_path, prepared):
    gone = read_sample_ids(copied)[1]
    (tmp_path / "gone.txt").write_text(f"# by request\n{gone}\ngood2.mp4\n")
    summary = run(None, copied, takedown=tmp_path / "gone.txt")
    assert summary["filtered"]["takedown"] == 3
    assert sum(summary["filtered"].values()) + summary["ok"] + 6 == summary["inputs"]
    assert captions(copied) == ["first half", "second half", ""]
    assert list(copied.rglob(f"{gone}.mp4")) == []
    assert run(None, copied)["filtered"]["takedown"] == 3
    # What is taken down is not fetched either.
    fresh = run(prepared[0] / "in/list.jsonl", tmp_path / "fresh", takedown=tmp_path / "gone.txt")
    assert captions(tmp_path / "fresh") == captions(copied)
    assert fresh["clips"]["made"] == 8 - 3


def read_sample_ids(out: Path) -> list[str]:
    return Manifest.load(out).column("key").tolist()


def test_only_allowed_licences_are_kept_and_nothing_of_the_rest_stays(copied):
    summary = run(None, copied, licences=["CC0-1.0"])
    assert captions(copied) == ["first half", "second half", "all"]
    assert summary["filtered"]["licence"] == 5
    assert run(None, copied, licences=[])["ok"] == 0
    assert not list(copied.glob("*.tar"))
    assert not (copied / "manifest.parquet").exists()


def test_clips_without_a_caption_are_left_out_on_request(copied):
    before = run(None, copied)
    summary = run(None, copied, require_caption=True)
    assert captions(copied) == ["first half", "middle", "second half", "all"]
    # That it has no caption is said of a duplicate too.
    left = [found["ok"] + found["filtered"].get("duplicate", 0) for found in (before, summary)]
    assert summary["filtered"]["no caption"] == left[0] - left[1] > 0


def test_its_phases_and_their_counts_are_told(prepared, tmp_path):
    steps = []
    run(prepared[0] / "in/list.jsonl", tmp_path / "out", progress=steps.append)
    assert list(dict.fromkeys(step.phase for step in steps)) == ["read", "make", "choose", "pack"]
    first, *_, last = [step for step in steps if step.phase == "make"]
    assert (first.done, first.total, last.done, last.total) == (2, 14, 14, 14)
    assert {name: last.counts[name] for name in ("made", "clips", "filtered", "failed")} == {
        "made": 8,
        "clips": 8,
        "filtered": 0,
        "failed": 6,
    }
    sources = [path.stat().st_size for path in (prepared[0] / "in").glob("*.mp4") if path.stat().st_size]
    assert last.counts["read"] == sum(sources)
    assert last.counts["written"] == sum(path.stat().st_size for path in tmp_path.glob("out/.work/clips/*/*.mp4"))


def test_a_failure_that_may_pass_is_tried_again_on_request_only(tmp_path):
    out, port = tmp_path / "out", free_port()
    lines = [{"video": f"http://127.0.0.1:{port}/{name}.mp4", "from": 0, "to": 2} for name in ("good", "gone")]
    table = tmp_path / "list.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "good.mp4").write_bytes(GOOD[0])
    how = {"acquire": {"rate": 1000.0, "attempts": 1, "private": True}, "workers": 1}
    assert run(table, out, **how)["failed"] == {"connection": {"retryable": 2}}
    with ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert run(table, out, **how)["failed"] == {"connection": {"retryable": 2}}
        summary = run(None, out, retry="failed", **how)
        server.shutdown()
    assert (summary["ok"], summary["failed"]) == (1, {"http-404": {"permanent": 1}})
    assert temporaries(out) == []


def test_what_is_said_of_a_video_may_change_between_calls(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / f"in/{number}.mp4").write_bytes(GOOD[number])
    (tmp_path / "in/0.json").write_text('{"caption": "before", "licence": "CC0-1.0", "score": NaN}')
    how = {**MADE, "workers": 1, "score": False, "overrides": ["licences=[CC0-1.0]"]}
    rules = {"licences": ["CC0-1.0"]}
    assert prep(tmp_path / "out", tmp_path / "in", **how, **rules)["filtered"] == {"licence": 1}
    assert captions(tmp_path / "out") == ["before"]
    made = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out/.work/clips").rglob("*.mp4"))
    (tmp_path / "in/0.json").write_text('{"caption": "after", "licence": "none", "score": NaN}')
    (tmp_path / "in/1.json").write_text('{"caption": "other", "licence": "CC0-1.0"}')
    assert prep(tmp_path / "out", tmp_path / "in", **how, **rules)["filtered"] == {"licence": 1}
    assert captions(tmp_path / "out") == ["other"]
    caption = {"use": ["sidecar"]}
    assert prep(tmp_path / "out", **how, caption=caption)["ok"] == 2
    assert captions(tmp_path / "out") == ["after", "other"]
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out/.work/clips").rglob("*.mp4")) == made


def test_a_dataset_inside_its_footage_would_become_footage(tmp_path):
    (tmp_path / "0.mp4").write_bytes(GOOD[0])
    for out in (tmp_path, tmp_path / "out"):
        with pytest.raises(ValueError, match=r"out: found .* in the source .*, expected one outside"):
            prep(out, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0.mp4"]


def test_a_call_that_is_cut_short_is_remembered(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.mp4").write_bytes(GOOD[0])

    class Broken:
        def run(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prep(tmp_path / "out", tmp_path / "in", engine=Broken(), overrides=["licences=[CC0-1.0]"])
    assert json.loads((tmp_path / "out/.work/overrides.yaml").read_text()) == ["licences=[CC0-1.0]"]


def test_a_scene_of_two_inputs_outlives_the_takedown_of_one(tmp_path):
    shots = np.concatenate([panning(40, **SIZE, speed=1, seed=seed) for seed in (1, 2)])
    (tmp_path / "0.mp4").write_bytes(encode(shots, FPS))
    rows = [{"video": "0.mp4", "from": 0, "to": end, "name": name} for end, name in ((10, "a"), (9, "b"))]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = {"columns": {"video": "video", "start": "from", "end": "to", "name": "name"}}
    cut = {"by": "scenes", "minimum": 1.0}
    how = {"kind": "table", "reader": reader, **MADE, "workers": 1, "score": False, "cut": cut}
    first = prep(tmp_path / "out", tmp_path / "list.jsonl", **how)
    assert first["clips"]["filtered"]["duplicate"] >= 1, "the two have a scene in common"
    (tmp_path / "gone.txt").write_text("a\n")
    for _ in range(2):
        summary = prep(tmp_path / "out", takedown=tmp_path / "gone.txt", **MADE, cut=cut, score=False)
        assert (summary["ok"], summary["filtered"]) == (1, {"takedown": 1})
    assert Manifest.load(tmp_path / "out").column("width").tolist() == [48] * summary["clips"]["kept"]


def test_the_scenes_of_a_folder_of_footage_become_clips_of_their_own(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shots = np.concatenate([panning(40, **SIZE, speed=1, seed=seed) for seed in (1, 2)])
    (folder / "two.mp4").write_bytes(encode(shots, FPS))
    (folder / "two.txt").write_text("two shots")
    (folder / "short.mp4").write_bytes(encode(moving_square(4), FPS))
    (folder / "cut.mp4").write_bytes((footage := encode(shots, FPS))[: len(footage) * 3 // 4])
    cut = {"by": "scenes", "minimum": 1.0, "maximum": 10.0}
    summary = prep(tmp_path / "out", folder, cut=cut, workers=1, **MADE)
    assert (summary["inputs"], summary["ok"], summary["filtered"]) == (3, 1, {"no scene": 1})
    assert summary["failed"] == {"truncated": {"permanent": 1}}
    assert (summary["clips"]["made"], summary["clips"]["kept"]) == (2, 2)
    manifest = Manifest.load(tmp_path / "out")
    spans = [read_notes(read_sample(tmp_path / "out", manifest.row(n)))["span"] for n in range(2)]
    assert spans == [[0.0, 5.0], [5.0, 10.0]]


MISTAKES = {
    "nothing": ({"source": None}, "source: found none"),
    "columns": ({"reader": {}}, r"^reader.columns: found none, expected .*reader.columns=\{video: path"),
    "missing": ({"source": "nowhere"}, "nowhere"),
    "reader": ({"kind": "folder"}, "reader.columns: found .*, expected none for format=folder, which takes licence"),
    "retry": ({"retry": "ok"}, "retry=ok"),
    "filter": ({"filter": {"motion": {"mim": 1}}}, "filter.motion: found 'mim'"),
    "takedown": ({"takedown": "nowhere.txt"}, "takedown: nowhere.txt cannot be read"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(mistake, tmp_path):
    how, message = MISTAKES[mistake]
    source = tmp_path / "list.jsonl"
    source.write_text("")
    settings = {"source": source, "kind": "table", "reader": READER, **how}
    if mistake == "reader":
        settings["source"] = tmp_path
    with pytest.raises((ValueError, OSError), match=message):
        prep(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_clips_made_in_two_ways_do_not_meet(copied, prepared):
    with pytest.raises(ValueError, match=r"encode\.short_side: found 48, expected 32 as in"):
        run(prepared[0] / "in/list.jsonl", copied, encode={"short_side": 48})


def test_a_score_that_was_not_computed_is_named(copied):
    with pytest.raises(ValueError, match=r"filter\.beauty: found no such score"):
        run(None, copied, filter={"beauty": {"min": 5}})


def test_a_request_survives_the_plan():
    span = (Fraction(1, 3), Fraction(7, 2))
    request = ClipRequest(Place("a", 1, 2), "a.tar", span, (Caption("x", "y", 0.5),), "CC0", "p", "n", None, {"k": [1]})
    archived = replace(request, span=None, part=Part("b.mp4", 512, 9))
    assert [from_json(to_json(each)) for each in (request, archived)] == [request, archived]
    assert from_json(to_json(request)).id == request.id


def test_a_work_folder_of_an_earlier_version_goes_on_with_the_same_shards(copied, prepared):
    """It had no index of clips, and records without a version."""
    with sqlite3.connect(copied / ".work/plan.sqlite") as base:
        base.execute("DROP TABLE clips")
    for path in copied.glob(".work/clips/*/*.json"):
        record = json.loads(path.read_text())
        del record["version"]
        path.write_text(json.dumps(record))
    run(prepared[0] / "in/list.jsonl", copied)
    assert dataset(copied) == dataset(prepared[0] / "out")


def test_a_phase_of_a_stranger_is_one_function_in_the_list(copied, monkeypatch):
    def longest(preparation):
        preparation.summary.more["longest"] = max(clip.scores["duration"] for clip in preparation.candidates())

    monkeypatch.setattr(pipeline, "PHASES", (*pipeline.PHASES, longest))
    assert run(None, copied)["longest"] == 3.0
    assert json.loads((copied / "summary.json").read_text())["longest"] == 3.0
