"""What a run trains on, stage by stage: shapes, clips a step, shares of the datasets; and the order that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from videodiff.data.order.arithmetic import absorb
from videodiff.data.order.buckets import Bucket
from videodiff.data.order.mixture import Curriculum, Dataset, Mixture, repeats
from videodiff.words import count_text

BUCKET_KEYS = [*(field.name for field in fields(Bucket)), "global_batch"]
STAGE_KEYS = ["until", "buckets", "weights"]


class Stage(NamedTuple):
    """A stage from step `first` on: buckets, their global batch sizes, and the numbers of its datasets.

    `weights` are the shares of these datasets in the samples drawn; None: the repeats of each dataset decide.
    """

    first: int
    seed: int
    buckets: list[Bucket]
    batch_sizes: list[int]
    datasets: list[int]
    weights: list[float] | None


def read_stages(
    stages: Sequence[Mapping[str, Any]],
    datasets: int,
    seed: int,
    stride: int,
    batches: Callable[[Sequence[Bucket]], Sequence[int]],
) -> list[Stage]:
    """Return the stages of a run from their configuration, mappings of `STAGE_KEYS`; `datasets` is a count.

    A stage ends before step `until`; the last stage never ends (None). `stride` is the default of a bucket without
    strides. `batches` gives the default global batch sizes for the buckets of a stage.
    """
    for number, stage in enumerate(stages):
        check_keys(f"data.stages[{number}]", stage, STAGE_KEYS)
    ends = [stage.get("until") for stage in stages]
    for number, (before, end) in enumerate(pairwise([0, *ends])):
        last = number == len(ends) - 1
        if (end is not None) if last else (not isinstance(end, int) or end <= before):
            expected = "null, as it is the last stage" if last else f"a step after {before}; only the last has null"
            raise ValueError(f"data.stages[{number}].until: found {end}, expected {expected}")
    found = []
    for number, (first, stage) in enumerate(zip([0, *ends], stages, strict=False)):
        where = f"data.stages[{number}]" if len(stages) > 1 else "data"
        buckets, given = read_buckets(f"{where}.buckets", stage.get("buckets") or (), stride)
        sizes = batches(buckets)
        chosen, weights = read_weights(f"{where}.weights", stage.get("weights"), datasets)
        # A stage with the seed of another would begin with the same samples.
        own = int(absorb(seed, number) >> np.uint64(1)) if number else seed
        sizes = [mine or size for mine, size in zip(given, sizes, strict=True)]
        found.append(Stage(first, own, buckets, sizes, chosen, weights))
    return found


def read_buckets(where: str, rules: Sequence[Mapping[str, Any]], stride: int) -> tuple[list[Bucket], list[int | None]]:
    """Return the buckets, and the configured global batch size of each (None: not configured)."""
    if not rules:
        raise ValueError(f"{where}: found no bucket, expected at least one")
    for number, rule in enumerate(rules):
        check_keys(f"{where}[{number}]", rule, BUCKET_KEYS, needed=("frames", "height", "width"))
    buckets = [
        Bucket(**{name: value for name, value in rule.items() if name != "global_batch"}
               | {"strides": tuple(rule.get("strides", (stride,)))})
        for rule in rules
    ]  # fmt: skip
    for number, bucket in enumerate(buckets):
        if bucket in buckets[:number]:
            raise ValueError(f"{where}[{number}]: found {bucket} a second time, expected each bucket once")
    return buckets, [rule.get("global_batch") for rule in rules]


def read_weights(where: str, weights: Sequence[float] | None, datasets: int) -> tuple[list[int], list[float] | None]:
    """Return the numbers of the datasets that have a weight above 0, and these weights; None: all, without weights."""
    if weights is None:
        return list(range(datasets)), None
    if len(weights) != datasets or min(weights) < 0 or not any(weights):
        raise ValueError(
            f"{where}: found {list(weights)}, expected {count_text(datasets, 'number')}, one for root and each of "
            "more, 0 or larger"
        )
    chosen = [number for number, weight in enumerate(weights) if weight]
    return chosen, [weights[number] for number in chosen]


def check_keys(where: str, found: Mapping[str, Any], known: Sequence[str], needed: Sequence[str] = ()) -> None:
    """Raise if a mapping has an unknown key or lacks a needed one."""
    for name in found:
        if name not in known:
            raise ValueError(f"{where}.{name}: found no such key, expected some of {', '.join(known)}")
    for name in needed:
        if name not in found:
            raise ValueError(f"{where}: found {', '.join(map(str, found)) or 'nothing'}, expected {name} too")


def order_of(
    stages: Sequence[Stage],
    counts: Sequence[tuple[np.ndarray, np.ndarray]],
    often: Sequence[Fraction],
    window: int | None,
) -> Curriculum:
    """Return the order of a run.

    `counts` has (samples by shard and kind, kinds) for each dataset of the first stage, then of the next. `often` has
    the repeats of each dataset; a stage without weights uses them.
    """
    left, mixtures = iter(counts), []
    for stage in stages:
        own = [next(left) for _ in stage.datasets]
        times = [often[number] for number in stage.datasets]
        if stage.weights is not None:
            samples = [int(counted.sum()) for counted, _ in own]
            if not all(samples):
                empty = samples.index(0)
                raise ValueError(
                    f"data.weights: found {stage.weights[empty]} for dataset {stage.datasets[empty]} from step "
                    f"{stage.first} on, expected 0: none of its samples fits a bucket there"
                )
            times = repeats(stage.weights, samples)
        datasets = [Dataset(*counted, time) for counted, time in zip(own, times, strict=True)]
        mixtures.append(Mixture(datasets, stage.buckets, stage.batch_sizes, stage.seed, window))
    return Curriculum([(stage.first, mixture) for stage, mixture in zip(stages, mixtures, strict=True)])
