"""Parts of a longer film as streaming servers hand them out: a length in their header may begin elsewhere."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from data_prep.cut.footage import FitPolicy, fit_video
from data_prep.produce import missing_end
from tests.material.made_clips import moving_square
from tests.material.preparing import prep
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
