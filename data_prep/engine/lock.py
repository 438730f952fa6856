"""The lock of the workers: a new run first waits for the workers that an earlier run has left behind."""

from __future__ import annotations

import fcntl
import os
from functools import cache
from pathlib import Path

WORKERS = "workers.lock"


@cache
def join_run(folder: Path) -> int:
    """Hold a share of the lock in a folder for the life of this process."""
    handle = os.open(folder / WORKERS, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle
