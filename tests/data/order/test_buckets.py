import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.data.order.buckets import (
    UNIT,
    Bucket,
    cascade,
    count_kinds,
    kinds_of,
)

BUCKETS = [Bucket(16, 64, 64), Bucket(8, 32, 48, crop=0.3), Bucket(1, 32, 32)]


@pytest.mark.parametrize(
    ("frames", "height", "width", "kind"),
    [
        (16, 64, 64, 0b101),  # too square for 32 x 48: a third would be cut away
        (16, 64, 96, 0b111),
        (15, 64, 96, 0b110),
        (99, 64, 128, 0b111),  # exactly half of it would be cut away for a square
        (99, 64, 129, 0b010),  # more than half
        (8, 31, 48, 0),
        (1, 32, 32, 0b100),
        (7, 480, 720, 0b100),
    ],
)
def test_a_sample_fits_where_it_is_long_and_large_enough_and_not_cropped_too_much(frames, height, width, kind):
    assert kinds_of(BUCKETS, np.array([frames]), np.array([height]), np.array([width])).tolist() == [kind]


def test_there_are_no_more_buckets_than_a_kind_has_bits():
    """A sample that only the bucket after the last bit takes would fit none."""
    buckets = [Bucket(64 - number, 8, 8) for number in range(64)]
    assert kinds_of(buckets[:63], np.array([1, 2, 64])).tolist() == [0, 1 << 62, (1 << 63) - 1]
    with pytest.raises(ValueError, match=r"^buckets: found 64 in one stage, expected at most 63$"):
        kinds_of(buckets, np.array([1]))


def test_a_longer_stride_asks_for_more_frames():
    bucket = Bucket(4, 8, 8, strides=(2, 3))
    assert bucket.fits(np.array([6, 7]), np.array([8, 8]), np.array([8, 8])).tolist() == [False, True]


def test_a_bucket_that_crops_nothing_takes_its_own_aspect_alone():
    bucket = Bucket(1, 32, 48, crop=0.0)
    assert [bool(bucket.fits(1, 64, width)) for width in (95, 96, 97)] == [False, True, False]


def test_the_first_window_has_the_first_stride_that_fits():
    bucket = Bucket(3, 8, 8, strides=(2, 1))
    assert [bucket.first_window(frames) for frames in (3, 4, 5)] == [range(3), range(3), range(0, 5, 2)]


def test_kinds_are_counted_shard_by_shard():
    counts, kinds = count_kinds(np.array(shard) for shard in ([4, 6, 4], [7], [6, 6]))
    assert kinds.tolist() == [4, 6, 7]
    assert counts.tolist() == [[2, 1, 0], [0, 0, 1], [0, 2, 0]]


def test_samples_that_fit_no_bucket_are_an_error_unless_left_out():
    shards = [np.array([0, 4]), np.array([0, 0])]
    with pytest.raises(ValueError, match="found 3 of 4 samples that fit no bucket"):
        count_kinds(shards)
    counts, kinds = count_kinds(shards, leave_out=True)
    assert (counts.tolist(), kinds.tolist()) == ([[1], [0]], [4])


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=12),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    st.integers(1, 31),
)
def test_a_cascade_gives_each_bucket_its_share_after_every_shard(arriving, keeps, kind):
    buckets = [Bucket(1, 8, 8, keep=keep) for keep in keeps]
    kind = kind % 2 ** len(keeps) or 1
    left, whole = np.array(arriving), np.zeros(len(arriving), dtype=int)
    for bucket, taken, before in cascade(left, kind, buckets):
        assert np.array_equal(before, whole)
        arrived = np.cumsum(left - whole)
        last = kind >> bucket == 1
        keep = 1 if last else round(keeps[bucket] * UNIT) / UNIT
        assert (taken >= 0).all()
        assert (np.abs(np.cumsum(taken) - arrived * keep) <= 0.5).all()
        whole = whole + taken
    assert np.array_equal(whole, left)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 40), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99), st.integers(0, 99))
def test_a_window_lies_in_the_clip_and_depends_on_its_key_alone(length, strides, more, sample):
    bucket = Bucket(length, 8, 8, strides=tuple(strides))
    frames = (length - 1) * min(strides) + 1 + more
    window = bucket.window(frames, 1, 2, sample)
    assert len(window) == length
    assert window.step in strides
    assert 0 <= window[0] <= window[-1] < frames
    assert window == bucket.window(frames, 1, 2, sample)


def test_every_stride_and_every_start_are_drawn():
    bucket = Bucket(3, 8, 8, strides=(1, 2))
    windows = [bucket.window(6, 0, epoch, 5) for epoch in range(200)]
    assert {(w.step, w.start) for w in windows} == {(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)}


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"keep": 0.0}, {"keep": 1.5}, {"crop": 1.0}, {"crop": -0.1}, {"strides": (1, 0)}]
)
def test_a_bucket_that_cannot_be_is_an_error(wrong):
    with pytest.raises(ValueError, match="bucket: found"):
        Bucket(**{"frames": 4, "height": 8, "width": 8, **wrong})
