"""Measure steps of several buckets: with batches from the cost model, and with one batch size for all.

python bench/batches.py [rounds]

A step is forward and backward of the tiny denoiser. All take turns, round after round. Writes bench/out/batches.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

from videodiff.data.order.buckets import Bucket
from videodiff.data.storage.files import write_whole
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.planning.cost import Cost, batch_sizes
from videodiff.planning.flops import forward, network_of

BUCKETS = [Bucket(16, 64, 64), Bucket(16, 32, 32), Bucket(8, 32, 48), Bucket(1, 64, 64), Bucket(1, 32, 32)]
PATCH, WIDTH, DEPTH, AXES, WORDS, TOKENS = (1, 4, 4), 64, 6, ("space", "time"), 16, 8192


def cost(bucket: Bucket) -> Cost:
    """Return what a clip of a bucket costs."""
    t, s = bucket.tokens(PATCH)
    network = network_of(WIDTH, AXES, DEPTH, patch=3 * PATCH[1] * PATCH[2], words=WORDS, text_width=WIDTH)
    return Cost(forward(t, s, network).total, t * s)


def step(network: SpaceTimeTransformer, bucket: Bucket, size: int) -> float:
    """Return the seconds of one step."""
    z = torch.randn(size, 3, bucket.frames, bucket.height, bucket.width)
    text, mask = torch.randn(size, WORDS, WIDTH), torch.ones(size, WORDS, dtype=torch.bool)
    start = time.perf_counter()
    network(z, torch.rand(size, bucket.frames), text, mask, torch.full((size,), 8.0)).square().mean().backward()
    return time.perf_counter() - start


def main(rounds: int = 5) -> None:
    network = SpaceTimeTransformer(patch=PATCH, width=WIDTH, depth=DEPTH, heads=4, axes=AXES, text_width=WIDTH)
    sized = batch_sizes([cost(bucket) for bucket in BUCKETS], TOKENS, 1)
    equal = [min(sized)] * len(BUCKETS)
    plans = {"cost model": sized, "equal": equal}
    for bucket, size in zip(BUCKETS, sized, strict=True):
        step(network, bucket, size)
    times = {name: [[] for _ in BUCKETS] for name in plans}
    for _ in range(rounds):
        for name, sizes in plans.items():
            for number, (bucket, size) in enumerate(zip(BUCKETS, sizes, strict=True)):
                times[name][number].append(step(network, bucket, size))
    found = {name: [median(each) for each in rows] for name, rows in times.items()}
    print(f"{'bucket':>14}  {'clips':>5}  {'step':>8}  {'clips':>5}  {'step':>8}")
    for number, bucket in enumerate(BUCKETS):
        cells = (f"{sizes[number]:5d}  {found[name][number] * 1000:5.0f} ms" for name, sizes in plans.items())
        print(f"{bucket!s:>14}  " + "  ".join(cells))
    ratios = {name: max(rows) / min(rows) for name, rows in found.items()}
    print("longest by shortest step: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    path = Path(__file__).parent / "out" / "batches.json"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps({"ratios": ratios, "clips": plans, "seconds": found}, indent=1).encode())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
