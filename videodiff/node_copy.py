"""Share one copy of a frozen model's weights among the processes of a node, in any dtype.

The libraries map a file of weights, and the processes of a node share its pages, if the weights are used in the file's
dtype. A cast would make a copy in each process. So the first process that needs a cast writes its result to a file, and
all processes of the node map that file. It is removed when training begins; mapped values stay valid.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

# Stands in place of a copy if the file's own weights are mapped, or if there is no room for a copy.
NONE = "none"


class NodeCopies:
    """A context; models loaded inside it share copies among `processes` processes of a node.

    A single process makes no copy.
    """

    def __init__(self, processes: int, folder: Path | None = None) -> None:
        self.processes = processes
        self.folder = folder or Path(tempfile.gettempdir(), f"videodiff-{os.getuid()}")
        self.used: list[Path] = []

    def __enter__(self) -> NodeCopies:
        self.token = ACTIVE.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        ACTIVE.reset(self.token)

    def load(self, key: str, load: Callable[[Path | None], nn.Module]) -> nn.Module:
        """Load a model from its files, or from a copy in this folder; `key` identifies the model and its dtype."""
        if self.processes == 1 or sys.platform != "linux":
            return load(None)
        self.make_folder()
        copy = self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.used.append(copy)
        with locked(copy) as file:
            if not copy.is_dir():
                # The lock was released for a moment: another process may have made the copy.
                fcntl.flock(file, fcntl.LOCK_EX)
                if not copy.is_dir():
                    make(copy, load(None))
                fcntl.flock(file, fcntl.LOCK_SH)
            return load(None if (copy / NONE).exists() else copy)

    def make_folder(self) -> None:
        """Make the folder of the copies, writable by this user only: others could put other weights there."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(
                f"{self.folder}: found something that others may write to, expected a folder of this user; remove it, "
                "or set TMPDIR"
            )

    def remove(self) -> None:
        """Remove the copies; one process of the node calls this after all have loaded theirs."""
        for copy in self.used:
            with locked(copy) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if copy.is_dir():
                    shutil.rmtree(copy)


ACTIVE: ContextVar[NodeCopies | None] = ContextVar("node copies", default=None)


def load_once(config: Path, what: dict[str, Any], load: Callable[[Path | None], nn.Module]) -> nn.Module:
    """Return the model that `load` makes, from the node's copy inside a `NodeCopies` context.

    `config` is its config.json, `what` are the settings of loading. A change of the files beside it makes a new copy.
    """
    copies = ACTIVE.get()
    if copies is None:
        return load(None)
    paths = sorted(path for end in ("json", "safetensors") for path in config.parent.glob(f"*.{end}"))
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return copies.load(json.dumps([str(config.resolve()), files, what]), load)


@contextmanager
def locked(copy: Path) -> Iterator[BinaryIO]:
    """Lock a copy against making and removing; the kernel releases the lock of a process that dies."""
    with copy.with_suffix(".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield file


def make(copy: Path, model: nn.Module) -> None:
    """Write the copy of a model, complete or not at all; write a note instead if it needs none or has no room."""
    partial = copy.with_suffix(".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    size = sum(p.nbytes for p in model.parameters())
    if not own_bytes(model):
        (partial / NONE).touch()
    elif size > shutil.disk_usage(partial).free:
        warnings.warn(
            f"{partial.parent}: found no room for the {size / 2**30:.1f} GiB of {type(model).__name__} that the "
            "processes of this node would share; each process keeps its own copy. Set TMPDIR to a larger disk, or "
            "store the weights in the dtype that is used",
            stacklevel=2,
        )
        (partial / NONE).touch()
    else:
        model.save_pretrained(partial)
    os.replace(partial, copy)


def own_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters that are not mapped from a file."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if len(line) > 5 and ".safetensors" in line[5]]
    mapped = [(int(first, 16), int(last, 16)) for first, last in spans]
    return sum(p.nbytes for p in model.parameters() if not any(first <= p.data_ptr() < last for first, last in mapped))
