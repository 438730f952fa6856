"""Processes that train one run after the other: importing everything costs seconds, so it is done once for all runs.

Each process is started as torchrun would start it. A run takes the first `world` of them; the others go on to the next
run that they are needed for.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


class Row(NamedTuple):
    """A run: its name, how many processes train it, and the overrides of `videodiff train`."""

    name: str
    world: int
    overrides: Sequence[str]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that connections get from the kernel: they are used later."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


def train_all(rows: Sequence[Row], folder: Path, seconds: float = 500) -> None:
    """Train all rows in `folder`; an error with what was printed if one fails."""
    asked = json.dumps([[*row, port] for row, port in zip(rows, free_ports(len(rows)), strict=True)])
    logs = [folder / f"process_{rank}.log" for rank in range(max(row.world for row in rows))]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            words = [sys.executable, "-m", "tests.material.gang", str(rank), asked]
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            started.append(subprocess.Popen(words, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT))
    try:
        failed = [one.wait(seconds) for one in started]
    finally:
        for one in started:
            one.kill()
    assert not any(failed), "\n".join(f"process {n}: {log.read_text()[-3000:]}" for n, log in enumerate(logs))


def main(rank: int, rows: Sequence[tuple[str, int, Sequence[str], int]]) -> None:
    """Take part in every run that needs this process."""
    import torch
    from hydra.core.global_hydra import GlobalHydra

    from videodiff import cli

    for name, world, overrides, port in rows:
        if rank >= world:
            continue
        values = (rank, rank, world, world, "127.0.0.1", port, "gang")
        for key, value in zip(TORCHRUN, values, strict=True):
            os.environ.pop(key, None) if world == 1 else os.environ.update({key: str(value)})
        GlobalHydra.instance().clear()
        sys.argv = ["videodiff", "train", *overrides, f"trainer.devices={world}", f"name={name}"]
        cli.main()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
