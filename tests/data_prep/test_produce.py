"""Produce: which spans of a video are cut for a request, and what a request without any ends as."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.books.ledger import Outcome
from data_prep.books.request import ClipRequest, Part, Place
from data_prep.cut.policy import CutPolicy, MakePolicy
from data_prep.cut.spans import Span, Timeline, read_timeline
from data_prep.engine.local import Node
from data_prep.produce import Making, clip_id, ends, spans_of
from tests.material.made_clips import moving_square, write_video
from tests.material.numbered_clips import numbered, read_number
from tests.material.preparing import prep
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_sample
from videodiff.data.video.decode import decode
from videodiff.data.video.encode import encode

# Ten frames at two a second, with nothing between 2 s and 4 s but the frame that stays.
TIMES = np.array([0, 5, 10, 15, 20, 40, 45, 50, 55, 60], np.int64) * 100_000
VIDEO = Timeline(TIMES, 6_500_000, [(0, 0)], Fraction(2), Fraction(2), False)
ANY = CutPolicy("scenes", minimum=0.1, maximum=10.0)


def spans(
    span: tuple[float, float] | None,
    scenes: list[tuple[float, float]] | None = None,
    cut: CutPolicy = ANY,
    end: str = "",
) -> list[tuple[float, float]] | tuple[str, str]:
    """Return the spans to cut, or status and reason of the outcome; end: what is missing at the end of the file."""
    request = ClipRequest(Place("list.csv", 1), "a.mp4", span and tuple(map(Fraction, span)))
    missing: Callable[[], str] = lambda: end  # noqa: E731
    found = spans_of(request, missing, VIDEO, scenes and [Span(*scene) for scene in scenes], cut)
    return (found.status, found.reason) if isinstance(found, Outcome) else list(map(tuple, found))


def test_without_scenes_a_request_is_one_span() -> None:
    assert spans(None) == [(0.0, 6.5)]
    assert spans((1.0, 2.5)) == [(1.0, 2.5)]
    assert spans((1.0, 6.55)) == [(1.0, 6.55)], "annotations round"
    for wrong in ((1.0, 7.0), (2.0, 1.0), (-1.0, 2.0)):
        assert spans(wrong) == ("failed", "bad-span")


@pytest.mark.parametrize("kind", ["begins inside a group", "sound begins earlier"])
def test_a_whole_video_begins_with_its_first_frame(tmp_path: Path, kind: str) -> None:
    file, path = tmp_path / "whole.ts", tmp_path / "in" / "a.ts"
    path.parent.mkdir()
    file.write_bytes(write_video(numbered(40), container="mpegts", g="8", bf="0", sc_threshold="0", crf="10"))
    if kind == "begins inside a group":
        with av.open(str(file)) as container:
            places = [packet.pos for packet in container.demux(video=0) if packet.size]
        path.write_bytes(file.read_bytes()[places[3] :])
    else:
        sound = ["-f", "lavfi", "-i", "sine=d=3", "-itsoffset", "1", "-i", file, "-c:v", "copy", "-c:a", "mp2"]
        subprocess.run(["ffmpeg", "-v", "error", *sound, path], check=True)
    assert read_timeline(path).times[0] > 100_000
    summary = prep(tmp_path / "out", path.parent, workers=1, score=False, encode={"short_side": 32, "crf": 10})
    assert summary["ok"] == 1
    row = (manifest := Manifest.load(tmp_path / "out")).row(0)
    video = read_sample(tmp_path / "out", row)["mp4"]
    seen = [read_number(frame) for frame in decode(video, range(row["frames"]))]
    first = 8 if kind == "begins inside a group" else 0
    assert (len(manifest), seen) == (1, list(range(first, 40)))


def test_only_a_span_that_reaches_the_end_of_a_truncated_file_is_truncated() -> None:
    for span in (None, (1.0, 6.5), (1.0, 9.0)):
        assert spans(span, end="half") == ("failed", "truncated")
    assert spans((1.0, 6.4), end="half") == [(1.0, 6.4)]
    assert spans((2.0, 1.0), end="half") == ("failed", "bad-span"), "whatever the file lacks"


def test_scenes_are_cut_within_the_span_and_only_where_there_are_frames() -> None:
    shots = [(0.0, 1.6), (1.6, 4.0), (4.0, 6.5)]
    assert spans(None, shots) == shots
    assert spans((1.0, 4.5), shots) == [(1.0, 1.6), (1.6, 4.0), (4.0, 4.5)]
    # No frame comes to be shown in the last quarter of a second.
    assert spans((1.0, 6.5), [(1.0, 2.0), (6.25, 6.5)]) == [(1.0, 2.0)]
    assert spans((1.0, 2.0), [(2.0, 6.5)]) == ("filtered", "no scene")
    assert spans((0.0, 4.4), shots, replace(ANY, minimum=1.0)) == [(0.0, 1.6), (1.6, 4.0)]
    assert spans((0.0, 1.6), shots, replace(ANY, maximum=1.0)) == [(0.0, 0.8), (0.8, 1.6)]
    assert spans((0.0, 0.4), shots, replace(ANY, minimum=1.0)) == ("filtered", "no scene")


@pytest.mark.parametrize("by", ["spans", "scenes"])
def test_a_clip_has_the_id_of_its_request_and_a_scene_one_of_its_own(by: str) -> None:
    request = ClipRequest(Place("list.csv", 1), "a.mp4", (Fraction(0), Fraction(4)))
    making = Making(Path(), "", MakePolicy(CutPolicy(by)))
    found = clip_id(request, Span(0.1, 1 / 3), making)
    scene = replace(request, span=(Fraction(1, 10), Fraction(333_333, 10**6)))
    assert found == (request if by == "spans" else scene).id


@pytest.mark.parametrize(("video", "ended"), [(encode(moving_square(), 5.0), "ok"), (b"no video" * 99, "undecodable")])
def test_what_was_brought_here_is_removed_however_its_clips_end(tmp_path: Path, video: bytes, ended: str) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(512) + video)
    request = ClipRequest(Place("a.tar"), "a.tar", part=Part("x.mp4", 512, len(video)))
    making = Making(tmp_path / "work", str(tmp_path), MakePolicy(crop=False, score=False))
    (outcome,) = ends([request], Node(tmp_path / "work"), making)
    assert (outcome.reason or outcome.status) == ended
    assert [path.name for path in (tmp_path / "work" / "videos").iterdir()] == ["hosts"]
    stat = (tmp_path / "a.tar").stat()
    assert outcome.stamp == ((stat.st_size, stat.st_mtime_ns) if ended == "ok" else None)
