"""Tasks that behave like decoders, for the processes of an engine; this file imports little."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def act(task, node):
    """Report the beginning of a task and its node, then do what the task says."""
    kind, value = task
    yield kind, os.getpid()
    if kind == "sleep":
        time.sleep(value)
    elif kind == "raise":
        raise ValueError(value)
    elif kind == "crash":
        crash()
    elif kind == "hang":
        hang()
    elif kind == "gpu":
        # Wait together with another process.
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        (Path(value) / f"gpu{gpus}").touch()
        while len(list(Path(value).glob("gpu*"))) < 2:
            time.sleep(0.1)
        yield "gpus", gpus
    yield "end", str(node.scratch)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    while True:
        time.sleep(60)


def break_some(requests, node, function, folder):
    """Call `function`, but crash or hang after its first answer, or wait, if the name of the video says so."""
    answers, kind = function(requests, node), requests[0].source.removesuffix(".mp4")
    if kind in ("crash", "hang"):
        yield next(answers)
        (crash if kind == "crash" else hang)()
    if kind == "doomed" and not (Path(folder) / "killed").exists():
        (Path(folder) / "doomed").write_text(str(os.getpid()))
        hang()
    yield from answers
