"""Recordings that were joined into one file, as `cat a.ts b.ts` does: the times of the second begin anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.cut.footage import FitPolicy, fit_video
from data_prep.cut.spans import Shown, Span, cut, read_timeline
from data_prep.produce import keep_audio
from tests.material.made_clips import write_video
from tests.material.numbered_clips import numbered, read_number, remux
from videodiff.data.video.decode import decode, probe

# Frames of both recordings, of 25 a second, and of the first.
COUNT, FIRST = 60, 25


def joined(kind: str) -> bytes:
    """Return two recordings in one file, whose frames are numbered through."""
    options = {"g": "10", "bf": "2", "container": "mpegts"}
    if kind == "program stream":
        options |= {"codec": "mpeg2video", "container": "mpeg", "qmin": "1", "qmax": "2"}
    first, second = (write_video(part, **options) for part in (numbered(COUNT)[:FIRST], numbered(COUNT)[FIRST:]))

    def later(packet) -> None:
        shift = round(3600 / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift

    return first + (remux(second, later, "mpegts") if kind == "an hour later" else second)


@pytest.mark.parametrize("kind", ["transport stream", "program stream", "an hour later"])
def test_joined_recordings_come_one_after_the_other(kind, tmp_path):
    video, path = joined(kind), tmp_path / "recording.ts"
    path.write_bytes(video)
    timeline, fit = read_timeline(path), fit_video(video, FitPolicy())
    assert timeline.times.tolist() == [int(timeline.times[0]) + 40_000 * number for number in range(COUNT)]
    assert (timeline.joined, probe(video).frames, probe(video).fps) == (True, COUNT, 25)
    assert (fit.info.frames, fit.info.fps) == (COUNT, 25)
    for source in (video, fit.video):
        assert [read_number(frame) for frame in decode(source, range(COUNT))] == list(range(COUNT))
    start = int(timeline.times[0]) / 1e6
    spans = {Span(start + 0.8, start + 1.2): range(20, 30), Span(start + 1.6, start + 2): range(40, 50)}
    found = {place: [] for place in range(len(spans))}
    for place, item in cut(path, list(spans)):
        if isinstance(item, Shown):
            found[place].append(read_number(item.frame.to_ndarray(format="rgb24")))
        else:
            assert item is None
    assert list(found.values()) == list(map(list, spans.values()))


def test_the_sound_of_joined_recordings_is_not_cut_at_a_wrong_place():
    sound = keep_audio(Path(), "clip", Span(0, 1), Path("recording.ts"), joined=True)
    assert "joined into one file" in sound.lost
    assert not sound.bytes
