"""Every decoder that a configuration may name gives the frames of a full decode, or says why it does not."""

from __future__ import annotations

import io
import random
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest

from tests.data.video.test_decode import KINDS, LONG
from tests.material import numbered_clips
from tests.material.made_clips import moving_square, share_the_core, untold, write_video
from videodiff.data.video.decode import DecodeError, decode, decode_into, probe
from videodiff.data.video.decoders import DECODERS, decoder_named
from videodiff.data.video.encode import encode

# Closed groups of 8-bit pictures with their own times in a container with an index: what decord is made for.
PLAIN = {
    "canonical",
    "one group of pictures",
    "groups of three",
    "variable rate",
    "narrow",
    "no pictures out of order",
    "vp9",
}
by_decord = DECODERS["decord"]


@pytest.mark.parametrize("kind", KINDS)
def test_decord_gives_the_frames_of_a_full_decode_or_refuses(kind):
    video, dice = KINDS[kind][0], random.Random(kind)
    count = probe(video).frames
    if kind not in PLAIN:
        with pytest.raises(DecodeError, match=r"decord may give wrong frames of it: .+; data.decoder=pyav reads it"):
            decode(video, [0], by_decord)
        return
    for _ in range(8):
        stride, start = dice.choice([1, 2, 4]), dice.randrange(count - 28)
        window = range(start, start + 7 * stride, stride)
        assert np.array_equal(decode(video, window, by_decord), decode(video, window))


@pytest.mark.parametrize("kind", numbered_clips.KINDS)
def test_decord_finds_the_frame_by_the_number_that_is_written_in_it_or_refuses(kind):
    video, times = numbered_clips.make(kind)
    if kind == "uneven":
        # A tick of the clock shows the last frame that has come by then.
        ticks, fps = range(0, probe(video).frames, 7), probe(video).fps
        numbers = [max(n for n, time in times.items() if time * fps <= tick + 0.51) for tick in ticks]
    else:
        ticks = numbers = range(0, numbered_clips.COUNT, 7)
    if kind in {"open groups", "intra refresh", "transport stream", "hevc", "edit list", "stamped by decoding", "avi"}:
        with pytest.raises(DecodeError, match="decord may give wrong frames"):
            decode(video, ticks, by_decord)
        return
    found = [numbered_clips.read_number(image) for image in decode(video, ticks, by_decord)]
    assert found == list(numbers)


def test_decord_reads_a_video_whose_header_allows_an_order_that_no_picture_uses():
    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    video = write_video(noise, **{"x264-params": "bframes=3:b-adapt=1"})
    with av.open(io.BytesIO(video)) as file:
        stream = file.streams.video[0]
        times = [packet.pts for packet in file.demux(stream) if packet.pts is not None]
        assert stream.codec_context.has_b_frames
        assert times == sorted(times)
    with av.open(io.BytesIO(video)) as file:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    window = [0, 1, 5, 11, 12, 23]
    found = decode(video, window, by_decord)
    assert np.array_equal(found, decode(video, window))
    # The conversion of colours differs from the library's by rounding; frames of noise differ by far more.
    assert np.abs(found.astype(int) - whole[window]).mean() < 8


def shown_otherwise(ratio: Fraction) -> bytes:
    """Return a video whose pixels have this shape."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = ratio
        for image in moving_square(12, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (shown_otherwise(Fraction(2, 1)), "not square"),
        (write_video(moving_square(), bf="0", pixels="yuv420p10le"), "yuv420p10le"),
        (write_video(moving_square(), bf="0", pixels="yuv444p"), "yuv444p"),
        (write_video(moving_square(), bf="0", color_trc="smpte2084"), "transfer 16"),
    ],
)
def test_what_decord_would_show_otherwise_is_refused(video, reason):
    with pytest.raises(DecodeError, match=f"decord may give wrong frames of it: .*{reason}"):
        decode(video, [0], by_decord)


CONTAINERS = ("mp4", "matroska", "webm")
OPTIONS = {
    "libx265": {"x265-params": "log-level=none:bframes=0:open-gop=0"},
    "libvpx-vp9": {"crf": "4", "b": "0", "cpu-used": "8", "auto-alt-ref": "0"},
    "libsvtav1": {"crf": "4", "preset": "8"},
}


def of_bt709(container: str, transfer: int = 1, codec: str = "libx265") -> bytes:
    """Return a video with the matrix of BT.709, tagged as of this transfer."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=OPTIONS[codec])
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_primaries = 1
        stream.codec_context.color_trc = transfer
        for image in moving_square(6, 64, 64):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1)))
        out.mux(stream.encode(None))
    share_the_core()
    return file.getvalue()


@pytest.mark.parametrize(("codec", "container"), sorted({*product(OPTIONS, CONTAINERS)} - {("libx265", "webm")}))
def test_a_matrix_that_the_container_alone_states_counts_and_is_none_for_decord(codec, container):
    told = of_bt709(container, codec=codec)
    hidden = untold(told, container)
    found = decode(hidden, [0, 5])
    assert np.array_equal(found, decode(told, [0, 5]))
    # As BT.601, which is what nobody says, the red of the square would be off by tens of levels.
    assert np.abs(found.astype(int) - moving_square(6, 64, 64)[[0, 5]].astype(int)).mean() < 4
    reason = "the matrix .* in the container alone"
    if codec == "libsvtav1":
        reason = "its codec is libdav1d"
    else:
        assert np.array_equal(decode(told, [0, 5], by_decord), decode(told, [0, 5]))
    with pytest.raises(DecodeError, match=f"decord may give wrong frames of it: {reason}"):
        decode(hidden, [0], by_decord)


def test_a_transfer_that_the_container_alone_states_is_none_for_decord():
    video = untold(of_bt709("mp4", transfer=16), "mp4", "transfer_characteristics")
    with pytest.raises(DecodeError, match=r"decord may give wrong frames of it: .* transfer 16"):
        decode(video, [0], by_decord)


@pytest.mark.parametrize("name", DECODERS)
def test_all_decoders_keep_the_order_fill_the_memory_and_know_the_end(name):
    find, video = decoder_named(name), encode(moving_square(30), 5.0)
    assert np.array_equal(decode(video, [29, 3, 3], find), decode(video, [29, 3, 3]))
    out, wanted = np.zeros((2, 20, 20, 3), np.uint8), np.zeros((2, 20, 20, 3), np.uint8)
    decode_into(out, video, [4, 0], find)
    decode_into(wanted, video, [4, 0])
    assert np.array_equal(out, wanted)
    with pytest.raises(DecodeError, match="found 70 frames, expected frame 70"):
        decode(LONG, [70], find)
    for indices in ([], [-1]):
        with pytest.raises(ValueError, match="expected frame numbers"):
            decode(video, indices, find)
    for broken in (b"", b"no video", video[:300]):
        with pytest.raises(DecodeError):
            decode(broken, [0], find)


def test_an_unknown_decoder_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="decoder: found 'opencv', expected one of pyav, decord"):
        decoder_named("opencv")
