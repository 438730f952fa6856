"""Tasks that do what a decoder might do, for the processes of an engine: light to import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def act(task, node):
    """Do what the task says; tell first that it began, and where."""
    kind, value = task
    yield kind, os.getpid()
    if kind == "sleep":
        time.sleep(value)
    elif kind == "raise":
        raise ValueError(value)
    elif kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while True:
            time.sleep(60)
    elif kind == "once" and not Path(value).exists():
        # The first to be here stays until its machine goes down.
        Path(value).touch()
        time.sleep(600)
    yield "end", str(node.scratch)
