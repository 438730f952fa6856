"""The launcher of a node's processes: if one dies, it is named, and the others end instead of waiting for ever."""

from __future__ import annotations

import ctypes
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
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from videodiff.parallel.environment import cores

# Seconds that the other processes have to end by themselves, with their own messages, after one has failed.
GRACE = 20.0
LOOK = 0.2
SET_PARENT_DEATH_SIGNAL = 1
# Below the ports of outgoing connections, on Linux and elsewhere.
PORTS = range(20000, 32768)
# The variable by which the processes of a node know the one that has started them.
PARENT = "VIDEODIFF_PARENT"
# The exit status of a process that has printed its own error.
SAID = 1
# The exit status of a training that a signal ended early, with a checkpoint: start it again to go on.
AGAIN = 75
# The exit status of a process that lost another one: start all of them again.
LOST = 76


class Ended(NamedTuple):
    """A rank that failed: a sentence that says how, and its exit status."""

    told: str
    status: int


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher of the other processes of a node; it watches them and says which one ended and how."""

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
        return function(*args, **kwargs)

    def lost(self) -> Ended | None:
        """Return the process that failed first."""
        return first_failure(self.procs)


def share_cores(processes: int) -> None:
    """Give each process of this node its share of the cores, unless OMP_NUM_THREADS says how many threads it has.

    torch takes a thread for each core. Threads of several processes that wait for each other on the same cores make a
    step of the demo twenty times as long.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(cores() // processes, 1)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


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


def watch(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """End this process and the others some seconds after one has failed."""
    while (failure := first_failure(processes)) is None:
        if all(process.poll() in (0, AGAIN) for process in processes):
            return
        time.sleep(LOOK)
    time.sleep(GRACE)
    if failure.status != SAID:
        print(f"videodiff train: error: {failure.told}; the others are ended", file=sys.stderr, flush=True)
    end_now(processes, 1)


def first_failure(processes: Sequence[subprocess.Popen[Any]]) -> Ended | None:
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


def end_now(processes: Sequence[subprocess.Popen[Any]], status: int) -> None:
    """End these processes and this one at once."""
    for process in processes:
        process.kill()
    os._exit(status)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that ends; exit if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if (parent := os.environ.get(PARENT)) is not None and is_gone(int(parent)):
            # It has said why; this process would wait for it for minutes.
            os._exit(SAID)


def is_gone(process: int) -> bool:
    """Return whether a process of this machine has ended, waited for or not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"
