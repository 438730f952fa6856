import io

import av
import numpy as np
import pytest

from data_prep.cut.audio import cut_audio
from data_prep.cut.spans import Span
from tests.material.made_clips import moving_square, write_video
from videodiff.data.video.decode import DecodeError

RATE = 16000


def sweep(seconds: float = 4.0) -> np.ndarray:
    """Return sound in which every moment is another: float32 `channels samples`, silent on the right."""
    time = np.arange(round(seconds * RATE)) / RATE
    left = 0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2))
    return np.stack([left, np.zeros_like(left)]).astype(np.float32)


def with_sound(
    samples: np.ndarray,
    codec: str = "flac",
    container: str = "matroska",
    late: float = 0.0,
    rate: int = RATE,
    layout: str = "stereo",
    begin: float = 0.0,
) -> bytes:
    """Return a video of 4 s with this sound, in packets of 1,000 samples where the codec has no size of its own.

    begin: the time in seconds that the file gives its first frame; late: how much later the sound begins.
    """
    pictures = ("flv", "yuv420p", "flv") if container == "flv" else ()
    file, video = io.BytesIO(), io.BytesIO(write_video(moving_square(100), *pictures, g="12", bf="0"))
    with av.open(video) as source, av.open(file, "w", format=container) as out:
        picture = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream(codec, rate=rate, layout=layout)
        for packet in source.demux(video=0):
            if packet.size:
                shift = round(begin / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, picture
                out.mux(packet)
        kind = "fltp" if codec == "aac" else "s16"
        for start in range(0, samples.shape[1], 1000):
            part = samples[:, start : start + 1000]
            planes = part if codec == "aac" else (part * 32767).astype(np.int16).T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format=kind, layout=layout)
            frame.sample_rate, frame.pts = rate, round((begin + late) * rate) + start
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return file.getvalue()


def samples_of(sound: bytes) -> np.ndarray:
    with av.open(io.BytesIO(sound)) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
        stream = container.streams.audio[0]
        # All channels in one plane: PyAV crashes over eight planes.
        packed = av.AudioResampler(format="flt", layout=stream.layout.name, rate=stream.rate)
        parts = [part.to_ndarray() for frame in container.decode(stream) for part in packed.resample(frame)]
        return np.concatenate(parts, axis=1).reshape(-1, stream.channels).T


def lag(found: np.ndarray, expected: np.ndarray) -> int:
    """Return by how many samples the one comes after the other."""
    length = min(len(found), len(expected))
    product = np.correlate(found[:length], expected[200 : length - 200], mode="valid")
    return int(product.argmax()) - 200


@pytest.mark.parametrize(("codec", "container"), [("flac", "matroska"), ("aac", "mp4")])
@pytest.mark.parametrize("span", [Span(0, 1), Span(1.234, 2.5), Span(2.9, 4)])
def test_the_sound_is_that_of_the_span_to_the_sample(tmp_path, codec, container, span):
    path = tmp_path / "video"
    path.write_bytes(with_sound(sweep(), codec, container))
    found, expected = samples_of(cut_audio(path, span)), sweep()[0, round(span.start * RATE) : round(span.end * RATE)]
    assert abs(found.shape[1] - len(expected)) <= 1024
    assert abs(lag(found[0], expected)) <= 1
    assert np.abs(found[1]).max() < 0.01


@pytest.mark.parametrize(("container", "begin", "late"), [("matroska", 2.0, 0.0), ("flv", 0.04, -0.04)])
@pytest.mark.parametrize("span", [Span(0.2, 1.2), Span(2.9, 3.9)])
def test_a_span_counts_from_the_first_frame_wherever_its_file_begins(tmp_path, container, begin, late, span):
    """FLV cannot seek to a time before its first keyframe, and a seek that failed goes on in the midst of the file."""
    path, rate = tmp_path / "video", 44100
    time = np.arange(4 * rate) / rate
    left = 0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2))
    samples, codec = np.stack([left, np.zeros_like(left)]).astype(np.float32), "flac" if begin == 2 else "pcm_s16le"
    path.write_bytes(with_sound(samples, codec, container, late, rate, begin=begin))
    found = samples_of(cut_audio(path, span))[0]
    # The containers round to milliseconds.
    assert abs(lag(found, left[round(span.start * rate) : round(span.end * rate)])) <= 45


