"""SIGKILL to one of two processes at any moment, while they save too: every restart finds a whole checkpoint.

The moments are drawn at random, the same ones each time. `make soak` asks for 100.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.material.runs.ranks import LIMIT, Ranks
from tests.material.runs.saved_state import assert_same_bits
from tests.material.warm import Popen
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint, step_of, whole

RUNS, STEPS, EVERY = int(os.environ.get("KILL_RUNS", "3")), 40, 3
STRATEGIES = ("ddp", "zero1")
# Seconds in which the other process has to end.
END = 60


def kill(ranks: Ranks, number: int) -> None:
    """Kill one of two; the other has to end by itself, with one line.

    Where they have not met yet, it is the launcher that ends the other one: see tests/parallel/test_launcher.py.
    """
    met = "step/s" in ranks.said()
    dead, other = ranks.ranks[number], ranks.ranks[1 - number]
    dead.kill()
    try:
        if met:
            wait_for_end(dead, other)
            if other.returncode is None:
                # It prints the stacks of its threads.
                os.kill(other.pid, signal.SIGABRT)
                with suppress(subprocess.TimeoutExpired):
                    other.wait(10)
                pytest.fail(f"rank {number} was killed, the other goes on:\n{ranks.said()}")
            lines = [line for line in ranks.said().splitlines() if ": error: " in line]
            # At the very end it may have come too late.
            assert other.returncode == 0 or (other.returncode > 0 and len(lines) == 1), ranks.said()
    finally:
        other.kill()
        other.wait()


def wait_for_end(dead: Popen, other: Popen) -> None:
    """Wait for a process to end, longer where the disk holds one of the two.

    The kernel ends no process, and closes none of its connections, within a write to a disk that stalls.
    """
    end, last = time.monotonic() + END, time.monotonic() + 5 * END
    while other.poll() is None and time.monotonic() < min(end, last):
        time.sleep(0.1)
        if held_by_disk(dead.pid) or held_by_disk(other.pid):
            end = time.monotonic() + END


def held_by_disk(process: int) -> bool:
    """Tell whether the kernel holds a thread of a process within a call that nothing interrupts."""
    for path in Path(f"/proc/{process}/task").glob("*/stat"):
        with suppress(OSError):
            # The name of a thread, in brackets, may hold blanks.
            if path.read_text().rpartition(") ")[2].startswith("D"):
                return True
    return False


def wait(ranks: Ranks, run: Path, chance: random.Random) -> None:
    """Return at a moment to kill: anywhere, or when a checkpoint is about to be written."""
    folder, end = run / "checkpoints", time.monotonic() + LIMIT
    aim = chance.randrange(0, STEPS)
    while ranks.living() and not any(step_of(path) >= aim for path in checkpoints(run) if run.exists()):
        assert time.monotonic() < end, ranks.stuck()
        if aim == 0:
            break
        time.sleep(0.002)
    if chance.random() < 0.5:
        while ranks.living() and not any(folder.glob(".step_*.partial")):
            assert time.monotonic() < end, ranks.stuck()
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02))
    else:
        time.sleep(chance.uniform(0, 1.0))


@pytest.fixture(scope="module")
def recipe(world_dataset: Path) -> list[str]:
    more = [f"callbacks.checkpoints.every={EVERY}", f"trainer.max_steps={STEPS}", "optimizer=adamw", "logger=[]"]
    return [*tiny(world_dataset), *more]


@pytest.fixture(scope="module")
def unhurt(tmp_path_factory: pytest.TempPathFactory, recipe: list[str]) -> Iterator[dict[str, Path]]:
    """Return the last checkpoints of runs that nobody killed, by their strategy."""
    cwd = tmp_path_factory.mktemp("unhurt")
    for name in STRATEGIES[: 1 + (RUNS > 5)]:
        Ranks(2, cwd, [f"name={name}", f"strategy={name}", *recipe]).finish()
    return {name: latest_checkpoint(cwd / "runs" / name) for name in STRATEGIES[: 1 + (RUNS > 5)]}


def test_every_restart_after_a_kill_finds_a_whole_checkpoint_and_the_end_has_the_same_bits(
    tmp_path: Path, recipe: list[str], unhurt: dict[str, Path]
) -> None:
    chance, killed, chain = random.Random(13), 0, 0
    while killed < RUNS:
        name, before = list(unhurt)[chain % len(unhurt)], 0
        run, done = tmp_path / f"runs/{name}", False
        while not done:
            begun = run.exists() and bool(checkpoints(run))
            ranks = Ranks(
                2, tmp_path, [f"resume=runs/{name}"] if begun else [f"name={name}", f"strategy={name}", *recipe]
            )
            if killed < RUNS:
                wait(ranks, run, chance)
            if killed < RUNS and ranks.living():
                kill(ranks, chance.randrange(2))
                killed += 1
            else:
                ranks.finish()
                done = True
            for checkpoint in checkpoints(run):
                whole(checkpoint)
            found = max(map(step_of, checkpoints(run)), default=0)
            assert found >= before, "a checkpoint was lost"
            before = found
        assert_same_bits(unhurt[name], latest_checkpoint(run))
        assert not list(run.glob("checkpoints/.*"))
        shutil.rmtree(run)
        chain += 1
