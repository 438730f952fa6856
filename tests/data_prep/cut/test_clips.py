import io
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cut.audio import cut_audio
from data_prep.cut.clips import ReadyClip, make_clips
from data_prep.cut.encode import EncodePolicy, first_working, schedule
from data_prep.cut.spans import Span, microseconds
from data_prep.score.pixel_score import pixel_scores
from tests.material.made_clips import write_video
from tests.material.numbered_clips import make, read_number, remux
from tests.material.scored_clips import panning, with_bars
from videodiff.data.video.decode import DecodeError, VideoInfo, decode, probe
from videodiff.data.video.geometry import even_size

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"
QUICK = {"scored": False, "crop": False}


@pytest.fixture
def clips_of(tmp_path):
    def made(video: bytes, spans: list[Span], policy: EncodePolicy | None = None, **how) -> list:
        path = tmp_path / "source"
        path.write_bytes(video)
        found = list(make_clips(path, spans, policy or EncodePolicy(), **how))
        assert sorted(number for number, _ in found) == list(range(len(spans)))
        return [clip for _, clip in sorted(found, key=lambda pair: pair[0])]

    return made


def numbers(clip: ReadyClip) -> list[int]:
    return [read_number(image) for image in decode(clip.video, range(clip.info.frames))]


def rgb(video: bytes) -> np.ndarray:
    return decode(video, range(probe(video).frames))


# The plan: which frames, at which rate.

times_of_frames = st.lists(st.integers(8_000, 120_000), max_size=60).map(
    lambda gaps: np.cumsum([5_000, *gaps], dtype=np.int64)
)


@settings(deadline=None)
@given(
    times_of_frames,
    st.integers(0, 500_000),
    st.integers(1, 500_000),
    st.sampled_from([None, 1.0, 8.0, 23.976, 30.0, 120.0]),
)
def test_a_clip_shows_at_every_moment_what_its_source_shows(times, lead, tail, fps):
    bounds = max(int(times[0]) - lead, 0), int(times[-1]) + tail
    kept, rate = schedule(times, bounds, Fraction(25), fps)
    tick = float(1e6 / rate)
    assert set(kept.tolist()) <= set(times.tolist())
    assert (np.diff(kept) >= 0).all()
    assert abs(len(kept) * tick - (bounds[1] - bounds[0])) <= 2 * tick
    for number, time in enumerate(kept):
        # From a tick and a half before the frame's place in the clip to as much after it, the source shows it too.
        moment = bounds[0] + number * tick
        later = times[times > time]
        assert time <= moment + 1.5 * tick or time == times[0]
        assert not len(later) or later[0] > moment - 1.5 * tick
    assert fps is None or float(rate) <= fps + 1e-6 or len(kept) == len(times)


def test_half_the_rate_is_every_second_frame_in_spite_of_rounded_timestamps():
    times = np.array([round(number * 1e6 / 60) for number in range(120)])
    kept, rate = schedule(times, (0, 2_000_000), Fraction(60), 30.0)
    assert (kept == times[::2]).all()
    assert rate == 30


def test_even_frames_keep_the_rate_of_the_source_or_their_own():
    even = np.array([round(number * 1e6 * 1001 / 30000) for number in range(40)])
    ntsc, bounds = Fraction(30000, 1001), (0, int(even[-1]) + 33_367)
    assert schedule(even, bounds, ntsc, None)[1] == ntsc
    assert schedule(even, bounds, ntsc, 60.0)[1] == ntsc
    assert schedule(even[::2], bounds, ntsc, None)[1] == pytest.approx(15000 / 1001, rel=1e-4)
    assert schedule(even[:1], (0, 30_000), Fraction(24), None)[1] == 24


def test_a_frame_that_stays_is_repeated_and_the_slide_before_a_span_is_shown_in_it():
    slides = np.array([0, 3_000_000, 3_500_000])
    kept, rate = schedule(slides, (1_000_000, 4_000_000), Fraction(2), None)
    assert rate == 2
    assert (kept / 500_000).tolist() == [0, 0, 0, 0, 6, 7]


def test_a_stretch_of_another_rate_is_played_at_its_own_and_a_few_frames_at_that_of_their_source():
    tenths = np.array([0, 1, 2, 4, 5, 6, 7, 9, 10, 11])
    kept, rate = schedule(tenths * 100_000, (0, 1_200_000), Fraction(25), None)
    assert rate == 10
    assert (kept // 100_000).tolist() == [0, 1, 2, 2, 4, 5, 6, 7, 7, 9, 10, 11]
    kept, rate = schedule(tenths[:8] * 100_000, (0, 1_000_000), Fraction(25), None)
    assert (rate, len(kept)) == (25, 25)


@settings(deadline=None)
@given(st.integers(2, 4000), st.integers(2, 4000), st.integers(2, 1080))
def test_sizes_are_even_never_larger_and_keep_their_shape(width, height, short_side):
    w, h = even_size((width, height), short_side)
    assert w % 2 == h % 2 == 0
    assert min(w, h) <= max(2, min(short_side, width, height) + 1)
    scale = min(1, short_side / min(width, height))
    assert (w, h) == pytest.approx((width * scale, height * scale), abs=1.01)


@pytest.mark.parametrize("wrong", [{"short_side": 1}, {"crf": 52}, {"fps": 0}, {"fps": 501}, {"codec": "h265"}])
def test_a_policy_that_cannot_be_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"encode.*expected"):
        EncodePolicy(**wrong)


