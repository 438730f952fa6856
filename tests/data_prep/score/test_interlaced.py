"""Footage woven of fields: found by its combs, whatever it says of itself, and made whole on demand."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from data_prep.cut.clips import ReadyClip, make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.footage import Fit, FitPolicy, fit_video
from data_prep.cut.spans import Span
from data_prep.score.interlaced import COMBED
from tests.material.made_clips import write_video
from tests.material.scored_clips import panning
from videodiff.data.video.decode import decode

SIZE = {"height": 192, "width": 320}


@cache
def moments(speed: float = 3.0) -> np.ndarray:
    """Return what a camera sees in two seconds, 50 times a second: a field is taken at each."""
    return panning(100, speed=speed, **SIZE)


def woven(video: np.ndarray, top_first: bool = True) -> np.ndarray:
    """Return frames of two fields each, taken one after the other."""
    frames = video[0::2].copy()
    frames[:, int(top_first) :: 2] = video[1::2, int(top_first) :: 2]
    return frames


def telecined(video: np.ndarray) -> np.ndarray:
    """Return five frames for each four, of which two are woven of two pictures (2:3 pulldown)."""
    frames = []
    for a, b, c, d in video[: len(video) // 4 * 4].reshape(-1, 4, *video.shape[1:]):
        frames += [a, b, weave(b, c), weave(c, d), d]
    return np.stack(frames)


def weave(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    frame = top.copy()
    frame[1::2] = bottom[1::2]
    return frame


def striped() -> np.ndarray:
    """Return a pan over blinds: lines as fine as the frame can show them, which are no combs."""
    video = moments()[::2].copy()
    video[:, 40:80] = np.where(np.arange(40) % 4 < 2, 60, 180).astype(np.uint8)[None, :, None, None]
    return video


def grainy(video: np.ndarray) -> np.ndarray:
    grain = np.random.default_rng(0).normal(0, 12, (*video.shape[:3], 1))
    return (video + grain).clip(0, 255).astype(np.uint8)


def clip_of(path: Path, frames: int, deinterlace: str) -> ReadyClip:
    ((_, clip),) = make_clips(path, [Span(0, frames / 25)], EncodePolicy(deinterlace=deinterlace))
    assert isinstance(clip, ReadyClip), clip
    return clip


@pytest.fixture
def made(tmp_path):
    def make(video: np.ndarray, deinterlace: str = "off", codec: str = "libx264", **how) -> ReadyClip:
        path = Path(tmp_path, "source.mkv")
        path.write_bytes(write_video(video, codec, container="matroska", **how))
        return clip_of(path, len(video), deinterlace)

    return make


FLAGGED = {"x264-params": "tff=1", "flags": "+ildct+ilme"}
INTERLACED = {
    "upper field first": lambda: (woven(moments()), {}),
    "lower field first": lambda: (woven(moments(), False), {}),
    "and says so": lambda: (woven(moments()), FLAGGED),
    "MPEG-2": lambda: (woven(moments()), {"codec": "mpeg2video", "flags": "+ildct+ilme", "b": "4M"}),
    "ten bits": lambda: (woven(moments()), {"pixels": "yuv420p10le"}),
    "telecined film": lambda: (telecined(moments()[::2]), {}),
    "slow": lambda: (woven(moments(2.0)), {}),
}
WHOLE = {
    "a pan": lambda: (moments()[::2], {}),
    "a fast pan": lambda: (moments()[::4], {}),
    "blinds": lambda: (striped(), {}),
    "that says it is interlaced": lambda: (moments()[::2], FLAGGED),
    "grain": lambda: (
        (moments()[::2].astype(int) + np.random.default_rng(0).normal(0, 12, (50, 192, 320, 1)))
        .clip(0, 255)
        .astype("u1"),
        {"crf": "12"},
    ),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_combs_are_found(made, name):
    video, how = INTERLACED[name]()
    assert made(video, **how).scores["interlaced"] > 2 * COMBED


@pytest.mark.parametrize("name", WHOLE)
def test_where_there_are_no_combs_none_are_found(made, name):
    video, how = WHOLE[name]()
    clip = made(video, "auto", **how)
    assert clip.scores["interlaced"] < COMBED / 2
    assert not clip.deinterlaced


def error(clip: ReadyClip, expected: np.ndarray) -> float:
    """Return the mean difference of the luma from what a camera saw, in levels, without the edges of the frame."""
    found = decode(clip.video, range(clip.info.frames))
    found, expected = (video[:, 8:-8, 16:-16].mean(axis=-1) for video in (found, expected))
    return float(np.abs(found - expected).mean())


@pytest.mark.parametrize("top_first", [True, False])
def test_each_frame_becomes_the_picture_of_its_first_field(made, top_first):
    video, seen = woven(moments(), top_first), moments()[0::2]
    clip, before = made(video, "auto"), made(video)
    assert clip.deinterlaced
    assert clip.scores["interlaced"] == 0
    assert not before.deinterlaced
    assert (clip.info.frames, clip.times) == (50, before.times)
    # A whole picture of half the rows is not exact; another moment would be three pixels away.
    assert error(clip, seen) < 0.85 * error(before, seen)
    assert error(clip, seen) < 0.6 * error(clip, moments()[1::2])
    assert made(decode(clip.video, range(50))).scores["interlaced"] < COMBED / 2


def test_footage_that_begins_still_is_made_again_once_it_moves(made):
    video = np.concatenate([np.repeat(moments()[:1], 60, axis=0), woven(moments())])
    clip = made(video, "auto")
    assert clip.deinterlaced
    assert clip.info.frames == 110


def test_footage_without_combs_has_the_same_bytes_and_all_can_be_asked_for(tmp_path):
    path = tmp_path / "source.mp4"
    path.write_bytes(write_video(moments()[::2]))
    off, auto, on = (clip_of(path, 50, way) for way in ("off", "auto", "on"))
    assert auto.video == off.video
    assert on.deinterlaced
    assert on.times == off.times


def by_bwdif(video: bytes) -> np.ndarray:
    """Return the luma that ffmpeg's own bwdif makes of every frame, upper field first: uint8 `t h w`."""
    with av.open(BytesIO(video)) as container:
        frames = list(container.decode(video=0))
    graph, first = Graph(), frames[0]
    source = f"video_size={first.width}x{first.height}:pix_fmt={first.format.name}:time_base=1/1000"
    ways = [("buffer", source), ("bwdif", "mode=send_frame:parity=tff:deint=all"), ("buffersink", None)]
    graph.link_nodes(*(graph.add(*way) for way in ways)).configure()
    for frame in frames:
        graph.vpush(frame)
    graph.vpush(None)
    return np.stack([graph.vpull().to_ndarray()[: first.height] for _ in frames])


