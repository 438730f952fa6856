"""When a host may be asked next, shared by all processes of a machine: one file a host, locked while it is read."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from urllib.parse import quote

# A time further ahead than this was left by a clock that has been set back since.
FAR = 3600.0


class Hosts:
    """The pace at which hosts are asked: at most `rate` requests a second each, none while a host is paused."""

    def __init__(self, folder: str | Path, rate: float) -> None:
        if rate <= 0:
            raise ValueError(f"rate: found {rate}, expected requests a second above 0")
        self.folder, self.interval = Path(folder), 1 / rate
        self.folder.mkdir(parents=True, exist_ok=True)

    def wait(self, host: str) -> None:
        """Sleep until it is this caller's turn to ask a host."""
        now = time.time()
        turn = self._move(host, lambda free: (max(now, free), max(now, free) + self.interval))
        time.sleep(max(0.0, turn - now))

    def pause(self, host: str, seconds: float) -> None:
        """Have everybody wait so long before asking a host again."""
        until = time.time() + seconds
        self._move(host, lambda free: (free, max(free, until)))

    def _move(self, host: str, step) -> float:
        """Replace the time from which a host is free by the second of `step(time)` and return the first."""
        file = os.open(self.folder / quote(host, safe=""), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = os.read(file, 64)
            free = float(text or 0)
            result, then = step(free if free < time.time() + FAR else 0.0)
            os.pwrite(file, f"{then:020.6f}".encode(), 0)
        finally:
            os.close(file)
        return result
