"""A codec that misbehaves like native decoders, as its task says: hang, abort, crash, be slow. It imports little."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import time
from typing import Any, NamedTuple

import av
import numpy as np


class Clip(NamedTuple):
    """A task for these functions: its kind and number, or the location of a clip."""

    order: tuple[int, int]
    sample: Any
    shape: tuple[int, ...]
    what: tuple[Any, ...]


def act(task: Clip, out: np.ndarray) -> dict[str, Any]:
    """Do what the kind of the task says, then fill `out` with its number."""
    kind, number = task.what
    if kind == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGALRM})
        while True:
            time.sleep(60)
    elif kind == "orphan":
        time.sleep(60)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "abort":
        os.abort()
    elif kind == "crash":
        out[: len(out) // 2] = 255
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "greedy":
        # The kernel does this to a process that takes all memory.
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "nap":
        time.sleep(0.3)
    elif kind == "exit":
        os._exit(3)
    elif kind == "raise":
        out[:] = 255
        raise ValueError("no {such} frame")
    elif kind == "slow":
        time.sleep(0.002 * (number % 7))
    out[:] = number % 251
    return {"number": number}


def read(task: Clip, out: np.ndarray) -> str:
    """Read a clip from (shard, key, offset, size, first frame) by PyAV alone; a key may be a command to misbehave."""
    shard, key, offset, size, first = task.what
    with open(shard, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    video = members[f"{key}.mp4"]
    if video.startswith(b"do "):
        act(task._replace(what=(video[3:].decode().strip(), 0)), out)
    with av.open(io.BytesIO(video)) as container:
        frames = list(container.decode(video=0))[first : first + len(out)]
    if any(frame.is_corrupt for frame in frames):
        raise ValueError("found a damaged frame")
    out[:] = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return members[f"{key}.txt"].decode()
