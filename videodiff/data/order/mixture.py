"""Global batches as a pure function of (counts of samples in shards, buckets, mixture, seed, step).

Each step has a bucket, and its batch is the next stretch of the bucket's endless stream. The offsets of the stream are
dealt to the datasets. An offset in a dataset's own stream is an epoch and a place in it, and a place is a sample of a
shard. Each of these mappings is arithmetic on single integers, so there is nothing to fast-forward: docs/streaming.md.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from videodiff.data.order.arithmetic import ALONE, Mesh, absorb, deal, draw, parts, permute, positions
from videodiff.data.order.buckets import Bucket, cascade
from videodiff.words import count_text

# What is permuted, as a part of the key.
SHARDS, WINDOW, KIND = range(3)
EPOCHS_KEPT = 4


class Dataset(NamedTuple):
    """The counts of samples, `shards kinds`; the kinds; how often each sample comes in an epoch."""

    counts: np.ndarray
    kinds: np.ndarray
    repeat: Fraction = Fraction(1)


class Batch(NamedTuple):
    """The clips that one rank takes at once: a shape, and the position in the global batch and the sample of each clip.

    `member` is the index of a sample among the samples of its `kind` in its `shard`, in the order of the shard. All
    arrays have shape `b`.
    """

    step: int
    bucket: Bucket
    position: np.ndarray
    dataset: np.ndarray
    epoch: np.ndarray
    shard: np.ndarray
    kind: np.ndarray
    member: np.ndarray


class Pool(NamedTuple):
    """The samples of one bucket in one epoch as a line of pieces, (shard, kind) after (shard, kind).

    A place is an index into this line. start: place of each piece; before: members of its kind that earlier buckets
    took; edges: places where shuffle windows begin and end; columns: the kinds.
    """

    start: np.ndarray
    before: np.ndarray
    edges: np.ndarray
    columns: np.ndarray


class Shuffled:
    """The endless streams of a dataset, one a bucket: every epoch has an order of its own.

    A shuffle window is `window` neighbouring shards in the order of the epoch, which are shuffled together; None: all
    shards. An offset counts the samples of a stream through all epochs. The pools of the last epochs stay in memory: a
    few integers for each shard and kind.
    """

    def __init__(self, dataset: Dataset, buckets: Sequence[Bucket], window: int | None, *key: int) -> None:
        self.counts, self.kinds, self.buckets, self.key = dataset.counts, dataset.kinds, buckets, key
        self.window, self.epochs = window or len(self.counts), {}
        self.samples = [0] * len(buckets)
        for total, kind in zip(self.counts.sum(0), self.kinds, strict=True):
            for bucket, taken, _ in cascade(np.array([total]), kind, buckets):
                self.samples[bucket] += int(taken[0])

    def at(self, bucket: int, offset: np.ndarray) -> np.ndarray:
        """Return epoch, shard, kind and member, `4 b`, at these offsets of a bucket's stream."""
        epoch, place = np.divmod(offset, self.samples[bucket])
        found = np.stack([epoch] * 4)
        for number in np.unique(epoch).tolist():
            here = epoch == number
            found[1:, here] = self.locate(bucket, number, place[here])
        return found

    def shards(self, bucket: int, start: int, stop: int) -> np.ndarray:
        """Return the shards of the shuffle windows from offset `start` to `stop`, and of the next window."""
        each = -(-len(self.counts) // self.window)
        windows = range(self.window_of(bucket, start), self.window_of(bucket, stop) + 2)
        lines = ((self.epoch(number // each)[0], self.window * (number % each)) for number in windows)
        return np.unique(np.concatenate([line[first : first + self.window] for line, first in lines]))

    def window_of(self, bucket: int, offset: int) -> int:
        """Return the index of the shuffle window at an offset of a bucket's stream, counted through all epochs."""
        number, place = divmod(offset, self.samples[bucket])
        edges = self.epoch(number)[1][bucket].edges
        return number * (len(edges) - 1) + int(np.searchsorted(edges, place, side="right")) - 1

    def locate(self, bucket: int, epoch: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return shard, kind and member at these places of a bucket's epoch."""
        line, pools = self.epoch(epoch)
        start, before, edges, columns = pools[bucket]
        window = np.searchsorted(edges, place, side="right") - 1
        begin, size = edges[window], edges[window + 1] - edges[window]
        place = begin + permute(place - begin, size, absorb(*self.key, epoch, WINDOW, bucket, window))
        piece = np.searchsorted(start, place, side="right") - 1
        shard, column = line[piece // len(columns)], columns[piece % len(columns)]
        # The members of a kind are shuffled too. The first members go to the first bucket, the next to the second.
        taken, kind = before[piece] + place - start[piece], self.kinds[column]
        return shard, kind, permute(taken, self.counts[shard, column], absorb(*self.key, epoch, KIND, shard, kind))

    def epoch(self, number: int) -> tuple[np.ndarray, list[Pool]]:
        """Return the shards in the order of an epoch, and the pool of each bucket."""
        if number not in self.epochs:
            line = np.arange(len(self.counts))
            line = permute(line, len(line), absorb(*self.key, number, SHARDS))
            pieces = [[] for _ in self.buckets]
            for column, kind in enumerate(self.kinds):
                for bucket, taken, before in cascade(self.counts[line, column], kind, self.buckets):
                    pieces[bucket].append((column, taken, before))
            while len(self.epochs) >= EPOCHS_KEPT:
                del self.epochs[next(iter(self.epochs))]
            self.epochs[number] = line, [pool(found, self.window) if found else None for found in pieces]
        return self.epochs[number]


def pool(found: list[tuple[int, np.ndarray, np.ndarray]], window: int) -> Pool:
    """Join the samples that a bucket takes, shard by shard; `found` has (column, taken, taken before) for each kind."""
    columns, taken, before = (np.stack(each, axis=-1) for each in zip(*found, strict=True))
    start = np.concatenate([[0], np.cumsum(taken)])
    edges = np.append(np.arange(0, len(taken), window), len(taken)) * len(columns)
    return Pool(start[:-1], before.ravel(), start[edges], columns)


class Mixture:
    """Datasets, buckets with their global batch sizes, and a seed: they determine an endless sequence of steps.

    Each sample comes once an epoch, or `repeat` times where a dataset says so; a batch may hold the end of one epoch
    and the beginning of the next. In `epoch_steps` steps every bucket has had its share to within two batches.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        buckets: Sequence[Bucket],
        batch_sizes: Sequence[int],
        seed: int = 0,
        window: int | None = None,
    ) -> None:
        if not datasets or not buckets or len(buckets) != len(batch_sizes) or min(batch_sizes) < 1:
            raise ValueError(
                f"mixture: found {count_text(len(datasets), 'dataset')} and global batches {list(batch_sizes)} for "
                f"{len(buckets)} buckets, expected datasets, and a batch of at least 1 for each bucket"
            )
        if window is not None and window < 1:
            raise ValueError(f"window: found {window}, expected at least one shard, or null for all")
        self.datasets, self.buckets, self.batch_sizes = list(datasets), list(buckets), [int(n) for n in batch_sizes]
        for data in datasets:
            if data.repeat <= 0 or data.counts.shape[1:] != data.kinds.shape:
                raise ValueError(
                    f"mixture: found repeat {data.repeat} and counts {data.counts.shape} for "
                    f"{count_text(len(data.kinds), 'kind')}, expected a repeat above 0 and counts by shard and kind"
                )
        self.seed, self.window = seed, window
        self.streams = [Shuffled(data, self.buckets, window, seed, i) for i, data in enumerate(datasets)]
        # Samples that each dataset brings to each bucket in an epoch of the mixture.
        by_dataset = [[data.repeat * n for n in s.samples] for data, s in zip(datasets, self.streams, strict=True)]
        shares = list(zip(*by_dataset, strict=True))
        for bucket, share in zip(buckets, shares, strict=True):
            if not any(share):
                raise ValueError(
                    f"bucket {bucket}: found no sample that falls into it, expected at least one (a bucket before it "
                    f"in the list takes all that fits it, or less by its keep, for example keep: 0.5)"
                )
        steps = [sum(share) / size for share, size in zip(shares, batch_sizes, strict=True)]
        self.epoch_steps, self.turns, self.shares = sum(steps), parts(steps), [parts(share) for share in shares]

    def bucket_of(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and how many steps it had before."""
        if step < 0:
            raise ValueError(f"order: found step {step}, expected at least 0")
        bucket, before = deal(step, self.turns)
        return int(bucket), int(before)

    def batch(self, step: int, micro: int = 0, accumulate: int = 1, mesh: Mesh = ALONE) -> Batch:
        """Return the clips of a rank in micro-batch `micro` of `accumulate`; by default the whole global batch."""
        bucket, before = self.bucket_of(step)
        size = self.batch_sizes[bucket]
        position = positions(size, micro, accumulate, mesh)
        return self.pick(step, bucket, before * size + position, position)

    def stand_in(self, step: int, position: int, attempt: int) -> Batch:
        """Return a replacement for an unreadable clip, from up to about an epoch ahead in the bucket's stream."""
        bucket, before = self.bucket_of(step)
        epoch = sum(stream.samples[bucket] for stream in self.streams)
        ahead, own = 1 + draw(epoch, self.seed, step, position, attempt), np.array([position])
        return self.pick(step, bucket, before * self.batch_sizes[bucket] + own + ahead, own)

    def upcoming(self, step: int) -> list[np.ndarray]:
        """Return for each dataset the shards that the bucket of a step reads in its next step, and soon after."""
        bucket, before = self.bucket_of(step)
        size, shares = self.batch_sizes[bucket], self.shares[bucket]
        # Each dataset's offset in its own stream, to within two.
        begin, end = ([(before + more) * size * share // sum(shares) for share in shares] for more in (1, 2))
        found = zip(self.streams, begin, end, shares, strict=True)
        return [stream.shards(bucket, max(b - 2, 0), e) if share else np.arange(0) for stream, b, e, share in found]

    def open_shards(self) -> list[int]:
        """Return about how many shards of each dataset two steps of every bucket read: the size of a cache."""
        totals = []
        for number, stream in enumerate(self.streams):
            ends = [2 * n * share[number] // sum(share) for n, share in zip(self.batch_sizes, self.shares, strict=True)]
            held = sum(len(stream.shards(i, 0, end)) for i, end in enumerate(ends) if self.shares[i][number])
            totals.append(min(held, len(stream.counts)))
        return totals

    def pick(self, step: int, bucket: int, offset: np.ndarray, position: np.ndarray) -> Batch:
        """Return the clips at these offsets of a bucket's stream, for these positions in the global batch."""
        dataset, own = deal(offset, self.shares[bucket])
        found = np.empty((4, len(offset)), dtype=np.int64)
        for number in np.unique(dataset).tolist():
            here = dataset == number
            found[:, here] = self.streams[number].at(bucket, own[here])
        return Batch(step, self.buckets[bucket], position, dataset, *found)

    def identity(self) -> dict[str, Any]:
        """Return, as plain values, everything that decides which batch a step gets."""
        digest = hashlib.sha256()
        for data in self.datasets:
            for numbers in (data.counts.shape, data.counts, data.kinds):
                digest.update(np.asarray(numbers, dtype="<i8").tobytes())
        return {
            "seed": self.seed,
            "window": self.window,
            "buckets": [repr(bucket) for bucket in self.buckets],
            "batch_sizes": self.batch_sizes,
            "repeats": [str(data.repeat) for data in self.datasets],
            "fingerprint": digest.hexdigest(),
        }


class Curriculum:
    """Mixtures one after another, each from its first step on: stages of resolution, length and data.

    A stage begins at the start of an epoch of its own, under a seed of its own: with the seed of another it would
    begin with the same samples. Datasets are numbered through all stages: the first dataset of a stage follows the last
    dataset of the stage before.
    """

    def __init__(self, stages: Sequence[tuple[int, Mixture]]) -> None:
        self.first, self.stages = [step for step, _ in stages], [mixture for _, mixture in stages]
        seeds = [mixture.seed for mixture in self.stages]
        if self.first[:1] != [0] or sorted(set(self.first)) != self.first or len(set(seeds)) != len(seeds):
            raise ValueError(
                f"curriculum: found first steps {self.first} and seeds {seeds}, expected rising steps from 0 and "
                "different seeds"
            )
        self.batch_sizes = [size for mixture in self.stages for size in mixture.batch_sizes]
        self.before = [0, *itertools.accumulate(len(mixture.datasets) for mixture in self.stages)]

    def stage(self, step: int) -> int:
        """Return the number of the stage of a step."""
        return max(0, bisect.bisect_right(self.first, step) - 1)

    def batch(self, step: int, micro: int = 0, accumulate: int = 1, mesh: Mesh = ALONE) -> Batch:
        """Return what a rank takes in a micro-batch, as `Mixture.batch`."""
        stage = self.stage(step)
        return self.placed(stage, self.stages[stage].batch(step - self.first[stage], micro, accumulate, mesh))

    def stand_in(self, step: int, position: int, attempt: int) -> Batch:
        """Return a clip of the same stage for one that cannot be read, as `Mixture.stand_in`."""
        stage = self.stage(step)
        return self.placed(stage, self.stages[stage].stand_in(step - self.first[stage], position, attempt))

    def upcoming(self, step: int) -> list[np.ndarray]:
        """Return for each dataset of each stage the shards that it reads next, as `Mixture.upcoming`."""
        stage, found = self.stage(step), [np.arange(0) for _ in range(self.before[-1])]
        found[self.before[stage] : self.before[stage + 1]] = self.stages[stage].upcoming(step - self.first[stage])
        return found

    def open_shards(self) -> list[int]:
        """Return for each dataset of each stage how many shards are read at once, as `Mixture.open_shards`."""
        return [shards for mixture in self.stages for shards in mixture.open_shards()]

    def placed(self, stage: int, batch: Batch) -> Batch:
        """Return the batch of a stage with the step and the dataset indices of the whole curriculum."""
        return batch._replace(step=self.first[stage] + batch.step, dataset=self.before[stage] + batch.dataset)

    def begun(self, step: int) -> int:
        """Return how many stages have begun before this step, at least one."""
        return bisect.bisect_left(self.first, max(step, 1))

    def identity(self, step: int) -> dict[str, Any]:
        """Return, as plain values, everything that decides the batches of the steps before this one."""
        begun = self.begun(step)
        found: dict[str, Any] = {"stages": self.first[:begun]}
        for first, stage in zip(self.first[:begun], self.stages[:begun], strict=True):
            found |= {f"stage_{first}.{name}" if first else name: value for name, value in stage.identity().items()}
        return found


def repeats(weights: Sequence[float], samples: Sequence[int]) -> list[Fraction]:
    """Return how often each sample of each dataset comes in an epoch.

    An epoch draws as many samples as all datasets have together.
    `weights` are shares of the samples drawn, in any unit. Decimals are exact as written.
    """
    shares = [Fraction(str(weight)) for weight in weights]
    if min(shares) <= 0 or len(weights) != len(samples):
        raise ValueError(
            f"weights: found {list(weights)} for {count_text(len(samples), 'dataset')}, expected one above 0 for each"
        )
    return [share / sum(shares) * sum(samples) / count for share, count in zip(shares, samples, strict=True)]