def luma_of(video: bytes) -> np.ndarray:
    with av.open(BytesIO(video)) as container:
        return np.stack([frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)])


# When the frames are shown, in frames of 25 a second.
PAUSES = np.cumsum([1, 1, 1, 2, 1, 3, 1, 1, 1, 4] * 4) - 1


@pytest.mark.parametrize("fps", [None, 25.0, 10.0])
@pytest.mark.parametrize("way", ["auto", "on"])
def test_uneven_frames_are_whole_and_each_is_shown_when_it_was(tmp_path, fps, way):
    path = tmp_path / "uneven.mp4"
    path.write_bytes(write_video(woven(moments())[: len(PAUSES)], times=PAUSES.tolist(), crf="1", bf="0"))
    end, rate = float(PAUSES[-1] + 1) / 25, fps or 25.0
    policy = EncodePolicy(deinterlace=way, fps=fps, crf=1)
    ((_, clip),) = make_clips(path, [Span(0, end)], policy, crop=False)
    assert clip.deinterlaced
    assert clip.info.fps == rate
    # A frame counts from the tick nearest to its time on, the later one of two that are as near.
    ticks = np.floor(PAUSES / 25 * rate + 0.5 + 1e-6)
    shown = np.searchsorted(ticks, np.arange(round(end * rate)), side="right") - 1
    assert clip.times == (PAUSES[shown] * 40_000).tolist()
    expected, found = by_bwdif(path.read_bytes())[shown].astype(int), luma_of(clip.video)
    assert np.abs(found - expected).mean(axis=(1, 2)).max() < 0.07


def test_fewer_frames_a_second_are_filled_from_the_frames_beside_them(tmp_path):
    path = tmp_path / "woven.mp4"
    path.write_bytes(write_video(woven(moments()), crf="1"))
    ((_, clip),) = make_clips(path, [Span(0, 2)], EncodePolicy(deinterlace="auto", fps=5, crf=1), crop=False)
    # Of the five frames that are nearest to a tick the last is shown.
    expected = by_bwdif(path.read_bytes())[2::5].astype(int)
    assert np.abs(luma_of(clip.video) - expected).mean(axis=(1, 2)).max() < 0.07


PACKED = {
    "that could stay": ("libx264", "mp4", {"crf": "12"}),
    "of another codec": ("mpeg2video", "mpegts", {"flags": "+ildct+ilme", "b": "8M"}),
    "that comes unevenly": ("libx264", "mp4", {"crf": "12", "times": PAUSES.tolist()}),
}


@pytest.mark.parametrize("name", PACKED)
def test_pack_deinterlaces_as_prep_does(name):
    codec, container, how = PACKED[name]
    video = write_video(woven(moments())[: len(PAUSES)], codec, container=container, **how)
    assert not fit_video(video, FitPolicy()).deinterlaced
    auto, on = (fit_video(video, FitPolicy(deinterlace=way)) for way in ("auto", "on"))
    assert auto.deinterlaced
    assert auto.video == on.video
    whole = [number for number in range(auto.info.frames) if number % 10]
    rows = decode(auto.video, whole)[:, 8:-8, 16:-16].astype(int).mean(axis=-1)
    near, far = np.abs(np.diff(rows, axis=1)).mean(), np.abs(rows[:, 2:] - rows[:, :-2]).mean()
    assert near < far


def test_pack_leaves_whole_frames_as_they_are_unless_all_shall_be_made_anew():
    video = write_video(moments()[::2])
    assert fit_video(video, FitPolicy(deinterlace="auto")) == Fit(video, fit_video(video, FitPolicy()).info, "")
    assert fit_video(video, FitPolicy(deinterlace="on")).deinterlaced
    with pytest.raises(ValueError, match="found deinterlace=yes, expected one of auto, off, on"):
        FitPolicy(deinterlace="yes")


def test_an_unknown_way_is_an_error():
    with pytest.raises(ValueError, match=r"encode\.deinterlace: found 'yes', expected one of auto, off, on"):
        EncodePolicy(deinterlace="yes")
