"""The other ranks of a node, forked before the first rank imports torch: all of them import at the same time.

A fork is safe while the process has one thread and no device: that ends with the import of torch. A forked rank imports
and then waits. It goes on, with the environment that the launcher gives it, when the first rank launches; until then it
reads no file of the run, prints nothing and ends with the first rank. Where no fork is safe, the launcher starts
new processes as before.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

from videodiff.machine import cores
from videodiff.parallel.environment import ALONE, problems, started_by
from videodiff.parallel.node.parent import PARENT, die_with_parent

THREADS = "OMP_NUM_THREADS"


class Fork:
    """A forked rank: what a launcher uses of `subprocess.Popen`, and the pipe through which it gets its environment."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self.pipe = pid, pipe
        self.returncode: int | None = None
        self.lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs; several threads may ask."""
        with self.lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def go_on(self, environment: Mapping[str, str]) -> None:
        """Let it go on as a rank with this environment."""
        # One that has ended meanwhile is found by those who watch the ranks.
        with suppress(BrokenPipeError), os.fdopen(self.pipe, "w") as pipe:
            json.dump(dict(environment), pipe)


# The forked ranks of this process that wait to go on, in the order of their ranks.
WAITING: list[Fork] = []


def share_of_cores(processes: int) -> int:
    """Return how many threads each of so many processes of this node has."""
    return max(cores() // processes, 1)


def is_safe() -> bool:
    """Return whether the other ranks may be forked: no launcher has started this process, and it has one thread."""
    if sys.platform != "linux" or "torch" in sys.modules or started_by(os.environ) != ALONE:
        return False
    return next(problems(os.environ), None) is None and threads() == 1


def threads() -> int:
    """Return how many threads this process has, those of C++ included."""
    return len(os.listdir("/proc/self/task"))


def fork_ranks(processes: int, module: str) -> None:
    """Fork the other ranks of a node if that is safe; each imports a module and returns when it may go on."""
    parent = os.getpid()
    for rank in range(1, processes if is_safe() else 1):
        # Else a rank would print again what waits to be printed.
        sys.stdout.flush()
        sys.stderr.flush()
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            for fd in (write, *(other.pipe for other in WAITING)):
                os.close(fd)
            WAITING.clear()
            os.environ.update({"LOCAL_RANK": str(rank), PARENT: str(parent)})
            os.environ.setdefault(THREADS, str(share_of_cores(processes)))
            wait(read, module)
            return
        os.close(read)
        WAITING.append(Fork(pid, write))


def wait(pipe: int, module: str) -> None:
    """Import a module in a forked rank, and return when the first rank has sent the environment of this one."""
    die_with_parent()
    # Those that every process of a group gets: the first rank acts on them.
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    # The first rank meets the same error, and says so.
    with suppress(Exception):
        importlib.import_module(module)
    with os.fdopen(pipe) as sent:
        environment = sent.read()
    if not environment:
        os._exit(1)
    os.environ.clear()
    os.environ.update(json.loads(environment))
    for number, action in before.items():
        signal.signal(number, action)


def take(count: int) -> list[Fork]:
    """Return the forked ranks if so many of them wait; any other number is ended."""
    ranks, WAITING[:] = list(WAITING), []
    if len(ranks) == count:
        return ranks
    for rank in ranks:
        rank.kill()
        os.close(rank.pipe)
    return []