def test_an_encoder_is_taken_only_if_it_works_here():
    assert first_working(["no_such_encoder", "libx264"]) == "libx264"
    assert first_working() in ("h264_nvenc", "libx264")
    with pytest.raises(ValueError, match="found none of no_such_encoder working"):
        first_working(["no_such_encoder"])


# The clips.


def flash_and_beep(flash: float, seconds: float, container: str = "mp4") -> bytes:
    """Return a video with sound: 30 frames in its first second, then two a second; one is white, a beep is with it."""
    moments = [number / 30 for number in range(30)] + [1 + number / 2 for number in range(int(2 * (seconds - 1)))]
    file, unit = io.BytesIO(), Fraction(1, 30)
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("libx264", rate=30, options={"crf": "20", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.time_base = 32, 32, "yuv420p", unit
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        for moment in moments:
            image = np.full((32, 32, 3), 255 if moment == flash else 0, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(30 * moment), unit
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        wave = np.zeros((1, int(seconds * 48_000)), np.float32)
        beep = slice(int(flash * 48_000), int((flash + 0.1) * 48_000))
        wave[:, beep] = np.sin(np.arange(beep.stop - beep.start) * 0.13)
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        for packet in [*sound.encode(frame), *sound.encode(None)]:
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("fps", [None, 10.0])
@pytest.mark.parametrize("span", [Span(0, 3.5), Span(1.2, 3.4)])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_flash_and_its_beep_stay_together_where_frames_come_unevenly(tmp_path, clips_of, fps, span, container):
    video = flash_and_beep(2.0, 4.0, container)
    (clip,) = clips_of(video, [span], EncodePolicy(fps=fps), **QUICK)
    assert clip.info.duration == pytest.approx(span.end - span.start, abs=1.5 / clip.info.fps)
    bright = rgb(clip.video).mean(axis=(1, 2, 3)) > 128
    with av.open(io.BytesIO(cut_audio(tmp_path / "source", span))) as sound:
        wave = np.concatenate([frame.to_ndarray()[0] for frame in sound.decode(audio=0)])
    beep = np.flatnonzero(np.abs(wave) > 0.3)[0] / 48_000
    assert bright.argmax() / clip.info.fps == pytest.approx(beep, abs=0.5 / clip.info.fps + 0.05)
    assert bright.sum() / clip.info.fps == pytest.approx(0.5, abs=1 / clip.info.fps)


def test_an_uneven_clip_shows_at_every_moment_the_frame_of_its_source(clips_of):
    video, shown = make("uneven")
    spans = [Span(0.5, 1.1), Span(0.9, 1.3), Span(0, 0.3)]
    for span, clip in zip(spans, clips_of(video, spans, **QUICK), strict=True):
        tick = 1 / clip.info.fps
        assert clip.info.duration == pytest.approx(span.end - span.start, abs=1.5 * tick)
        for place, number in enumerate(numbers(clip)):
            moment = span.start + place * tick
            assert shown[number] <= moment + tick
            assert shown[number + 1] >= moment - tick


@pytest.mark.parametrize("kind", ["open groups", "edit list", "transport stream"])
def test_every_frame_of_a_span_is_in_its_clip_once_with_its_own_time(clips_of, kind):
    video, shown = make(kind)
    spans = [Span(0.5, 1.1), Span(0.9, 1.3), Span(0, 0.3)]
    for span, clip in zip(spans, clips_of(video, spans, **QUICK), strict=True):
        wanted = {n: microseconds(t) for n, t in shown.items() if span.start <= t < span.end}
        assert numbers(clip) == list(wanted)
        assert clip.times == list(wanted.values())


def test_a_clip_is_what_the_format_says(clips_of):
    (clip,) = clips_of(make("one keyframe")[0], [Span(0.2, 2)], **QUICK)
    with av.open(io.BytesIO(clip.video)) as container:
        (stream,) = container.streams
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    stamps = sorted(packet.pts for packet in packets)
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert len(set(np.diff(stamps))) == 1
    assert np.diff([*keys, len(packets)]).max() <= 12
    assert clip.video.index(b"moov") < clip.video.index(b"mdat")
    assert probe(clip.video) == clip.info


def test_a_clip_has_the_same_bytes_whatever_else_is_cut_from_the_source(clips_of):
    video = make("uneven")[0]
    alone = clips_of(video, [Span(0.5, 1.5)])[0]
    among = clips_of(video, [Span(1.2, 2), Span(0.1, 0.9), Span(0.5, 1.5), Span(0.5, 1.5)])
    assert among[2].video == among[3].video == alone.video
    assert among[2].scores == alone.scores
    assert among[2].perceptual == alone.perceptual


def test_the_rate_and_the_size_of_the_policy_are_kept(clips_of):
    policy = EncodePolicy(short_side=32, fps=12.5)
    (clip,) = clips_of(make("b-frames")[0], [Span(0, 2)], policy, **QUICK)
    assert clip.info == VideoInfo(80, 32, 25, 12.5, 2.0)
    assert numbers(clip) == list(range(0, 50, 2))
    assert clip.times == [40_000 * number for number in range(0, 50, 2)]


def test_one_frame_is_a_clip(clips_of):
    (clip,) = clips_of(make("b-frames")[0], [Span(0.4, 0.41)], crop=False)
    assert numbers(clip) == [10]
    assert clip.info.frames == 1
    assert all(np.isfinite(value) for value in clip.scores.values())


def test_a_span_that_cannot_be_cut_is_an_error_in_its_place(clips_of):
    found = clips_of(make("b-frames")[0], [Span(0, 1), Span(2, 1), Span(1, 9), Span(1, 2)], **QUICK)
    assert [type(clip) for clip in found] == [ReadyClip, DecodeError, DecodeError, ReadyClip]


def grown(height: int, width: int) -> bytes:
    """Return a second of 64 x 128 pixels and a second of another size, of a red left and a blue right half each."""

    def halves(height: int, width: int) -> bytes:
        frames = np.zeros((25, height, width, 3), np.uint8)
        frames[:, :, : width // 2, 0] = frames[:, :, width // 2 :, 2] = 255
        return write_video(frames, container="mpegts", g="12", bf="0")

    def later(packet: av.Packet) -> None:
        packet.pts, packet.dts = packet.pts + 90_000, packet.dts + 90_000

    return halves(64, 128) + remux(halves(height, width), later, "mpegts")


def test_a_source_that_changes_its_shape_costs_the_clip_over_the_change_only(clips_of):
    found = clips_of(grown(96, 128), [Span(0, 0.8), Span(0.5, 1.5), Span(1.2, 1.9)], **QUICK)
    assert [type(clip) for clip in found] == [ReadyClip, DecodeError, ReadyClip]
    assert str(found[1]) == "found frames shown as 128 x 64 and 128 x 96, expected one shape"
    assert (found[0].info.height, found[2].info.height) == (64, 96)


def test_a_source_that_changes_its_size_alone_is_scaled_to_the_first_size(clips_of):
    for crop in (False, True):
        (clip,) = clips_of(grown(96, 192), [Span(0.5, 1.5)], **QUICK | {"crop": crop})
        assert (clip.info.height, clip.info.width, clip.info.frames) == (64, 128, 25)
        shown = rgb(clip.video)
        assert (shown[:, 8:-8, 8:56, 0].min(), shown[:, 8:-8, 72:-8, 2].min()) > (240, 240)


@pytest.mark.skipif(first_working() == "h264_nvenc", reason="needs an encoder that does not work here")
def test_what_the_encoder_refuses_is_an_error_of_the_clip(clips_of):
    (clip,) = clips_of(make("b-frames")[0], [Span(0, 1)], EncodePolicy(codec="h264_nvenc"), **QUICK)
    assert "cannot be fitted or encoded" in str(clip)


# What becomes of the picture.


@pytest.mark.parametrize(("pixels", "matrix"), [("yuv420p", "bt601"), ("yuv420p", "bt709"), ("yuv420p10le", "bt709")])
def test_colours_survive_whatever_the_matrix_of_the_source(clips_of, pixels, matrix):
    colours = np.array([(255, 0, 0), (0, 170, 0), (0, 0, 255), (235, 195, 0)], np.uint8)
    file, tag = io.BytesIO(), {"bt601": 5, "bt709": 1}[matrix]
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.colorspace = 64, 96, pixels, tag
        for colour in colours:
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), colour, np.uint8), format="rgb24")
            out.mux(stream.encode(frame.reformat(format=pixels, dst_colorspace=tag)))
        out.mux(stream.encode(None))
    (clip,) = clips_of(file.getvalue(), [Span(0, 0.16)], EncodePolicy(short_side=32, crf=1), **QUICK)
    assert np.abs(rgb(clip.video).astype(int) - colours[:, None, None]).max() <= 6


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_clip_is_upright(clips_of, turns):
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = (255, 0, 0)
    video = bytearray(write_video(frames))
    # The first two rows of the display matrix, as in the header of the track.
    one, minus_one, none = (65536).to_bytes(4, "big"), (-65536).to_bytes(4, "big", signed=True), bytes(4)
    rows = {
        0: (one, none, none, none, one),
        1: (none, minus_one, none, one, none),
        2: (minus_one, none, none, none, minus_one),
        3: (none, one, none, minus_one, none),
    }[turns]
    at = video.index(b"tkhd") + 44
    video[at : at + 20] = b"".join(rows)
    (clip,) = clips_of(bytes(video), [Span(0, 0.16)], **QUICK)
    with av.open(io.BytesIO(bytes(video))) as container:
        rotation = next(container.decode(video=0)).rotation
    assert round(rotation / 90) % 4 == turns
    expected = np.rot90(frames[0], turns)
    assert (clip.info.height, clip.info.width) == expected.shape[:2]
    # Not at the edges of the colour, which are half a pixel wide.
    near = np.abs(rgb(clip.video)[1].astype(int) - expected).max(axis=-1) < 12
    assert near.mean() > 0.9


def test_odd_sizes_become_even_ones(clips_of):
    video = write_video(panning(4, 63, 95), pixels="yuv444p")
    (clip,) = clips_of(video, [Span(0, 0.16)], **QUICK)
    assert (clip.info.width, clip.info.height) in ((96, 64), (94, 62), (96, 62), (94, 64))
    expected = cv2.resize(panning(4, 63, 95)[2], (clip.info.width, clip.info.height))
    assert np.abs(rgb(clip.video)[2].astype(int) - expected).mean() < 12


def test_bars_are_cropped_before_scaling(clips_of):
    video = write_video(with_bars(panning(50, 128, 224, speed=1.0), 20), crf="10")
    (clip,) = clips_of(video, [Span(0, 2)], EncodePolicy(short_side=44))
    assert clip.box == (20, 0, 88, 224)
    assert (clip.info.width, clip.info.height) == (112, 44)
    assert clip.scores["letterbox"] == pytest.approx(40 / 128)
    (whole,) = clips_of(video, [Span(0, 2)], EncodePolicy(short_side=44), crop=False)
    assert whole.box == (0, 0, 128, 224)
    assert whole.scores["letterbox"] == pytest.approx(40 / 128)


@pytest.mark.parametrize("bars_at_first", [True, False])
def test_where_the_first_second_misleads_the_clip_is_made_again(clips_of, bars_at_first):
    film = panning(75, 128, 224, speed=1.0)
    if bars_at_first:
        # A picture that fills the frame, but for its first second.
        film[:35] = with_bars(film[:35], 20)
    else:
        # Bars, but nothing to see in the first second.
        film = with_bars(film, 20)
        film[:35] = 3
    (clip,) = clips_of(write_video(film, crf="10"), [Span(0, 3)], EncodePolicy(short_side=64))
    assert clip.box == ((0, 0, 128, 224) if bars_at_first else (20, 0, 88, 224))
    assert len(clip.times) == clip.info.frames == 75


def test_scores_come_from_few_frames_of_the_clip_as_encoded(clips_of):
    video = write_video(panning(75, 128, 224, speed=1.0), crf="10")
    long, short = clips_of(video, [Span(0, 3), Span(1, 1.4)])
    assert len(long.sampled.frames) == 6
    assert len(short.sampled.frames) == 4
    assert long.sampled.frames.shape[1:] == (128, 224, 3)
    assert pixel_scores(*long.sampled).items() <= long.scores.items()
    assert long.scores["motion"] == pytest.approx(25 / 128, rel=0.25)
    assert (long.scores["width"], long.scores["duration"]) == (224, 3)
    assert len(long.perceptual) == 32


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
def test_real_clips_keep_their_frames_and_lose_their_bars():
    with av.open(str(CLIPS / "derived_vfr_sintel.mp4")) as container:
        shown = [round(frame.time * 1e6) for frame in container.decode(video=0)]
    ((_, uneven),) = make_clips(CLIPS / "derived_vfr_sintel.mp4", [Span(1, 4)], EncodePolicy(), scored=False)
    # Of 24 frames a second some are missing.
    moments = 1e6 + np.arange(72) * 1e6 / 24
    assert uneven.times == [max(time for time in shown if time < moment + 2e4) for moment in moments]
    assert (uneven.info.fps, uneven.info.frames) == (24, 72)
    ((_, boxed),) = make_clips(CLIPS / "derived_letterbox_text_bbb.mp4", [Span(0, 3)], EncodePolicy(), scored=False)
    assert boxed.box == (44, 0, 272, 640)
