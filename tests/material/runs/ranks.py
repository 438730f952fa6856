"""The processes of a training, forked from one that has imported everything: a start costs a second."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from videodiff.parallel.launcher import meeting_port

# Seconds in which a training of a test has to be over.
LIMIT = 200


def train(rank: int, port: int, cwd: Path, arguments: list[str]) -> None:
    """Be one rank of a training."""
    from videodiff import cli

    faulthandler.enable()
    os.chdir(cwd)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    out = os.open(cwd / f"rank_{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.argv = ["videodiff", "train", *arguments]
    cli.main()


class Ranks:
    """So many processes of one training in a folder, with these arguments of `videodiff train`."""

    def __init__(self, count: int, cwd: Path, arguments: list[str]) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["videodiff.verbs.train", "deepspeed", "tests.material.runs.ranks"])
        port = meeting_port()
        self.cwd = cwd
        arguments = [*arguments, f"trainer.devices={count}"]
        self.ranks = [context.Process(target=train, args=(rank, port, cwd, arguments)) for rank in range(count)]
        for rank in self.ranks:
            rank.start()

    def living(self) -> bool:
        """Tell whether all are at work."""
        return all(rank.is_alive() for rank in self.ranks)

    def finish(self) -> None:
        """Wait for all, which have to succeed."""
        for rank in self.ranks:
            rank.join(LIMIT)
        try:
            assert [rank.exitcode for rank in self.ranks] == [0] * len(self.ranks), self.said()
        finally:
            for rank in self.ranks:
                rank.kill()

    def said(self) -> str:
        """Return what all have printed."""
        return "\n".join(path.read_text() for path in sorted(self.cwd.glob("rank_*.txt")))
