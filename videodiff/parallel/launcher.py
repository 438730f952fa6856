"""The launcher of a node's processes: if one dies, it is named, and the others end instead of waiting for ever."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from videodiff.parallel.node.forks import THREADS, Fork, share_of_cores, take
from videodiff.parallel.node.parent import PARENT

# Seconds that the other processes have to end by themselves, with their own messages, after one has failed.
GRACE = 20.0
LOOK = 0.2
# Below the ports of outgoing connections, on Linux and elsewhere.
PORTS = range(20000, 32768)
# The exit status of a process that has printed its own error.
SAID = 1
# The exit status of a training that a signal ended early, with a checkpoint: start it again to go on.
AGAIN = 75
# The exit status of a process that lost another one: start all of them again.
LOST = 76

Process = subprocess.Popen[Any] | Fork


class Ended(NamedTuple):
    """A rank that failed: a sentence that says how, and its exit status."""

    told: str
    status: int


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher of the other processes of a node; it watches them and says which one ended and how.

    They are the ranks that were forked before the imports, where there are any, and else new processes.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, and train in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            if type(self.cluster_environment) is LightningEnvironment and "MASTER_PORT" not in os.environ:
                self.cluster_environment._main_port = meeting_port()
            os.environ[PARENT] = str(os.getpid())
            share_cores(self.num_processes)
            self._call_children_scripts()
            threading.Thread(target=watch, args=(self.procs,), daemon=True, name="watch over ranks").start()
        else:
            take(0)
        return function(*args, **kwargs)

    def _call_children_scripts(self) -> None:
        forks = take(self.num_processes - 1)
        if not forks:
            super()._call_children_scripts()
            return
        self._check_can_spawn_children()
        cluster = self.cluster_environment
        # The variables that Lightning gives to new processes.
        os.environ.update(
            MASTER_ADDR=cluster.main_address,
            MASTER_PORT=str(cluster.main_port),
            NODE_RANK=str(cluster.node_rank()),
            LOCAL_RANK=str(cluster.local_rank()),
            WORLD_SIZE=str(self.num_processes * self.num_nodes),
        )
        for rank, fork in enumerate(forks, 1):
            fork.go_on({**os.environ, "LOCAL_RANK": str(rank)})
        self.procs = forks

    def lost(self) -> Ended | None:
        """Return the process that failed first."""
        return first_failure(self.procs)


def share_cores(processes: int) -> None:
    """Give each process of this node its share of the cores, unless OMP_NUM_THREADS says how many threads it has.

    torch takes a thread for each core. Threads of several processes that wait for each other on the same cores make a
    step of the demo twenty times as long.
    """
    if THREADS not in os.environ:
        threads = share_of_cores(processes)
        torch.set_num_threads(threads)
        os.environ[THREADS] = str(threads)


def meeting_port() -> int:
    """Return a free port where the processes of a run can meet.

    A port that the kernel chooses could be given to an outgoing connection before the first rank listens on it, seconds
    later. The kernel never chooses a port of this range by itself.
    """
    for _ in range(100):
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"found no free port in 100 of {PORTS.start} to {PORTS.stop - 1}, expected one; set MASTER_PORT")


def watched(launcher: Any) -> Any:
    """Return a launcher that watches its processes, to replace Lightning's."""
    if type(launcher) is not _SubprocessScriptLauncher:
        return launcher
    return Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)


def watch(processes: Sequence[Process]) -> None:
    """End this process and the others some seconds after one has failed."""
    while (failure := first_failure(processes)) is None:
        if all(process.poll() in (0, AGAIN) for process in processes):
            return
        time.sleep(LOOK)
    time.sleep(GRACE)
    if failure.status != SAID:
        print(f"videodiff train: error: {failure.told}; the others are ended", file=sys.stderr, flush=True)
    end_now(processes, 1)


def first_failure(processes: Sequence[Process]) -> Ended | None:
    """Return the first rank that failed, None if none has."""
    for rank, process in enumerate(processes, 1):
        if (status := process.poll()) not in (None, 0, AGAIN):
            return Ended(how_it_ended(rank, process.pid, status), status)
    return None


def how_it_ended(rank: int, process: int, status: int) -> str:
    """Return a sentence that says how a rank ended, by its exit status."""
    how = f"by signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"with exit status {status}"
    return f"rank {rank} (process {process}) ended {how}"


def under_torchrun() -> bool:
    """Return whether torchrun started this process: torchrun itself names a rank that died."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_now(processes: Sequence[Process], status: int) -> None:
    """End these processes and this one at once."""
    for process in processes:
        process.kill()
    os._exit(status)
