"""A rank ends with the process that has started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

SET_PARENT_DEATH_SIGNAL = 1
# The variable by which the processes of a node know the one that has started them.
PARENT = "VIDEODIFF_PARENT"


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that ends; exit if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if (parent := os.environ.get(PARENT)) is not None and is_gone(int(parent)):
            # It has said why; this process would wait for it for minutes.
            os._exit(1)


def is_gone(process: int) -> bool:
    """Return whether a process of this machine has ended, waited for or not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"
