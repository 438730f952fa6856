"""Duplicates: exact by sha-256 of the file; near ones by a perceptual hash that survives scaling and re-encoding."""

from __future__ import annotations

import hashlib

import numpy as np

# 4 frames of 64 bits. Each of two partitions divides the 256 bits into 10 bands of 24 and a rest. Two hashes share a
# band always if they differ in 9 bits or fewer, with 99 % in 16 bits, 86 % in 24, and one in a million if unrelated.
FRAMES, BITS, BAND, PARTITIONS = 4, 256, 24, 2
NEAR = 24


def exact_hash(video: bytes) -> str:
    """Return the sha-256 of a file, as 64 hexadecimal digits."""
    return hashlib.sha256(video).hexdigest()


def video_hash(frames: np.ndarray) -> bytes:
    """Return a hash of 32 bytes of uint8 `t h w c`; few of its bits change when a clip is scaled or encoded again.

    For the middle frame of each quarter of the clip: the signs of the 64 lowest frequencies of the luma relative to
    their median (pHash, Zauner 2010).
    """
    places = (np.arange(FRAMES) + 0.5) / FRAMES * (len(frames) - 1)
    bits = [frame_bits(frames[place]) for place in places.round().astype(int)]
    return np.packbits(np.concatenate(bits)).tobytes()


def frame_bits(frame: np.ndarray) -> np.ndarray:
    """Return 64 booleans."""
    # Packing imports this file, and must work in the plain installation, which has no OpenCV.
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    waves = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))[:8, :8].ravel()
    return waves > np.median(waves[1:])


def near_duplicates(hashes: np.ndarray, near: int = NEAR) -> np.ndarray:
    """Return for each hash the index of the first earlier hash that differs in at most `near` bits, or -1.

    hashes: uint8 `n 32`, preferred clips first. Only hashes that share a band are compared, so the work is nearly
    linear in n: with a hundred million clips six unrelated ones share a bucket. Bands are independent and may be
    distributed over machines: the smallest index that any of them finds is the result.
    """
    # Merge equal hashes (such as of black clips) first, or each would be compared with every other.
    _, once, which = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    numbers = np.sort(once)
    distinct, rank = hashes[numbers], np.searchsorted(numbers, once[which])
    first = np.arange(len(distinct))
    for band in bands():
        match_band(distinct, band, first, near)
    found = numbers[first[rank]]
    return np.where(found < np.arange(len(hashes)), found, -1)


def match_band(hashes: np.ndarray, band: np.ndarray, first: np.ndarray, near: int) -> None:
    """Lower `first` to the earliest match of each hash among the hashes with equal bits in this band."""
    keys = np.packbits(np.unpackbits(hashes, axis=1)[:, band], axis=1).astype(np.int64) @ (65536, 256, 1)
    order = np.argsort(keys, kind="stable")
    keys, at, step = keys[order], np.arange(len(order)), 1
    while True:
        at = at[at + step < len(order)]
        at = at[keys[at] == keys[at + step]]
        if not len(at):
            return
        earlier, later = order[at], order[at + step]
        close = np.bitwise_count(hashes[earlier] ^ hashes[later]).sum(axis=1) <= near
        np.minimum.at(first, later[close], earlier[close])
        step += 1


def bands() -> list[np.ndarray]:
    """Return the indices of the bits in each band."""
    shuffles = [np.random.default_rng(seed).permutation(BITS) for seed in range(PARTITIONS)]
    return [order[start : start + BAND] for order in shuffles for start in range(0, BITS - BAND + 1, BAND)]
