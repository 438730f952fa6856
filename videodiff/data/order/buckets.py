"""Buckets: which shape a sample is trained in.

Samples that fit the same buckets have the same kind. A kind is a bit mask of buckets. The order needs only the number
of samples of each kind in each shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from videodiff.data.order.arithmetic import draw
from videodiff.words import count_text

UNIT = 2**20
# Bits of a kind: an int64 without its sign.
MOST = 63


@dataclass(frozen=True)
class Bucket:
    """Clips of `frames` frames of height x width; an image is a clip of one frame.

    `keep`: the share that the bucket takes of the fitting samples that reach it, in (0, 1]. The others go on to the
    next bucket that they fit; the last bucket that they fit takes all. `strides`: the allowed distances between frames.
    `crop`: the largest share of the picture that may be cut away to reach the aspect ratio, in [0, 1).
    """

    frames: int
    height: int
    width: int
    keep: float = 1.0
    strides: tuple[int, ...] = (1,)
    crop: float = 0.5

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width, *self.strides) < 1 or not (0 < self.keep <= 1 > self.crop >= 0):
            raise ValueError(f"bucket: found {self!r}, expected sizes >= 1, keep in (0, 1], crop in [0, 1)")

    def __str__(self) -> str:
        return f"{self.frames} x {self.height} x {self.width}"

    @property
    def span(self) -> int:
        """The number of frames that a sample needs at the smallest stride."""
        return (self.frames - 1) * min(self.strides) + 1

    def long_enough(self, frames: np.ndarray) -> np.ndarray:
        """Tell which samples have enough frames."""
        return np.asarray(frames) >= self.span

    def fits(self, frames: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Tell which samples fill it: long enough, never enlarged, not cropped too much."""
        aspect = (np.asarray(width) * self.height) / (np.asarray(height) * self.width)
        kept = np.minimum(aspect, 1 / aspect)
        return self.long_enough(frames) & (height >= self.height) & (width >= self.width) & (kept >= 1 - self.crop)

    def usable(self, frames: int) -> list[int]:
        """Return the strides that fit a sample; one that is long enough has some."""
        return [stride for stride in self.strides if (self.frames - 1) * stride < frames]

    def first_window(self, frames: int) -> range:
        """Return the frames to take without a random draw: from frame 0, at the first stride that fits."""
        stride = self.usable(frames)[0]
        return range(0, (self.frames - 1) * stride + 1, stride)

    def window(self, frames: int, *key: int) -> range:
        """Return the frames to take from a sample: the key draws a stride that fits, and a start."""
        strides = self.usable(frames)
        stride = strides[draw(len(strides), *key, 2)]
        span = (self.frames - 1) * stride + 1
        start = draw(frames - span + 1, *key, 0)
        return range(start, start + span, stride)

    def tokens(self, patch: Sequence[int]) -> tuple[int, int]:
        """Return tokens in time and in space; `patch` is (t, h, w) of a token in frames and pixels, codec included."""
        return -(-self.frames // patch[0]), (self.height // patch[1]) * (self.width // patch[2])


def kinds_of(
    buckets: Sequence[Bucket], frames: np.ndarray, height: np.ndarray | None = None, width: np.ndarray | None = None
) -> np.ndarray:
    """Return the kind of each sample, int64: bit i tells whether it fits bucket i (at most `MOST`); 0 fits none.

    Without height and width the number of frames alone decides.
    """
    fits = [bucket.long_enough(frames) if height is None else bucket.fits(frames, height, width) for bucket in buckets]
    return mask(fits)


def mask(fits: Sequence[np.ndarray]) -> np.ndarray:
    """Return one int64 for each sample: bit i is `fits[i]` of the sample; ValueError for more bits than it has."""
    if len(fits) > MOST:
        raise ValueError(f"buckets: found {len(fits)} in one stage, expected at most {MOST}")
    return np.sum([fit.astype(np.int64) << bit for bit, fit in enumerate(fits)], axis=0, dtype=np.int64)


def misfits(
    buckets: Sequence[Bucket], frames: np.ndarray, height: np.ndarray | None = None, width: np.ndarray | None = None
) -> dict[str, int]:
    """Count the samples that fit no bucket, by reason: the first check that no bucket passes.

    Without height and width only the number of frames can be a reason.
    """
    if not len(frames):
        return {}
    long = np.stack([bucket.long_enough(frames) for bucket in buckets])
    if height is None or width is None:
        large = fits = long
    else:
        large = long & np.stack([(height >= bucket.height) & (width >= bucket.width) for bucket in buckets])
        fits = np.stack([bucket.fits(frames, height, width) for bucket in buckets])
    counts = {
        "too few frames": int((~long.any(0)).sum()),
        "too small": int((long.any(0) & ~large.any(0)).sum()),
        "cropped too much": int((large.any(0) & ~fits.any(0)).sum()),
    }
    return {reason: count for reason, count in counts.items() if count}


def count_kinds(shards: Iterable[np.ndarray], leave_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of samples, `shards kinds`, and the kinds; `shards` yields the kinds of a shard's samples.

    One shard is held at a time. Samples that fit no bucket are an error unless they may be left out.
    """
    found = [np.unique(kinds, return_counts=True) for kinds in shards]
    kinds, column = np.unique(np.concatenate([kinds for kinds, _ in found]), return_inverse=True)
    row = np.repeat(np.arange(len(found)), [len(kinds) for kinds, _ in found])
    counts = np.zeros((len(found), len(kinds)), dtype=np.int64)
    counts[row, column] = np.concatenate([count for _, count in found])
    if none := int(counts[:, kinds == 0].sum()):
        if not leave_out:
            raise ValueError(
                f"buckets: found {none} of {count_text(counts.sum(), 'sample')} that fit no bucket, expected none"
            )
        counts, kinds = counts[:, kinds > 0], kinds[kinds > 0]
    return counts, kinds


def cascade(arriving: np.ndarray, kind: int, buckets: Sequence[Bucket]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield each bucket that a kind fits, how many samples of each shard it takes, and how many were taken before.

    `arriving` counts the samples of the kind in each shard. A bucket takes its share `keep` of the running total. The
    total taken is exact to half a sample after every shard, and the same in every epoch.
    """
    fitting = [i for i in range(len(buckets)) if kind >> i & 1]
    before = np.zeros_like(arriving)
    for i in fitting:
        keep = UNIT if i == fitting[-1] else round(buckets[i].keep * UNIT)
        taken = np.diff((np.cumsum(arriving - before) * keep + UNIT // 2) // UNIT, prepend=0)
        yield i, taken, before
        before = before + taken