@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "4.0", "5.0", "5.1", "7.1"])
def test_channels_without_a_meaning_get_the_usual_one_and_keep_their_order(tmp_path, layout):
    path, rate, channels = tmp_path / "video", 48000, av.AudioLayout(layout).nb_channels
    wave = np.sin(2 * np.pi * 100 * np.arange(4 * rate) / rate)
    samples = np.stack([0.1 * number * wave for number in range(1, channels + 1)]).astype(np.float32)
    path.write_bytes(with_sound(samples, "pcm_s16le", rate=rate, layout=layout))
    sound = cut_audio(path, Span(1, 3))
    with av.open(io.BytesIO(sound)) as file:
        assert (file.streams.audio[0].layout.name, file.streams.audio[0].rate) == (layout, rate)
    loud = samples_of(sound)[:, rate // 2 : rate * 3 // 2].std(axis=1)
    assert loud == pytest.approx(0.1 * np.arange(1, channels + 1) / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    ("codec", "container", "rate"),
    [
        # Times in milliseconds, which no frame of these lasts; channels without a meaning.
        *[("aac", "matroska", 44100), ("pcm_s16le", "matroska", 44100)],
        # AAC has no such rate.
        *[("flac", "matroska", 192000), ("pcm_s16le", "matroska", 6000)],
    ],
)
def test_a_tone_goes_on_whatever_the_container_says_of_its_frames(tmp_path, codec, container, rate):
    time = np.arange(4 * rate) / rate
    path = tmp_path / "video"
    tone = np.stack([0.5 * np.sin(2 * np.pi * 440 * time)] * 2).astype(np.float32)
    path.write_bytes(with_sound(tone, codec, container, rate=rate))
    sound = cut_audio(path, Span(1, 3))
    with av.open(io.BytesIO(sound)) as file:
        assert file.streams.audio[0].rate == (rate if rate == 44100 else 48000)
        rate = file.streams.audio[0].rate
    found = samples_of(sound)[0, rate // 2 : rate * 3 // 2]
    time = np.arange(rate) / rate
    waves = np.stack([np.sin(2 * np.pi * 440 * time), np.cos(2 * np.pi * 440 * time)], 1)
    weights = np.linalg.lstsq(waves, found)[0]
    assert np.hypot(*weights) == pytest.approx(0.5, rel=0.02)
    assert (found - waves @ weights).std() < 0.02 * found.std()


def test_a_frame_that_is_missing_is_silence_and_moves_no_other(tmp_path):
    samples = sweep()
    whole, holed = tmp_path / "whole", tmp_path / "holed"
    whole.write_bytes(with_sound(samples, "pcm_s16le"))
    with av.open(str(whole)) as source, av.open(str(holed), "w", format="matroska") as out:
        streams = [out.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            # Each lasts a sixteenth of a second.
            sound = packet.stream.type == "audio"
            if packet.size and not (sound and 1.95 < packet.pts * packet.time_base < 2.05):
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    found = samples_of(cut_audio(holed, Span(1, 3)))[0]
    assert np.abs(found[round(1.01 * RATE) : round(1.05 * RATE)]).max() < 0.02
    after, before = (slice(round(start * RATE), round((start + 0.7) * RATE)) for start in (1.2, 2.2))
    # Matroska rounds to milliseconds, of 16 samples.
    assert abs(lag(found[after], samples[0, before])) <= 8


def test_before_the_sound_begins_there_is_silence(tmp_path):
    path = tmp_path / "video"
    path.write_bytes(with_sound(sweep(2), late=1.5))
    found = samples_of(cut_audio(path, Span(1, 3)))[0]
    assert np.abs(found[: round(0.45 * RATE)]).max() < 0.01
    assert abs(lag(found[round(0.5 * RATE) :], sweep(1.5)[0])) <= 1
    # More than one block of silence.
    path.write_bytes(with_sound(sweep(1), late=2.7))
    found = samples_of(cut_audio(path, Span(0, 4)))[0]
    assert np.abs(found[: round(2.65 * RATE)]).max() < 0.01
    assert abs(lag(found[round(2.7 * RATE) :], sweep(1)[0])) <= 1


def test_a_source_without_sound_gives_none_and_the_same_sound_the_same_bytes(tmp_path):
    silent, loud = tmp_path / "silent", tmp_path / "loud"
    silent.write_bytes(write_video(moving_square(20)))
    loud.write_bytes(with_sound(sweep()))
    assert cut_audio(silent, Span(0, 0.5)) is None
    assert cut_audio(loud, Span(0, 1)) == cut_audio(loud, Span(0, 1))


def test_what_is_no_video_is_a_decode_error(tmp_path):
    path = tmp_path / "bad"
    path.write_bytes(b"no video")
    with pytest.raises(DecodeError, match="cannot be decoded"):
        cut_audio(path, Span(0, 1))
