"""Common parts of all subjects of `make bench`: turns in one process, ratios with their spread, a table, a record."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from videodiff.data.storage.files import write_whole

ROOT = Path(__file__).parents[2]
OUT, RESULTS = ROOT / "bench" / "out", ROOT / "bench" / "RESULTS.md"


class Settings(NamedTuple):
    """How long to measure: `rounds` turns of everything; `tiny` shrinks the work, so that a test can run it."""

    rounds: int = 5
    tiny: bool = False


class Figure(NamedTuple):
    """One measured number. `key`: its name in the JSON, or None; `aim`: the target in words."""

    what: str
    value: float
    low: float
    high: float
    key: str | None = None
    aim: str = ""


def clock() -> float:
    """Return processor seconds if one thread computes, because other jobs may share the machine; else wall seconds."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def turns(works: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each work in each round; all works take turns, so a slow minute slows all of them."""
    for work in works.values():
        for _ in range(warm):
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        # The order changes with each round, so that no work always finds the same cache contents.
        names = list(works)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = clock()
            works[name]()
            taken[name].append(clock() - begun)
    return taken


def figure(what: str, values: Sequence[float], key: str | None = None, aim: str = "") -> Figure:
    """Return the median of some values with their range."""
    return Figure(what, statistics.median(values), min(values), max(values), key, aim)


def ratio(what: str, over: Sequence[float], under: Sequence[float], key: str | None = None, aim: str = "") -> Figure:
    """Return the median over the rounds of `over` / `under`: above 1 if `under` is faster."""
    return figure(what, [a / b for a, b in zip(over, under, strict=True)], key, aim)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table."""
    rows = [("figure", "found", "spread", "aim")]
    rows += [(f.what, f"{f.value:.3g}", f"{f.low:.3g} to {f.high:.3g}", f.aim) for f in figures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def machine() -> str:
    """Return the description of the machine that measured the figures."""
    names = [line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")]
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = f", load {lines_of('/proc/loadavg')[0].split()[0]}" if lines_of("/proc/loadavg") else ""
    return f"{names[0] if names else 'a processor'}, {torch.get_num_threads()} threads{card}{load}"


def lines_of(path: str) -> list[str]:
    """Return the lines of a file, or none on a system without it."""
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def commit() -> str:
    """Return the measured commit; a plus sign means that files have changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "no commit"


def record(subject: str, title: str, figures: Sequence[Figure], command: str, tiny: bool) -> None:
    """Print the table, write it as JSON, and append it to RESULTS.md unless the work was shrunk."""
    when, where = time.strftime("%Y-%m-%d"), f"{commit()}, {machine()}"
    print(f"\n{title}: {where}\n{table(figures)}", flush=True)
    if tiny:
        return
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{subject}.json"
    found = {one.key: one.value for one in figures if one.key}
    spread = {one.what: [one.low, one.value, one.high] for one in figures}
    about = {"date": when, "commit": commit(), "machine": machine(), "command": command, "spread": spread}
    write_whole(path, json.dumps({**found, **about}, indent=1).encode())
    with RESULTS.open("a") as file:
        file.write(f"\n## {title}: `{command}`, {when}, {where}\n\n{table(figures)}\n")
