import io

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.score.duplicate import BITS, NEAR, bands, exact_hash, near_duplicates, video_hash
from tests.material.scored_clips import panning, still
from videodiff.data.video.encode import encode


def again(video: np.ndarray, width: int, height: int, crf: int) -> np.ndarray:
    """Scale, encode hard, decode: what a second uploader does."""
    small = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in video])
    with av.open(io.BytesIO(encode(small, 2.0, crf=crf))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def distance(a: bytes, b: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())


def table(hashes: list[bytes]) -> np.ndarray:
    return np.stack([np.frombuffer(one, np.uint8) for one in hashes])


@pytest.mark.parametrize(("width", "height", "crf"), [(456, 256, 30), (228, 128, 30), (160, 90, 38), (320, 240, 30)])
def test_a_clip_encoded_again_at_another_size_is_found_and_others_are_kept(width, height, crf):
    clips = [panning(seed=seed) for seed in range(6)]
    copy = again(clips[2], width, height, crf)
    hashes = [video_hash(clip) for clip in [*clips, copy]]
    assert distance(hashes[2], hashes[6]) <= NEAR
    assert near_duplicates(table(hashes)).tolist() == [-1] * 6 + [2]


def test_the_same_file_has_the_same_hash_and_one_byte_makes_another():
    assert exact_hash(b"video") == exact_hash(b"video")
    assert exact_hash(b"video") != exact_hash(b"vide0")
    assert len(exact_hash(b"")) == 64


def test_clips_of_one_frame_and_of_nothing_to_see_have_a_hash():
    assert len(video_hash(panning(1))) == BITS // 8
    black = np.zeros((3, 64, 64, 3), np.uint8)
    assert near_duplicates(table([video_hash(black), video_hash(still()), video_hash(black)])).tolist() == [-1, -1, 0]


def test_a_hash_is_of_the_middle_frame_of_each_quarter():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 255, (2, 9, 32, 32, 3), np.uint8)
    mixed = other.copy()
    mixed[[1, 3, 5, 7]] = one[[1, 3, 5, 7]]
    assert video_hash(mixed) == video_hash(one)
    for place in (1, 3, 5, 7):
        changed = one.copy()
        changed[place] = other[place]
        assert distance(video_hash(changed), video_hash(one)) > 16, "a quarter of the bits"


def test_the_first_match_is_found_whichever_band_finds_it():
    """The last hash shares its first band with the first hash alone, and its last band with the second one alone."""
    every, hashes = bands(), np.zeros((3, BITS), np.uint8)
    shared, own = set(every[0].tolist()), set(every[-1].tolist())
    hashes[2, [min(set(band.tolist()) - shared) for band in every[1:]]] = 1
    hashes[1] = hashes[2]
    hashes[1, [max(set(band.tolist()) - own) for band in every[:-1]]] ^= 1
    packed = np.packbits(hashes, axis=1)
    assert distance(packed[0].tobytes(), packed[1].tobytes()) > NEAR
    assert near_duplicates(packed).tolist() == all_pairs(packed) == [-1, -1, 0]


def all_pairs(hashes: np.ndarray) -> list[int]:
    found = []
    for number, one in enumerate(hashes):
        close = np.flatnonzero(np.bitwise_count(hashes[:number] ^ one).sum(axis=1) <= NEAR)
        found.append(int(close[0]) if len(close) else -1)
    return found


def flipped(one: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    bits = np.unpackbits(one)
    bits[rng.choice(BITS, count, replace=False)] ^= 1
    return np.packbits(bits)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=30))
def test_up_to_nine_bits_apart_the_answer_is_that_of_all_pairs(seed, copies):
    rng = np.random.default_rng(seed)
    hashes = list(rng.integers(0, 256, (31, 32), dtype=np.uint8))
    # Copies of originals only: copies of one may lie 18 bits apart, where a band in common is not certain.
    sources = set()
    for source, bits in copies:
        if source not in sources:
            sources.add(source)
            hashes.append(flipped(hashes[source], bits, rng))
    assert near_duplicates(np.array(hashes)).tolist() == all_pairs(np.array(hashes))


def test_sixteen_bits_apart_almost_all_are_found_and_none_beyond_the_limit():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (1000, 32), dtype=np.uint8)
    copies = np.array([flipped(one, 16, rng) for one in originals])
    strangers = np.array([flipped(one, NEAR + 1, rng) for one in originals])
    found = near_duplicates(np.concatenate([originals, copies]))[1000:]
    assert np.mean(found == np.arange(1000)) > 0.97
    assert (near_duplicates(np.concatenate([originals, strangers])) == -1).all()


def test_many_equal_hashes_take_no_time():
    hashes = np.zeros((200_000, 32), np.uint8)
    assert (near_duplicates(hashes)[1:] == 0).all()


def test_two_hashes_nine_bits_apart_share_a_band_for_sure():
    places = bands()
    for partition in (places[: len(places) // 2], places[len(places) // 2 :]):
        together = np.concatenate(partition)
        assert len(partition) == 10
        assert len(np.unique(together)) == len(together)
