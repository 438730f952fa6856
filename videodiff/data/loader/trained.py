"""The shapes and frame rates of a run, stored in its folder, so that sampling uses shapes that the model knows."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from videodiff.data.order.buckets import Bucket
from videodiff.data.order.curriculum import Stage
from videodiff.data.order.mixture import Curriculum
from videodiff.data.storage.files import write_whole

NAME = "trained.json"
# Rates within this ratio count as equal: 23.976 and 24.
NEAR, RATES = 1.01, 100


class Trained(NamedTuple):
    """A bucket of the stage that begins at step `first`: its shape, strides, and share of the stage's clips.

    `rates` maps frames a second after the stride to the share of clips, the most frequent first.
    """

    first: int
    frames: int
    height: int
    width: int
    strides: tuple[int, ...]
    share: float
    rates: dict[float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape `t h w`."""
        return self.frames, self.height, self.width

    @property
    def bucket(self) -> Bucket:
        """The shape as a bucket that takes every clip with enough frames."""
        return Bucket(self.frames, self.height, self.width, strides=self.strides)

    @property
    def rate(self) -> float | None:
        """The common rate of all clips, None if there are several or none is known."""
        if not self.rates or max(self.rates) > NEAR * min(self.rates):
            return None
        return next(iter(self.rates))


def trained_shapes(
    stages: Sequence[Stage], order: Curriculum, rates: Sequence[Sequence[Counter[float]]]
) -> list[Trained]:
    """Return every bucket of every stage that takes clips; `rates` counts the clips of each
    bucket by rate, for every dataset of the first stage, then of the next, as `order_of` expects counts.
    """
    left, found = iter(rates), []
    for stage, mixture in zip(stages, order.stages, strict=True):
        own = [next(left) for _ in stage.datasets]
        drawn = [
            [
                float(data.repeat * stream.samples[number])
                for data, stream in zip(mixture.datasets, mixture.streams, strict=True)
            ]
            for number in range(len(stage.buckets))
        ]
        total = sum(map(sum, drawn))
        for number, bucket in enumerate(stage.buckets):
            counts = [counted[number] for counted in own]
            shares = mix(counts, drawn[number])
            shape = bucket.frames, bucket.height, bucket.width
            found.append(Trained(stage.first, *shape, bucket.strides, sum(drawn[number]) / total, shares))
    return found


def mix(counts: Sequence[Counter[float]], drawn: Sequence[float]) -> dict[float, float]:
    """Return the share of each rate; `drawn` has the share of clips drawn from each dataset."""
    shares: Counter[float] = Counter()
    for counted, clips in zip(counts, drawn, strict=True):
        for rate, number in counted.items():
            shares[rate] += clips * number / (counted.total() * sum(drawn)) if clips else 0.0
    return {rate: share for rate, share in shares.most_common(RATES) if share}


def usual(trained: Sequence[Trained]) -> Trained:
    """Return the shape to sample in: the largest share of the last stage, pictures only if there are no clips."""
    last = [one for one in trained if one.first == trained[-1].first]
    return max([one for one in last if one.frames > 1] or last, key=lambda one: one.share)


def begun(trained: Sequence[Trained], step: int) -> list[Trained]:
    """Return the shapes of the stages that have begun after `step` steps of training."""
    return [one for one in trained if one.first < max(step, 1)]


def write_trained(folder: Path, trained: Sequence[Trained]) -> None:
    """Write the shapes into a run folder."""
    records = [one._asdict() | {"rates": {f"{rate:g}": share for rate, share in one.rates.items()}} for one in trained]
    write_whole(folder / NAME, json.dumps(records, indent=1).encode())


def read_trained(folder: Path) -> list[Trained] | None:
    """Return the shapes stored in a run folder, None if it has none; ValueError for a malformed file."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        found = [read_record(record) for record in json.loads(path.read_bytes())]
        if not found:
            raise ValueError("found no shape, expected at least one")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as the shapes of a run: {error}") from error
    return found


def read_record(record: dict[str, Any]) -> Trained:
    """Return one shape from its record in the file."""
    first, *shape = (int(record[name]) for name in ("first", "frames", "height", "width"))
    rates = {float(rate): float(share) for rate, share in record["rates"].items()}
    if not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise ValueError(f"rates: found {list(rates)}, expected frames a second")
    found = Trained(first, *shape, tuple(map(int, record["strides"])), float(record["share"]), rates)
    if not found.strides:
        raise ValueError("strides: found none, expected at least one")
    # Raises where sizes or strides are below 1.
    Bucket(found.frames, found.height, found.width, strides=found.strides)
    return found
