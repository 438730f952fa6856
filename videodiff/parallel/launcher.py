"""The processes of a node live and die together: a dead one is named, and the others do not wait for it for ever."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

# Seconds in which the others may end by themselves, with what they have to say, after one of them failed.
GRACE = 20.0
LOOK = 0.2
SET_PARENT_DEATH_SIGNAL = 1


class Lost(ChildProcessError):
    """A rank that ended while the others were at work."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher of the other processes of a node, with a watch that says which one ended and how."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, and train in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=watch, args=(self.procs,), daemon=True, name="watch over ranks").start()
        return function(*args, **kwargs)

    def lost(self) -> str | None:
        """Return which of the processes failed first, as a sentence."""
        return first_failure(self.procs)


def watched(launcher: Any) -> Any:
    """Return a launcher that watches over what it started, in the place of Lightning's."""
    if type(launcher) is not _SubprocessScriptLauncher:
        return launcher
    return Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)


def watch(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """End this process and the others, some seconds after one of them has failed."""
    while (failure := first_failure(processes)) is None:
        if all(process.poll() == 0 for process in processes):
            return
        time.sleep(LOOK)
    time.sleep(GRACE)
    print(f"videodiff train: error: {failure}; the others are ended", file=sys.stderr, flush=True)
    end_now(processes, 1)


def first_failure(processes: Sequence[subprocess.Popen[Any]]) -> str | None:
    """Return which rank has failed, None where none has."""
    for rank, process in enumerate(processes, 1):
        if code := process.poll():
            how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit status {code}"
            return f"rank {rank} (process {process.pid}) ended {how}"
    return None


def end_now(processes: Sequence[subprocess.Popen[Any]], status: int) -> None:
    """End these processes and this one at once."""
    for process in processes:
        process.kill()
    os._exit(status)


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
