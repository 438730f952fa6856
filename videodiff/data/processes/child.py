"""A child: a process that may hang or crash; its parent watches, kills and replaces it.

A native decoder that hangs can only be stopped by killing its process. Therefore the parent counts the time that a
child spends on its work, kills it when its time is up, and starts another child. The loader, preparation, the cache of
encoded clips and the measurement of throughput start their processes here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Seconds between two checks of the time. A child is charged for at most two of them at once: if the whole job was
# suspended, the pause does not count against its decoder.
TICK = 1.0
# Seconds that a process gets to exit after its connection was closed.
GRACE_S = 1.0


class Gone(Exception):
    """The process of a child has ended."""


class Child:
    """A process that runs `serve(connection, *args)`; `spent`: seconds charged for its present work.

    It ends when its parent ends. `start`: None for `spawn`, or the result of `forkserver`. `nests`: whether it starts
    children of its own.
    """

    def __init__(self, serve: Callable[..., None], *args: Any, start: Any = None, nests: bool = False) -> None:
        context = start or multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=begin, args=(serve, theirs, *args), daemon=not nests)
        self.process.start()
        theirs.close()
        self.spent = 0.0

    def send(self, message: Any) -> None:
        """Send a message; if the child has ended, the next `receive` raises."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Return the next message; Gone if the process has ended."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            raise Gone from error
        self.spent = 0.0
        return message

    def charge(self, passed: float) -> None:
        """Add seconds that have passed to `spent`."""
        self.spent += min(passed, 2 * TICK)

    def end(self, grace: float = 0.0) -> str:
        """Kill the process, unless it ends by itself within `grace` seconds, and return how it ended."""
        self.process.join(grace)
        self.process.kill()
        self.process.join()
        self.connection.close()
        code = self.process.exitcode
        return f"the process ended by {signal.Signals(-code).name}" if code < 0 else f"the process exited with {code}"


def begin(serve: Callable[..., None], connection: Connection, *args: Any) -> None:
    """Serve until the other end closes or the parent ends; interrupts are ignored, the parent handles them.

    A terminal and a cluster's scheduler send their signals to every process of a job.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        serve(connection, *args)


def forkserver(*modules: str) -> Any:
    """Return a start method: processes are forked from a server process that has only imported these modules.

    A start takes milliseconds, and all processes share the memory of the imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, *modules])
    return context
