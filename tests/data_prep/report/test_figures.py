"""Figures: what the report of a preparation is drawn from, in memory that does not grow with the dataset."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.books.work_folder import clip_file
from data_prep.report import figures as module
from data_prep.report.figures import choose, figures, histograms, rows_at, view
from tests.material.preparing import prep
from tests.material.scored_clips import panning, still
from videodiff.data.storage.address import without_secrets
from videodiff.data.video.encode import encode

LIMITS = {"duration": {"min": 1.0}, "motion": {"min": 0.005}}


def write(path: Path, rows: int, group: int = 1000, seed: int = 0) -> pa.Table:
    """Write a table of scores and return it."""
    rng = np.random.default_rng(seed)
    motion = rng.lognormal(-3, 1.5, rows)
    motion[rng.random(rows) < 0.05] = np.nan
    table = pa.table(
        {
            "id": [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(rows)],
            "reason": rng.choice(["", "motion below 0.005", "duplicate"], rows, p=[0.6, 0.3, 0.1]),
            "score_motion": motion,
            "score_width": np.full(rows, 96.0),
        }
    )
    pq.write_table(table, path, row_group_size=group)
    return table


def test_histograms_count_every_clip_once_whatever_the_batches(tmp_path, monkeypatch):
    table = write(tmp_path / "scores.parquet", 5000)
    found = {}
    for batch in (65_536, 7, 999):
        monkeypatch.setattr(module, "BATCH", batch)
        with pq.ParquetFile(tmp_path / "scores.parquet", pre_buffer=False) as scores:
            found[batch] = histograms(scores, LIMITS)
    motion, width = found[7]
    for other in (found[999], found[65_536]):
        assert all(np.array_equal(getattr(other[0], part), getattr(motion, part)) for part in ("kept", "left", "edges"))
    values, kept = table["score_motion"].to_numpy(), table["reason"].to_numpy() == ""
    assert (motion.limits, motion.log, width.limits) == ({"min": 0.005}, True, {})
    assert motion.missing == np.isnan(values).sum() > 0
    assert motion.kept.sum() == (kept & ~np.isnan(values)).sum()
    expected, _ = np.histogram(values[kept & ~np.isnan(values)].clip(motion.low, motion.high), motion.edges)
    assert np.abs(motion.kept - expected).max() <= 1
    assert motion.beyond == (values > motion.high).sum() > 0
    assert (width.least, width.most, width.kept.sum() + width.left.sum()) == (96, 96, 5000)


@given(
    st.lists(st.floats(-1e9, 1e9), max_size=30),
    st.lists(st.floats(-1e6, 1e6), max_size=2),
)
def test_a_range_is_one_and_shows_the_limits(values, limits):
    low, high, log = view(np.array(values, float), limits)
    assert low < high
    assert not log or low > 0
    assert all(low <= limit <= high for limit in limits if limit > high / 1e9 or not log)


def test_the_clips_that_are_shown_are_those_whose_ids_come_first(tmp_path, monkeypatch):
    table = write(tmp_path / "scores.parquet", 3000)
    monkeypatch.setattr(module, "BATCH", 100)
    with pq.ParquetFile(tmp_path / "scores.parquet", pre_buffer=False) as scores:
        chosen, counts = choose(scores)
        rows = {reason: [row["id"] for row in rows_at(scores, places)] for reason, places in chosen.items()}
    ids, reasons = table["id"].to_pylist(), table["reason"].to_pylist()
    for reason, most in (("", module.KEPT), ("duplicate", module.LEFT), ("motion below 0.005", module.LEFT)):
        expected = sorted(id for id, why in zip(ids, reasons, strict=True) if why == reason)
        assert rows[reason] == expected[:most]
        assert counts[reason] == len(expected)


def test_memory_does_not_grow_with_the_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1024)
    peaks = []
    for rows in (7_000, 70_000):
        write(tmp_path / "scores.parquet", rows, 100)
        pool = pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            with pq.ParquetFile(tmp_path / "scores.parquet", pre_buffer=False) as scores:
                histograms(scores, LIMITS), choose(scores)
            peaks.append(pool.max_memory())
        finally:
            pa.set_memory_pool(pa.system_memory_pool())
    assert peaks[1] < 1.5 * peaks[0]


HOSTS = ["http://user:pass@127.0.0.1:9/a.mp4?X-Amz-Signature=abc&v=1", "http://127.0.0.1:9/b.mp4", "gone.mp4"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Return a dataset of which some inputs fail, some are left out and two are kept."""
    root = tmp_path_factory.mktemp("figures")
    size = {"height": 64, "width": 96}
    videos = {f"good{n}.mp4": panning(16, **size, speed=2, seed=n) for n in range(3)} | {"still.mp4": still(16, **size)}
    for name, frames in videos.items():
        (root / name).write_bytes(encode(frames, 8.0))
    lines = [{"video": name, "text": f"<b>{name}</b>"} for name in [*videos, *HOSTS]] + [{"video": "../x"}]
    (root / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prep(
        root / "out",
        root / "list.jsonl",
        "table",
        reader={"columns": {"video": "video", "caption": "text"}},
        acquire={"private": ["127.0.0.0/8"], "rate": 1000.0, "attempts": 1},
        encode={"short_side": 32},
        filter=LIMITS,
        workers=1,
    )
    return root / "out"


def test_failures_are_told_by_class_and_host_without_secrets(prepared):
    found = figures(prepared, LIMITS)
    failed = {(failure.reason, failure.host): failure for failure in found.failures}
    assert {key: failure.count for key, failure in failed.items()} == {
        ("connection", "127.0.0.1"): 2,
        ("missing", "local files"): 1,
        ("bad-path", "the metadata"): 1,
    }
    assert failed["connection", "127.0.0.1"].retryable
    assert failed["bad-path", "the metadata"].place == "list.jsonl:8"
    assert [(ended, lost) for _, ended, lost in found.machines] == [(8, 4)]
    assert not any("pass@" in failure.detail or "abc" in failure.detail for failure in failed.values())


def test_every_operation_of_the_work_is_timed_once(prepared):
    operations, summary = figures(prepared, LIMITS).operations, json.loads((prepared / "summary.json").read_bytes())
    assert operations.keys() == {"fetch", "decode", "score", "encode", "write", "pack"}
    assert all(spent.seconds > 0 for spent in operations.values())
    assert operations["fetch"].items == operations["encode"].items == summary["clips"]["made"] == 4
    assert operations["encode"].bytes == sum(path.stat().st_size for path in prepared.glob(".work/clips/*/*.mp4"))
    assert (
        operations["pack"].bytes == summary["shards"]["bytes"] == sum(p.stat().st_size for p in prepared.glob("*.tar"))
    )


def test_the_wall_shows_kept_clips_first_and_never_what_was_taken_down(prepared, tmp_path):
    wall = figures(prepared, LIMITS).wall
    assert [(reason, len(clips)) for reason, clips in wall.items()] == [("", 3), ("motion below 0.005", 1)]
    assert {clip.caption for clip in wall[""]} == {f"<b>good{n}.mp4</b>" for n in range(3)}
    assert wall["motion below 0.005"][0].scores["motion"] < 0.005
    (tmp_path / "gone.txt").write_text("good1.mp4\nstill.mp4\n")
    prep(prepared, takedown=tmp_path / "gone.txt", filter=LIMITS, encode={"short_side": 32})
    for row in pq.read_table(prepared / "scores.parquet").to_pylist():
        # As if the machine had lost power before the clip was deleted.
        clip_file(prepared / ".work", row["id"], "mp4").touch()
    wall = figures(prepared, LIMITS).wall
    assert {clip.source for clips in wall.values() for clip in clips} == {"good0.mp4", "good2.mp4"}


def test_a_url_keeps_what_tells_it_apart_and_loses_what_opens_it():
    url = "https://me:word@host.org:8/a/b?v=QMi8x8o55Ns&X-Amz-Signature=dead&x-goog-credential=beef&token=1"
    kept = "https://host.org:8/a/b?v=QMi8x8o55Ns&X-Amz-Signature=...&x-goog-credential=...&token=..."
    assert without_secrets(f"404 at {url} today") == f"404 at {kept} today"
    assert without_secrets("found a/b?sig, expected c@d") == "found a/b?sig, expected c@d"
