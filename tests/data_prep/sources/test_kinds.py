"""Every kind of source goes the whole way: metadata as published, real videos from a real server or disk, shards."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.material.numbered_clips import make, read_number
from tests.material.preparing import prep
from tests.material.servers.loopback import Site, site
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_captions, read_notes, read_sample
from videodiff.data.video.decode import decode

# Two videos; of the first, frames 10 to 29 and 30 to 49 are wanted.
VIDEOS = {"abcdefghijk": make("open groups", 1)[0], "-x_y-z-9876": make("b-frames", 2)[0]}
FIRST, SECOND = VIDEOS
CLOCK = [["0:00:00.400", "0:00:01.200"], ["0:00:01.200", "0:00:02.000"]]
PARTS, WHOLE = [list(range(10, 30)), list(range(30, 50))], list(range(60))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("kinds")) as here:
        for name, video in VIDEOS.items():
            (here.files / f"{name}.mp4").write_bytes(video)
        yield here


def to_csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def to_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def hdvila(folder: Path, web: Site) -> tuple[Path, dict]:
    clips = [
        {"clip_id": f"{FIRST}.{n}.mp4", "span": [f"0{time}" for time in span]}
        for n, span in zip((3, 16), CLOCK, strict=True)
    ]
    rows = [{"video_id": FIRST, "url": f"{web.url}/{FIRST}.mp4", "clip": clips}]
    (folder / "texts.jsonl").write_text(to_lines([{"clip_id": f"{FIRST}.16.mp4", "text": "two"}]))
    (folder / "meta_part0.jsonl").write_text(to_lines(rows))
    return folder / "meta_part0.jsonl", {"reader": {"captions": folder / "texts.jsonl"}}


def panda(folder: Path, web: Site) -> tuple[Path, dict]:
    row = {"videoID": FIRST, "url": f"{web.url}/{FIRST}.mp4", "timestamp": CLOCK}
    row |= {"caption": ["one", "two"], "matching_score": [0.5, 0.4]}
    evil = row | {"timestamp": "[['0:00:00.000', __import__('os').system('touch evil')]]"}
    (folder / "panda.csv").write_text(to_csv([row, evil]))
    return folder / "panda.csv", {}


def webvid(folder: Path, web: Site) -> tuple[Path, dict]:
    rows = [
        {"videoid": n, "name": "two", "page_dir": "1", "duration": "PT00H00M02S", "contentUrl": f"{web.url}/{n}.mp4"}
        for n in VIDEOS
    ]
    (folder / "webvid.csv").write_text(to_csv(rows))
    return folder / "webvid.csv", {}


def openvid(folder: Path, web: Site) -> tuple[Path, dict]:
    scores = dict.fromkeys(("aesthetic score", "motion score", "temporal consistency score"), 1)
    rows = []
    for name, video in VIDEOS.items():
        (folder / f"{name}_3_0to60.mp4").write_bytes(video)
        known = {"camera motion": "static", "frame": 60, "fps": 25.0, "seconds": 2.4}
        rows.append({"video": f"{name}_3_0to60.mp4", "caption": "two", **scores, **known})
    (folder / "OpenVid-1M.csv").write_text(to_csv(rows))
    return folder / "OpenVid-1M.csv", {}


def internvid(folder: Path, web: Site) -> tuple[Path, dict]:
    rows = [
        {"YoutubeID": FIRST, "Start_timestamp": f"0{start}", "End_timestamp": f"0{end}", "Caption": "two"}
        for start, end in CLOCK
    ]
    (folder / "InternVid.jsonl").write_text(to_lines(rows))
    # Its videos are at YouTube only; these were downloaded before.
    return folder / "InternVid.jsonl", {"acquire": {"local": f"{web.files}/{{id}}.mp4"}}


def koala(folder: Path, web: Site) -> tuple[Path, dict]:
    rows = [
        {"videoID": f"{FIRST}_{n}", "url": f"{web.url}/{FIRST}.mp4", "timestamp": span, "caption": "two", "Motion": 2.5}
        for n, span in enumerate(CLOCK)
    ]
    (folder / "koala.csv").write_text(to_csv(rows))
    return folder / "koala.csv", {}


COLUMNS = {"video": "url", "start": "a", "end": "b", "caption": "words"}
ROWS = [(0.4, 1.2), (1.2, 2.0)]


def table(suffix: str, unit: str = "") -> Callable[[Path, Site], tuple[Path, dict]]:
    def write(folder: Path, web: Site) -> tuple[Path, dict]:
        scale = {"": 1, "microseconds": 10**6, "frames": 25}[unit]
        rows = [
            {"url": f"{web.url}/{FIRST}.mp4", "a": round(a * scale, 3), "b": round(b * scale, 3), "words": "two"}
            for a, b in ROWS
        ]
        rows = [row | {"rate": 25} for row in rows] if unit == "frames" else rows
        path = folder / f"table{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text(to_csv(rows) if suffix == ".csv" else to_lines(rows))
        columns = COLUMNS | ({"fps": "rate"} if unit == "frames" else {})
        return path, {"reader": {"columns": columns, "unit": unit}}

    return write


def folder(folder: Path, web: Site) -> tuple[Path, dict]:
    (folder / "deep").mkdir()
    for name, video in VIDEOS.items():
        (folder / "deep" / f"{name}.mp4").write_bytes(video)
        (folder / "deep" / f"{name}.txt").write_text("two")
    return folder, {}


def webdataset(folder: Path, web: Site) -> tuple[Path, dict]:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, video in VIDEOS.items():
            for ending, data in (("mp4", video), ("txt", b"two"), ("json", b'{"licence": "CC0-1.0"}')):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder / "00000.tar", {}


# How each is written, and whether it asks for two parts of one video or for two videos.
KINDS = {
    "hdvila": (hdvila, PARTS),
    "panda": (panda, PARTS),
    "webvid": (webvid, [WHOLE, WHOLE]),
    "openvid": (openvid, [WHOLE, WHOLE]),
    "internvid": (internvid, PARTS),
    "koala": (koala, PARTS),
    "table csv": (table(".csv"), PARTS),
    "table jsonl": (table(".jsonl", "microseconds"), PARTS),
    "table parquet": (table(".parquet", "frames"), PARTS),
    "folder": (folder, [WHOLE, WHOLE]),
    "webdataset": (webdataset, [WHOLE, WHOLE]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_source_becomes_shards(kind, web, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "in").mkdir()
    write, wanted = KINDS[kind]
    source, how = write(tmp_path / "in", web)
    how["acquire"] = {"private": True, "rate": 1000.0, "attempts": 1, **how.get("acquire", {})}
    how |= {"score": False, "encode": {"short_side": 32}, "workers": 1}
    summary = prep(tmp_path / "out", source, kind.partition(" ")[0], **how)
    evil = kind == "panda"
    assert (summary["inputs"], summary["ok"], summary["open"]) == (2 + evil, 2, 0)
    assert summary["failed"] == ({"bad-cell": {"permanent": 1}} if evil else {})
    assert not list(tmp_path.rglob("evil"))
    manifest = Manifest.load(tmp_path / "out")
    samples = [(row, read_sample(tmp_path / "out", row)) for row in map(manifest.row, range(len(manifest)))]
    shown = [[read_number(i) for i in decode(s["mp4"], range(row["frames"]))] for row, s in samples]
    assert shown == wanted
    assert read_captions(samples[1][1]) == ["two"]
    if kind == "internvid":
        # The id is that of the address, wherever the video came from.
        assert read_notes(samples[0][1])["source"] == f"https://www.youtube.com/watch?v={FIRST}"
