import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.books.request import Place
from data_prep.cut.spans import MICROSECOND, Shown, Span, cut, group, microseconds, read_timeline
from data_prep.sources import hdvila
from data_prep.sources.metadata.times import parse_span
from tests.material.made_clips import write_video
from tests.material.numbered_clips import KINDS, make, numbered, read_number
from videodiff.data.video.decode import DecodeError

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"


@pytest.fixture(scope="session")
def numbered_clip(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbered")

    @functools.cache
    def of(kind: str) -> tuple[Path, dict[int, float]]:
        video, shown = make(kind)
        path = root / f"{kind}.video"
        path.write_bytes(video)
        return path, shown

    return of


def numbers_in(source: Path, spans: list[Span]) -> dict[int, list[int] | str]:
    """Return the numbers of the frames of each span as they came, or why there are none."""
    found = {number: [] for number in range(len(spans))}
    ended = []
    for number, item in cut(source, spans):
        assert number not in ended
        if isinstance(item, Shown):
            found[number].append(read_number(item.frame.to_ndarray(format="rgb24")))
        else:
            ended.append(number)
            found[number] = found[number] if item is None else str(item)
    assert sorted(ended) == list(range(len(spans)))
    return found


def expected(shown: dict[int, float], span: Span) -> list[int]:
    """Return the frames that a span has, and before them the one that is shown in a pause in which it begins.

    A pause is a gap between two frames longer than an eighth of a second: the made videos have frames every 0.08 s.
    """
    start, end = map(microseconds, span)
    times = {number: microseconds(time) for number, time in shown.items()}
    inside = [number for number, time in times.items() if start <= time < end]
    before = max((number for number, time in times.items() if time < start), default=None)
    if inside and before is not None:
        first = times[inside[0]]
        return [before] * (first - times[before] > 125_000 and first - start > 40_000) + inside
    return inside


@pytest.mark.parametrize("kind", KINDS)
def test_a_span_gets_exactly_its_frames_wherever_it_begins_and_ends(numbered_clip, kind):
    path, shown = numbered_clip(kind)
    rng, end = np.random.default_rng(0), max(shown.values()) + 0.04
    edges = np.sort(np.round(rng.uniform(0, end, (20, 2)), 3), axis=1)
    spans = [Span(start, stop) for start, stop in edges.tolist()]
    spans += [Span(0, end), Span(end - 0.05, end), Span(0, 0.001), Span(0.4, 0.8), Span(0.8, 1.2)]
    spans = [span for span in spans if any(span.start <= time < span.end for time in shown.values())]
    # One after the other too, so that each begins with a seek of its own.
    alone = [numbers_in(path, [span])[0] for span in spans[::3]]
    assert numbers_in(path, spans) == {number: expected(shown, span) for number, span in enumerate(spans)}
    assert alone == [expected(shown, span) for span in spans[::3]]


def test_the_kinds_are_what_they_are_called(numbered_clip):
    timelines = {kind: read_timeline(numbered_clip(kind)[0]) for kind in KINDS}
    assert len(timelines["one keyframe"].keys) == 1
    assert len(timelines["only keyframes"].keys) == 60
    assert [len(timelines[kind].times) for kind in ("edit list", "b-frames")] == [33, 60]
    assert timelines["edit list"].keys[0][0] < 0
    assert np.diff(timelines["uneven"].times).max() > 1.4 * np.diff(timelines["uneven"].times).min()
    assert len(timelines["intra refresh"].keys) > 1
    assert [kind for kind in KINDS if timelines[kind].ranked] == ["stamped by decoding", "avi"]
    # An open group: its keyframe is decoded before frames that are shown earlier.
    with av.open(str(numbered_clip("open groups")[0])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    later = [packets[n + 1].pts < packet.pts for n, packet in enumerate(packets[:-1]) if packet.is_keyframe and n]
    assert any(later)
    with av.open(str(numbered_clip("transport stream")[0])) as container:
        assert container.start_time > 0


def test_a_span_that_cannot_be_is_refused_and_costs_no_other(numbered_clip):
    path, shown = numbered_clip("b-frames")
    bad = [(1, 1), (2, 1), (-1, 1), (float("nan"), 1), (0, float("inf")), (1, 3), (5, 6), (1.001, 1.039)]
    spans = [Span(0.5, 1), *itertools.starmap(Span, bad), Span(1, 2.4)]
    found = numbers_in(path, spans)
    assert found[0] == expected(shown, spans[0])
    assert found[9] == expected(shown, spans[9])
    assert all("expected 0 <= start < end" in found[number] for number in range(1, 6))
    assert all("expected one in the 2.4 s" in found[number] for number in (6, 7))
    assert "no frame between" in found[8]


def test_a_little_beyond_the_end_is_the_end(numbered_clip):
    path, _ = numbered_clip("b-frames")
    assert numbers_in(path, [Span(2, 2.45)])[0] == list(range(50, 60))


@pytest.mark.parametrize("part", ["its head", "its middle"])
def test_damage_costs_only_the_spans_in_which_it_is_seen(tmp_path, part):
    frames = numbered()
    frames[:, :, ::2] ^= np.random.default_rng(0).integers(0, 30, frames[:, :, ::2].shape, dtype=np.uint8)
    video = bytearray(write_video(frames, g="20", bf="0", **{"x264-params": "scenecut=0"}))
    with av.open(io.BytesIO(bytes(video))) as container:
        at = [packet.pos for packet in container.demux(video=0) if packet.size][30]
    at += {"its head": 4, "its middle": 300}[part]
    video[at : at + 60] = bytes([255]) * 60
    path = tmp_path / "damaged.mp4"
    path.write_bytes(video)
    found = numbers_in(path, [Span(0, 1), Span(1, 1.2), Span(1, 1.5), Span(1.4, 1.5), Span(1.6, 2.4)])
    assert found[0] == list(range(25))
    assert found[1] == list(range(25, 30))
    assert found[4] == list(range(40, 60))
    assert "damaged" in found[2]
    assert "damaged" in found[3]


def test_a_span_that_begins_in_damage_is_not_looked_for_from_the_start(numbered_clip, monkeypatch):
    path, _ = numbered_clip("only keyframes")
    timeline, opened = read_timeline(path), []
    # A frame that no decoding will ever give.
    timeline = dataclasses.replace(timeline, times=np.sort(np.append(timeline.times, 1_999_999)))
    original = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or original(*a, **k))
    ((_, error),) = ((n, item) for n, item in cut(path, [Span(1.9995, 2.2)], timeline) if not isinstance(item, Shown))
    assert "cut short or damaged" in str(error)
    assert len(opened) == 3


@pytest.mark.parametrize("kind", ["mkv", "transport stream"])
def test_a_file_that_ends_early_still_gives_what_is_in_it(numbered_clip, tmp_path, kind):
    video, path = numbered_clip(kind)[0].read_bytes(), tmp_path / "cut_short"
    path.write_bytes(video[: len(video) // 2])
    found = numbers_in(path, [Span(0, 0.4), Span(2, 2.4)])
    assert found[0] == list(range(10))
    assert "expected one in the" in found[1]


@pytest.mark.parametrize("content", [b"", b"no video", bytes(5000)])
def test_what_is_no_video_is_a_decode_error(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"cannot be opened|empty file"):
        list(cut(path, [Span(0, 1)]))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), min_size=1, max_size=12),
    st.lists(st.integers(0, 140), max_size=12, unique=True).map(sorted),
)
def test_runs_hold_every_span_once_and_a_keyframe_lies_between_two(pairs, keys):
    spans = [(start, start + length) for start, length in pairs]
    runs = group(spans, keys)
    assert sorted(number for run in runs for number in run) == list(range(len(spans)))
    for run, following in itertools.pairwise(runs):
        reached, start = max(spans[number][1] for number in run), spans[following[0]][0]
        assert any(reached <= key <= start for key in keys)


