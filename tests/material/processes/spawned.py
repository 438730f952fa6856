"""Processes that `multiprocessing` spawns: forks of the warm server too, instead of Pythons that import torch anew.

They get the connections, the working folder and the environment that a spawned process gets, and unpickle their work.
`WARM_CHILDREN=no` in the environment lets `multiprocessing` start a new Python.
"""

from __future__ import annotations

import multiprocessing.util
import os
import re
from collections.abc import Sequence
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.process import BaseProcess

from tests.material import warm

FORKS: dict[int, warm.Fork] = {}
# `multiprocessing`'s own: start a program with these connections; start a process; ask how it ended.
START, LAUNCH, POLL = multiprocessing.util.spawnv_passfds, Popen._launch, Popen.poll


def from_server() -> None:
    """Let the processes that `multiprocessing` spawns be forks of the server."""
    multiprocessing.util.spawnv_passfds = started
    Popen._launch, Popen.poll = launch, poll


def started(path: str, args: Sequence[str | bytes], passfds: Sequence[int]) -> int:
    """Do what `spawnv_passfds` does; only spawned processes are forks of the server."""
    words = [os.fsdecode(word) for word in args]
    if warm.SPAWNED not in words or os.environ.get(warm.CHILDREN) == "no":
        return START(path, args, passfds)
    tracker, pipe = re.search(r"tracker_fd=(\d+), pipe_handle=(\d+)", words[words.index("-c") + 1]).groups()
    fork = warm.Fork(warm.server(), [warm.SPAWNED, tracker, pipe], {fd: fd for fd in (0, 1, 2, *passfds)})
    FORKS[fork.pid] = fork
    return fork.pid


def launch(self: Popen, process: BaseProcess) -> None:
    """Do what `_launch` does, and remember the fork."""
    LAUNCH(self, process)
    self.fork = FORKS.pop(self.pid, None)


def poll(self: Popen, flag: int = os.WNOHANG) -> int | None:
    """Do what `poll` does."""
    if self.fork is None:
        return POLL(self, flag)
    if (status := self.fork.status(wait=not flag)) is not None:
        self.returncode = os.waitstatus_to_exitcode(status)
    return self.returncode
