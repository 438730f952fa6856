"""Measure the planning pass of data preparation: from metadata to what is to be done, and near duplicates.

python bench/prep/plan.py [lines ...]

For each number of clips: HD-VILA lines of 30 clips a video are read, identified, entered into ledger and plan, and
grouped by video; then perceptual hashes are compared; a tenth of them are near duplicates. Each runs in a process of
its own. Writes bench/out/prep_plan.json.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.books.ledger import Ledger
from data_prep.books.plan import Plan
from data_prep.score.duplicate import near_duplicates
from data_prep.sources.hdvila import read_hdvila

CLIPS_A_VIDEO, SECONDS_A_CLIP = 30, 13


def clock(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"


def write_metadata(path: Path, clips: int) -> None:
    """Write lines as published; one clip in a thousand is malformed, one in a hundred comes twice."""
    with path.open("w") as file:
        for video in range(clips // CLIPS_A_VIDEO):
            name, items = f"v{video:010d}", []
            for n in range(CLIPS_A_VIDEO):
                start = n * SECONDS_A_CLIP + 0.04 * (video % 7)
                start = start - SECONDS_A_CLIP if n == 7 and video % 3 == 0 else start
                span = [clock(start), "soon" if n == 9 and video % 33 == 0 else clock(start + 11.48)]
                items.append({"clip_id": f"{name}.{n}.mp4", "span": span})
            url = f"https://www.youtube.com/watch?v={name}"
            file.write(json.dumps({"video_id": name, "url": url, "clip": items}) + "\n")


def enter(folder: Path) -> dict[str, Any]:
    """Read the metadata into ledger and plan, once, and once more, as a run that goes on does."""
    times = {}
    for name in ("enter", "enter_again"):
        begun = time.perf_counter(), time.process_time()
        ledger = Ledger(folder / "ledger.sqlite")
        plan = Plan(folder / "plan.sqlite", folder / "ledger.sqlite")
        plan.add(ledger.admit(read_hdvila(folder / "meta.jsonl")))
        times |= spent(name, begun)
    ends = ledger.ends()
    return {**times, "inputs": ends.inputs, "open": ends.open, "in_plan": len(plan)}


def deal(folder: Path) -> dict[str, Any]:
    """Group the open requests by video, as workers are given them, and read the first and last thousand of them."""
    begun = time.perf_counter(), time.process_time()
    Ledger(folder / "ledger.sqlite").close()
    sources = Plan(folder / "plan.sqlite", folder / "ledger.sqlite").sources()
    found = spent("group", begun)
    begun = time.perf_counter(), time.process_time()
    some = [*range(min(1000, len(sources))), *range(max(0, len(sources) - 1000), len(sources))]
    clips = sum(len(sources[number]) for number in some)
    return {**found, **spent("read_2000_videos", begun), "videos": len(sources), "clips_of_2000_videos": clips}


def compare(folder: Path, clips: int) -> dict[str, Any]:
    """Compare hashes; a tenth of them are copies of others with 8 bits changed."""
    dice = np.random.default_rng(0)
    hashes = dice.integers(0, 256, (clips, 32), dtype=np.uint8)
    copies = clips // 2 + dice.choice(clips // 2, clips // 10, replace=False)
    bits = np.unpackbits(hashes[dice.choice(clips // 2, len(copies), replace=False)], axis=1)
    bits[np.arange(len(copies))[:, None], dice.integers(0, 256, (len(copies), 8))] ^= 1
    hashes[copies] = np.packbits(bits, axis=1)
    begun = time.perf_counter(), time.process_time()
    found = near_duplicates(hashes)
    return {**spent("near_duplicates", begun), "found": int((found >= 0).sum())}


def spent(name: str, begun: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_s": time.perf_counter() - begun[0], f"{name}_cpu_s": time.process_time() - begun[1]}


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return what a function measures in a process of its own, and the most memory that it took."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (function, arguments))


def measured(function: Callable[..., dict[str, Any]], arguments: tuple) -> dict[str, Any]:
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {f"{function.__name__}_gib": peak / 2**20, f"{function.__name__}_start_gib": base / 2**20}


def main(*sizes: int) -> None:
    """Measure each size, print a line for it, and write the report."""
    report, out = {}, Path(__file__).resolve().parents[1] / "out"
    out.mkdir(exist_ok=True)
    for clips in sizes or (1_000_000, 10_000_000):
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            folder = Path(scratch)
            write_metadata(folder / "meta.jsonl", clips)
            found = apart(enter, folder) | apart(deal, folder) | apart(compare, folder, clips)
            found["bytes"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        report[clips] = found
        print(clips, json.dumps(found), flush=True)
        (out / "prep_plan.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
