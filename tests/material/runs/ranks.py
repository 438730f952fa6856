"""The processes of one training, each started with the variables that tell its rank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.material import warm
from videodiff.parallel.launcher import meeting_port

# Seconds within which a training of a test must end.
LIMIT = 200


def lightning(rank: int, count: int) -> dict[str, str]:
    """Return the variables of a process that Lightning would have started."""
    return {"LOCAL_RANK": f"{rank}"}


def torchrun(rank: int, count: int) -> dict[str, str]:
    """Return the variables of a process that torchrun would have started."""
    ranks = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
    return {**ranks, "WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "TORCHELASTIC_RUN_ID": "1"}


def slurm(rank: int, count: int) -> dict[str, str]:
    """Return the variables of a process that srun would have started."""
    job = {"SLURM_NTASKS": f"{count}", "SLURM_NTASKS_PER_NODE": f"{count}", "SLURM_NNODES": "1", "SLURM_JOB_ID": "1"}
    return {**job, "SLURM_STEP_ID": "0", "SLURM_NODEID": "0", "SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}"}


class Ranks:
    """`count` processes of one training in a folder, with these arguments of `videodiff train`."""

    def __init__(
        self, count: int, cwd: Path, arguments: list[str], place: Callable[[int, int], dict[str, str]] = lightning
    ) -> None:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{meeting_port()}"}
        command = [sys.executable, "-m", "videodiff", "train", *arguments, f"trainer.devices={count}"]
        self.cwd, self.ranks = cwd, []
        for rank in range(count):
            env = {**os.environ, **meeting, **place(rank, count)}
            with self.printed(rank).open("w") as out:
                self.ranks.append(warm.start(command, cwd=cwd, env=env, stdout=out))

    def living(self) -> bool:
        """Tell whether all processes still run."""
        return all(rank.poll() is None for rank in self.ranks)

    def finish(self) -> None:
        """Wait for all processes; raise unless all succeed."""
        try:
            for rank in self.ranks:
                rank.wait(LIMIT)
            assert [rank.returncode for rank in self.ranks] == [0] * len(self.ranks), self.said()
        except subprocess.TimeoutExpired as late:
            raise AssertionError(self.stuck()) from late
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill all processes."""
        for rank in self.ranks:
            rank.kill()

    def stuck(self) -> str:
        """Kill all processes; return the output of all, with the stacks of those that ran."""
        warm.end_late(self.ranks)
        return self.said()

    def printed(self, rank: int) -> Path:
        """Return the file with the output of a rank."""
        return self.cwd / f"rank_{rank}.txt"

    def said(self) -> str:
        """Return the output of all ranks."""
        return "\n".join(self.printed(rank).read_text() for rank in range(len(self.ranks)))
