"""Decode for a long time: does a worker's memory grow, and does a run over damaged tars end, whatever is killed?

python bench/soak_loader.py [clips [damaged runs]]

Real clips and the real decoder; the tests do the same with a stand-in codec that also hangs and aborts.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from videodiff.data.loader.quarantine import Quarantine, SampleId
from videodiff.data.loader.workers import Workers
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter, clip_sample, read_sample
from videodiff.data.video.decode import decode_into, probe
from videodiff.data.video.encode import encode

CLIPS, FRAMES, SIZE, BATCH, PROCESSES = 24, 16, 96, 8, 2
SHAPE = (FRAMES, SIZE, SIZE, 3)


def write(root: Path) -> list[dict[str, Any]]:
    """Write a dataset of clips of 48 frames in shards of a few, and return its rows."""
    with ShardWriter(root, shard_bytes=2**18) as writer:
        for number in range(CLIPS):
            random = np.random.default_rng(number)
            base = random.integers(0, 256, (12, 12 + 48, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            video = encode(np.stack([base[:, t : t + SIZE] for t in range(48)]), 24.0)
            writer.add(f"{number:05d}", *clip_sample(video, probe(video), [f"texture {number}"]))
    manifest = Manifest.load(root)
    return [manifest.row(index) for index in range(len(manifest))]


class Window(NamedTuple):
    """Some frames of a clip."""

    order: tuple[int, int]
    sample: SampleId
    shape: tuple[int, ...]
    source: tuple[str, dict[str, Any], int]


def read_clip(window: Window, out: np.ndarray) -> int:
    """Read a window of a clip; return the memory of this process in bytes."""
    root, row, start = window.source
    members = read_sample(root, row, {"mp4"})
    decode_into(out, members["mp4"], range(start, start + FRAMES))
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def window(root: Path, rows: list[dict[str, Any]], order: tuple[int, int], number: int) -> Window:
    row = rows[number % CLIPS]
    sample = SampleId(row["shard"], row["key"], row["offset"])
    return Window(order, sample, SHAPE, (str(root), row, number * 7 % (48 - FRAMES)))


def batches(root: Path, rows: list[dict[str, Any]], clips: int) -> Iterator[list[Window]]:
    """Yield batches over the clips, round and round."""
    for step in range(clips // BATCH):
        yield [window(root, rows, (step, place), step * BATCH + place) for place in range(BATCH)]


def memory(root: Path, rows: list[dict[str, Any]], clips: int) -> None:
    """Print by how many bytes a clip the workers and this process grow, after a third for warming up."""
    with Workers(read_clip, PROCESSES, BATCH * int(np.prod(SHAPE)), lambda *_: None, Quarantine(budget=0)) as workers:
        steps, theirs, own = [], [], []
        for step, batch in enumerate(workers.batches(batches(root, rows, clips))):
            steps.append(step * BATCH)
            theirs.append(max(batch.rest))
            own.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            del batch
    warm = len(steps) // 3
    for name, sizes, share in [("worker", theirs, PROCESSES), ("parent", own, 1)]:
        slope = np.polyfit(steps[warm:], sizes[warm:], 1)[0] * share
        print(f"{name}: {sizes[-1] / 2**20:.0f} MiB, {slope:+.0f} bytes a clip over {clips}", flush=True)
        if slope > 1024:
            raise SystemExit(f"{name}: found a growth of {slope:.0f} bytes a clip, expected at most 1024")


def damaged(root: Path, rows: list[dict[str, Any]], runs: int) -> None:
    """Run over damaged tars while workers are killed; each run must end, with equal results of one worker and more."""
    whole = {path: path.read_bytes() for path in root.glob("*.tar")}
    slot, lost = BATCH * int(np.prod(SHAPE)), 0

    def stand_in(asked: Window, attempt: int) -> Window:
        return window(root, rows, asked.order, asked.order[0] * 5 + asked.order[1] + 7 * attempt)

    with (
        Workers(read_clip, 1, slot, stand_in, Quarantine()) as one,
        Workers(read_clip, PROCESSES, slot, stand_in, Quarantine()) as many,
    ):
        for seed in range(runs):
            dice = random.Random(seed)
            for path, data in whole.items():
                spoilt = bytearray(data)
                for _ in range(dice.randrange(30)):
                    spoilt[dice.randrange(len(spoilt))] ^= 1 << dice.randrange(8)
                path.write_bytes(spoilt[: dice.randrange(len(spoilt)) if dice.random() < 0.2 else None])
            results = []
            for workers in (one, many):
                workers.quarantine, seen, fatal = Quarantine(), [], dice.randrange(8)
                for step, batch in enumerate(workers.batches(batches(root, rows, 4 * BATCH))):
                    seen.append([one.sample.key for one in batch.tasks])
                    # Once: two kills may hit one clip, and twice is no accident.
                    if step == fatal:
                        os.kill(dice.choice(workers.pool).process.pid, signal.SIGKILL)
                    del batch
                results.append((seen, sorted(workers.quarantine.losses)))
            if results[0] != results[1]:
                raise SystemExit(f"run {seed}: found {results[1]}, expected {results[0]} as with one worker")
            lost += len(results[0][1])
    print(f"{runs} damaged runs ended, each alike with 1 and {PROCESSES} workers; {lost} bad samples named", flush=True)


def main() -> None:
    """Print what was found; exit with an error where something grows or differs."""
    given = [int(number) for number in sys.argv[1:]]
    clips, runs = given + [20_000, 300][len(given) :]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = write(Path(folder))
        memory(Path(folder), rows, clips)
        damaged(Path(folder), rows, runs)


if __name__ == "__main__":
    main()
