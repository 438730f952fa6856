"""Windows of cached latents: which frames they are of, whatever the stride, the length and the codec."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videodiff.data.encoded.windows import PIECE, Windows
from videodiff.data.order.buckets import Bucket

FRAMES = st.integers(1, 300)
STRIDES = st.integers(1, 4)


class Causal:
    causal, compression, name = True, (4, 8, 8), "Causal"

    def latent_frames(self, t: int) -> int:
        return 1 + (t - 1) // 4


@given(FRAMES, STRIDES)
def test_by_frames_every_strideth_frame_is_encoded_once_in_order_and_in_small_parts(frames, stride):
    parts = Windows(stride).parts(frames)
    assert [number for part in parts for number in part] == list(range(0, frames, stride))
    assert max(map(len, parts)) <= PIECE


@given(FRAMES, STRIDES, st.integers(1, 20), st.integers(1, 3), st.integers(0, 5))
def test_by_frames_the_latents_of_a_window_are_those_of_its_frames(frames, stride, wanted, times, key):
    windows, bucket = Windows(stride), Bucket(wanted, 8, 8, strides=(stride * times,))
    if not bucket.long_enough(frames):
        return
    window = windows.draw(bucket, frames, 3, 0, key)
    latents = torch.arange(0, frames, stride).view(1, -1, 1, 1)
    assert len(window) == wanted
    assert window.step == stride * times or wanted == 1
    assert windows.cut(latents, window, frames).flatten().tolist() == list(window)


@given(FRAMES, st.integers(1, 20), st.integers(1, 3), st.integers(0, 5))
def test_with_all_frames_encoded_the_window_is_that_of_training_on_the_fly(frames, wanted, stride, key):
    bucket = Bucket(wanted, 8, 8, strides=(stride,))
    if bucket.long_enough(frames):
        assert list(Windows().draw(bucket, frames, 3, 0, key)) == list(bucket.window(frames, 3, 0, key))


@given(FRAMES, STRIDES, st.integers(1, 20))
def test_of_a_causal_codec_windows_cover_every_frame_and_lie_inside(frames, stride, wanted):
    windows = Windows(stride, wanted, 1)
    parts = windows.parts(frames)
    shown = list(range(0, frames, stride))
    if len(shown) < wanted:
        assert parts == []
        return
    assert {number for part in parts for number in part} == set(shown)
    assert all(len(part) == wanted for part in parts)
    assert len(parts) == -(-len(shown) // wanted)


@given(st.integers(17, 300), STRIDES, st.integers(0, 20))
def test_of_a_causal_codec_a_window_is_one_that_was_encoded(frames, stride, key):
    windows = Windows.of(Causal(), stride, 5)
    bucket, parts = Bucket(5, 8, 8, strides=(stride,)), windows.parts(frames)
    latents = torch.arange(len(parts)).repeat_interleave(2).view(1, -1, 1, 1)
    window = windows.draw(bucket, frames, key)
    (number,) = set(windows.cut(latents, window, frames).flatten().tolist())
    assert list(window) == list(parts[number])


def test_all_windows_of_a_clip_are_drawn():
    windows, bucket = Windows(1, 5, 2), Bucket(5, 8, 8)
    assert {windows.draw(bucket, 17, 0, key).start for key in range(60)} == {0, 4, 8, 12}


@pytest.mark.parametrize(
    ("windows", "bucket", "message"),
    [
        (Windows(2), Bucket(4, 8, 8, strides=(3,)), "expected multiples of 2"),
        (Windows(1, 5, 2), Bucket(9, 8, 8), r"found 9, \[1\] for 9 x 8 x 8, expected 5, \[1\]"),
        (Windows(1, 5, 2), Bucket(5, 8, 8, strides=(2,)), r"found 5, \[2\]"),
    ],
)
def test_what_cannot_be_cut_is_an_error(windows, bucket, message):
    with pytest.raises(ValueError, match=message):
        windows.check(bucket)


def test_frames_are_needed_where_a_codec_compresses_time_and_only_there():
    with pytest.raises(ValueError, match=r"frames: found null, expected 1 \+ 4 k for the codec Causal"):
        Windows.of(Causal(), 1, None)
    with pytest.raises(ValueError, match="frames: found 16, expected null"):
        Windows.of(type("Still", (), {"causal": False}), 1, 16)
    assert Windows.of(Causal(), 2, 17) == Windows(2, 17, 5)


@pytest.mark.parametrize(("stride", "frames"), [(0, None), (1, 0)])
def test_windows_of_nothing_are_an_error(stride, frames):
    with pytest.raises(ValueError, match="expected at least 1"):
        Windows(stride, frames)
