"""Measure the order of data: the first batch of one of 1,024 ranks, and a whole epoch, counted.

python bench/order.py [samples ...]
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from videodiff.data.order.arithmetic import Mesh
from videodiff.data.order.buckets import Bucket, count_kinds, kinds_of
from videodiff.data.order.mixture import Dataset, Mixture

RANKS, SHARD, WINDOW = 1024, 1000, 64
BUCKETS = [Bucket(64, 512, 512, keep=0.5), Bucket(32, 256, 256, keep=0.8), Bucket(1, 256, 256)]
CLIPS = [1, 8, 128]
# Fits all, the last two, the last; and how many in a hundred do.
KINDS, SHARES = np.array([4, 6, 7]), [0.2, 0.5, 0.3]


def dataset(samples: int) -> Dataset:
    """Return the counts of a made manifest: shards of 500 to 1,500 samples, this many in all."""
    random = np.random.default_rng(0)
    sizes = random.multinomial(samples, random.dirichlet(np.full(samples // SHARD, 12.0)))
    return Dataset(random.multinomial(sizes, SHARES), KINDS)


def first_batch(samples: int, epochs: float) -> dict[str, float]:
    """Return seconds and memory of a process that knows the counts until its last rank has a batch."""
    data = dataset(samples)
    wall, cpu = time.perf_counter(), time.process_time()
    mixture = Mixture([data], BUCKETS, [clips * RANKS for clips in CLIPS], window=WINDOW)
    mixture.batch(int(epochs * mixture.epoch_steps), mesh=Mesh(RANKS - 1, RANKS))
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def epoch(samples: int) -> dict[str, float]:
    """Walk the first epoch batch by batch and raise unless every sample comes exactly once."""
    data = dataset(samples)
    mixture = Mixture([data], BUCKETS, [clips * RANKS for clips in CLIPS], window=WINDOW)
    number = np.concatenate([[0], np.cumsum(data.counts)])[:-1].reshape(data.counts.shape)
    seen, drawn, step = np.zeros(samples, dtype=bool), 0, 0
    # First and last step that reads from a shard: how many are open at once is what a cache has to hold.
    opened, closed = np.full(len(data.counts), -1), np.zeros(len(data.counts), dtype=int)
    wall, cpu = time.perf_counter(), time.process_time()
    # A bucket may be two batches behind its share, so the last sample comes some steps after an epoch's.
    while drawn < samples and step < 2 * mixture.epoch_steps + 99:
        batch = mixture.batch(step)
        shard, kind, member = (values[batch.epoch == 0] for values in (batch.shard, batch.kind, batch.member))
        seen[number[shard, np.searchsorted(KINDS, kind)] + member] = True
        drawn, step = drawn + len(shard), step + 1
        opened[shard[opened[shard] < 0]] = step
        closed[shard] = step
    if drawn != samples or not seen.all():
        raise SystemExit(f"{samples}: {drawn} draws reached {seen.sum()} samples, expected each once")
    took = {"epoch_s": time.perf_counter() - wall, "epoch_cpu_s": time.process_time() - cpu}
    reading = np.cumsum(np.bincount(opened, minlength=step + 2) - np.bincount(closed + 1, minlength=step + 2))
    return {"steps": step, **took, "shards_open": int(reading.max())}


def count(samples: int) -> dict[str, float]:
    """Sort samples into kinds shard by shard, as is done once for a manifest; columns of one shard stand for all."""
    random = np.random.default_rng(0)
    columns = random.integers(1, 200, SHARD), random.integers(200, 720, SHARD), random.integers(200, 1280, SHARD)
    cpu = time.process_time()
    count_kinds((kinds_of(BUCKETS, *columns) for _ in range(samples // SHARD)), leave_out=True)
    return {"count_cpu_s": time.process_time() - cpu}


def measure(samples: int) -> dict[str, Any]:
    """Return the figures of one size; each comes from a process of its own, so that memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        fresh = pool.apply(first_batch, (samples, 0.0))
        late = pool.apply(first_batch, (samples, 0.9))
        once = pool.apply(count, (samples,))
        whole = pool.apply(epoch, (samples,))
    return {
        "samples": samples,
        "ranks": RANKS,
        "first_batch_s": fresh["wall_s"],
        "first_batch_cpu_s": fresh["cpu_s"],
        "resume_batch_s": late["wall_s"],
        "resume_batch_cpu_s": late["cpu_s"],
        "peak_gib": max(fresh["peak_gib"], late["peak_gib"]),
        **once,
        **whole,
    }


def main() -> None:
    """Print a line for each size and write bench/out/order.json: the largest, and all under `sizes`."""
    sizes = [int(size) for size in sys.argv[1:]] or [10**6, 10**7, 10**8]
    found = []
    for samples in sizes:
        found.append(measure(samples))
        print("  ".join(f"{name} {value:.4g}" for name, value in found[-1].items()), flush=True)
    out = Path(__file__).parent / "out" / "order.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**found[-1], "sizes": found}, indent=2))


if __name__ == "__main__":
    main()
