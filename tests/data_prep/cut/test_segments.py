"""Parts of a longer film as streaming servers hand them out: a length in their header may begin elsewhere."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from data_prep import produce
from data_prep.books.request import ClipRequest, Place
from data_prep.cut.footage import Fit, FitPolicy, fit_video
from data_prep.cut.policy import MakePolicy
from data_prep.cut.spans import read_timeline
from data_prep.fetch.acquire import Acquired
from data_prep.produce import Making, missing_end
from data_prep.score.duplicate import exact_hash
from tests.material.made_clips import moving_square
from tests.material.preparing import prep
from videodiff.data.video import boxes
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode
from videodiff.data.video.info import DecodeError

FPS, PART = 24, 24
# How a film of three seconds is cut into parts of one: format, options, what a player reads before a part, the parts.
SERVERS = {
    "dash": (
        "dash",
        {"seg_duration": "1", "use_template": "1", "use_timeline": "1"},
        "init-stream0.m4s",
        "chunk-*.m4s",
    ),
    "hls": ("hls", {"hls_time": "1", "hls_list_size": "0"}, None, "film*.ts"),
    "hls in fragments": (
        "hls",
        {"hls_time": "1", "hls_list_size": "0", "hls_segment_type": "fmp4"},
        "init.mp4",
        "*.m4s",
    ),
    "matroska": ("segment", {"segment_time": "1", "segment_format": "matroska"}, None, "film*.mkv"),
    "mp4": ("segment", {"segment_time": "1", "segment_format": "mp4"}, None, "film*.mp4"),
}


def parts(folder: Path, server: str) -> list[bytes]:
    """Return the parts of a film, each as a player gets it."""
    form, options, head, names = SERVERS[server]
    folder.mkdir()
    pattern = {
        "dash": "film.mpd",
        "hls": "film.m3u8",
        "segment": f"film%03d.{'mkv' if server == 'matroska' else 'mp4'}",
    }
    with av.open(str(folder / pattern[form]), "w", format=form, options=options) as out:
        stream = out.add_stream("libx264", rate=FPS, options={"g": str(PART), "sc_threshold": "0", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for number, image in enumerate(moving_square(3 * PART)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    first = (folder / head).read_bytes() if head else b""
    return [first + path.read_bytes() for path in sorted(folder.glob(names)) if path.name != head]


@pytest.mark.parametrize("server", SERVERS)
def test_a_part_of_a_film_is_whole_and_one_cut_short_is_not(server, tmp_path):
    found, source = parts(tmp_path / "film", server), tmp_path / "source"
    assert len(found) == 3
    source.mkdir()
    for number, part in enumerate(found):
        (source / f"part{number}.mp4").write_bytes(part)
        assert missing_end(source / f"part{number}.mp4") == ""
        _, info, _ = fit_video(part, FitPolicy(720, 18))[:3]
        assert (info.frames, info.fps) == (PART, FPS)
    # What misses its end is the one that the two next ones may not cost anything.
    (source / "part1.mp4").write_bytes(found[1][: len(found[1]) * 3 // 5])
    summary = prep(tmp_path / "out", source, workers=1, score=False, crop=False)
    ended = {**summary["failed"], "ok": summary["ok"]}
    # A transport stream and Matroska have no length: they end where they end.
    assert ended["ok"] == (3 if server in ("hls", "matroska") else 2)
    if server not in ("hls", "matroska"):
        assert sum(sum(kind.values()) for kind in summary["failed"].values()) == 1


def test_a_fragmented_file_that_ends_within_a_part_says_so(tmp_path):
    first, second, _ = parts(tmp_path / "film", "dash")
    path = tmp_path / "cut.mp4"
    path.write_bytes(first + second[second.index(b"moof") - 4 : -200])
    assert "bytes, expected" in missing_end(path)
    path.write_bytes(first)
    assert missing_end(path) == ""
    with pytest.raises(DecodeError):
        fit_video(b"nothing", FitPolicy(720, 18))


def late(path: Path, frames: int, codec: str, rate: int = 8, **options: str) -> None:
    """Write a film of 16 frames whose first one comes after so many frames."""
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.codec_context.max_b_frames = 64, 64, 0
        for number, image in enumerate(moving_square(16, 64, 64), frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.mark.parametrize("frames", [0, 4])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.wmv", "msmpeg4v2"), ("a.avi", "mpeg4")]
)
def test_a_file_that_begins_late_is_whole_whatever_its_header_counts_from(tmp_path, name, codec, frames):
    late(tmp_path / name, frames, codec)
    assert missing_end(tmp_path / name) == ""


@pytest.mark.parametrize("frames", [0, 4])
def test_a_file_that_lacks_its_last_frame_says_so_also_where_it_begins_late(tmp_path, frames):
    late(path := tmp_path / "film.mp4", frames, "libx264", rate=16, movflags="+faststart")
    with av.open(str(path)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][-1].size
    path.write_bytes(path.read_bytes()[:-last])
    assert missing_end(path) == "found 0.9375 s of video, expected 1 s as in its header"


# A box of nothing, one whose length is written as 64 bits, and one that says that it is shorter than its own head.
BOXES = [b"\0\0\0\x08free", b"\0\0\0\x01free" + (16).to_bytes(8, "big"), b"\0\0\0\x02free"]


def fit_file(path: Path) -> Fit:
    return fit_video(path.read_bytes(), FitPolicy())


@pytest.mark.parametrize("box", BOXES)
def test_a_file_of_countless_boxes_is_given_up(box, tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "MOST_BOXES", 1000)
    path, video = tmp_path / "boxes.mp4", encode(moving_square(), 5.0)
    path.write_bytes(video + box * 900)
    assert missing_end(path) == ""
    assert (probe(path.read_bytes()).frames, len(read_timeline(path).times)) == (8, 8)
    # Boxes in front cost as much as those behind.
    for data in (video + box * 1000, box * 1000 + video):
        path.write_bytes(data)
        for read in (
            read_timeline,
            lambda path: probe(path.read_bytes()),
            lambda path: fit_video(path.read_bytes(), FitPolicy()),
        ):
            with pytest.raises(DecodeError, match="found over 1,000 outermost boxes in the MP4 file, expected fewer"):
                read(path)


def test_a_file_of_countless_boxes_costs_itself(tmp_path):
    source, video = tmp_path / "source", encode(moving_square(), 5.0)
    source.mkdir()
    (source / "boxes.mp4").write_bytes(video + BOXES[0] * boxes.MOST_BOXES)
    (source / "good.mp4").write_bytes(video)
    summary = prep(tmp_path / "out", source, workers=1, score=False, crop=False)
    assert (summary["ok"], summary["failed"]) == (1, {"undecodable": {"permanent": 1}})


def test_a_file_is_looked_through_once_for_all_its_clips(tmp_path, monkeypatch):
    path, looked = tmp_path / "source.mp4", []
    path.write_bytes(encode(moving_square(), 5.0))
    spans = [(Fraction(start, 5), Fraction(8, 5)) for start in range(5)]
    requests = [ClipRequest(Place("list", number), path.name, span) for number, span in enumerate(spans)]
    monkeypatch.setattr(produce, "missing_end", lambda path: looked.append(path) or "")
    (tmp_path / "work").mkdir()
    making = Making(tmp_path / "work", "", MakePolicy(score=False, crop=False))
    ended = list(produce.cut_all(requests, Acquired(path, exact_hash(path.read_bytes()), False), making))
    assert ([outcome.status for outcome in ended], looked) == (["ok"] * 5, [path])