def test_spans_far_apart_are_reached_by_seeking():
    assert group([(0, 10), (50, 60), (12, 20), (55, 70)], [0, 25, 49, 80]) == [[0, 2], [1, 3]]


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
@pytest.mark.parametrize(
    "name", ["derived_vfr_sintel.mp4", "intel_asl_book.mkv", "torchcodec_av1_video.mkv", "torchcodec_h265_video.mp4"]
)
def test_frames_of_real_clips_are_those_of_a_full_decode(name):
    with av.open(str(CLIPS / name)) as container:
        start = container.start_time
        whole = [(round(frame.time * MICROSECOND) - start, frame.to_ndarray()) for frame in container.decode(video=0)]
    end = (whole[-1][0] + 1) / MICROSECOND
    spans = [Span(end * a, end * b) for a, b in ((0.1, 0.35), (0.3, 0.55), (0.9, 1))]
    found = {number: [] for number in range(3)}
    for number, item in cut(CLIPS / name, spans):
        assert not isinstance(item, DecodeError)
        if item is not None:
            found[number].append((item.time, item.frame.to_ndarray()))
    for number, span in enumerate(spans):
        wanted = [shown for shown in whole if microseconds(span.start) <= shown[0] < microseconds(span.end)]
        before = [shown for shown in whole if shown[0] < microseconds(span.start)][-1:]
        if "vfr" in name and wanted[0][0] - before[0][0] > 1.5 * MICROSECOND / 24:
            # The span begins in a pause.
            wanted = before + wanted
        assert [time for time, _ in found[number]] == [time for time, _ in wanted]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found[number], wanted, strict=True))


RATES = [Fraction(24), Fraction(30), Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(25)]


def to_clock(seconds: Fraction, how: Callable[[Fraction], int]) -> str:
    """Return `HH:MM:SS.mmm`, rounded in one of the ways of those who write metadata."""
    ms = how(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"


@pytest.mark.parametrize("rounded", [round, math.floor], ids=["rounded", "truncated"])
@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_shots_as_published_meet_between_two_frames_and_lose_none(tmp_path, container, rate, rounded):
    file, path = io.BytesIO(), tmp_path / "video"
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("libx264", rate=rate, options={"bf": "2", "g": "12"})
        stream.height, stream.width, stream.pix_fmt = 64, 160, "yuv420p"
        for image in numbered():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    path.write_bytes(file.getvalue())
    shots = [0, 7, 8, 20, 31, 45, 58, 60]
    clock = [to_clock(number / rate, rounded) for number in shots]
    clips = [{"clip_id": f"a.{n}.mp4", "span": span} for n, span in enumerate(itertools.pairwise(clock))]
    row = {"video_id": "a", "url": "https://www.youtube.com/watch?v=a", "clip": clips}
    spans = [Span(*map(float, request.span)) for request in hdvila.parse_video(Place("meta_part0.jsonl", 1), row)]
    wanted = [list(range(first, after)) for first, after in itertools.pairwise(shots)]
    assert numbers_in(path, spans) == dict(enumerate(wanted))
    pairs = [Span(*map(float, parse_span(*pair, "frames", str(rate)))) for pair in itertools.pairwise(shots)]
    assert numbers_in(path, pairs) == dict(enumerate(wanted))
