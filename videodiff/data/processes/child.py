"""A child: one process that may hang or crash, and is watched, ended and replaced by whoever started it.

A native decoder that hangs cannot be ended but with its process. So whoever gives work to a child charges it for the
time that passes, ends it when its time is up, and starts another in its place. The loader, preparation, the cache of
encoded clips and the measurement of throughput all have their processes from here.
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

# Seconds between two looks at the time. A child is charged for at most two of them at once: when the whole job was
# stopped and goes on, no decoder has hung.
TICK = 1.0
# From the end of its connection to the end of a process.
GRACE_S = 1.0


class Gone(Exception):
    """The process of a child has ended."""


class Child:
    """A process that runs `serve(connection, *args)`; `spent`: seconds charged for what it is at.

    It ends with the process that started it. start: how it starts, None for `spawn`, or what `forkserver` gives; nests:
    whether it has children of its own.
    """

    def __init__(self, serve: Callable[..., None], *args: Any, start: Any = None, nests: bool = False) -> None:
        context = start or multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=begin, args=(serve, theirs, *args), daemon=not nests)
        self.process.start()
        theirs.close()
        self.spent = 0.0

    def send(self, message: Any) -> None:
        """Send a message; a child that has ended is found by the next `receive`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Return the next message; Gone where the process ended instead."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            raise Gone from error
        self.spent = 0.0
        return message

    def charge(self, passed: float) -> None:
        """Charge it for the seconds that have passed."""
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
    """Serve until the other end closes or the parent ends; an interrupt is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        serve(connection, *args)


def forkserver(*modules: str) -> Any:
    """Return how processes start: forked from one that has imported these modules and done nothing else.

    A start costs milliseconds, and the imports are in memory once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, *modules])
    return context
