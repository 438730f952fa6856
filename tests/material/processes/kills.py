"""A real kill between two files: at the n-th rename of a process, before it is done."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


def killed_at_rename(number: int, run: Callable[[], object]) -> bool:
    """Run a function in a child that is killed when it is about to rename its n-th file; return whether it was."""
    seen = []

    def watch(event: str, _: object) -> None:
        if event == "os.rename":
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        try:
            sys.addaudithook(watch)
            run()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0
