"""The optimizer's state on a local disk: what DeepSpeed needs there, and a folder for each process of its own.

DeepSpeed names its files by rank alone, so two runs with one folder would overwrite each other's state.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from videodiff.words import count_text

LIBRARY, KERNELS = "libaio.so.1", ("pin_memory", "async_io")
PREFIX, LOCK = ".videodiff-", "lock"
# Weights, gradients, two moments and an average of 4 bytes each.
BYTES_PER_WEIGHT = 20


def check_disk(folder: str) -> None:
    """Raise if the folder is not there, or its file system takes no direct writes."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"strategy.nvme: found no folder {folder}, expected one on a local NVMe disk; make it")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"strategy.nvme: found {folder}, where no file can be made ({error.strerror}), expected a writable folder"
        ) from error
    probe = Path(folder) / f"{PREFIX}probe-{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError as error:
        raise ValueError(
            f"strategy.nvme: found {folder}, whose file system has no direct input and output ({error.strerror}), "
            "expected a folder on a local NVMe disk"
        ) from error
    finally:
        probe.unlink(missing_ok=True)


def check_memory() -> None:
    """Raise if this process may not lock memory, which DeepSpeed's buffers need."""
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if locked != resource.RLIM_INFINITY and not may_lock_all():
        raise ValueError(
            f"strategy.nvme: found a limit of {locked / 2**20:.0f} MiB of locked memory, expected none; "
            "ulimit -l unlimited; in a container --ulimit memlock=-1; for Slurm in slurmd's own limits"
        )


def may_lock_all() -> bool:
    """Return whether this process may lock memory whatever the limit is (CAP_IPC_LOCK)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return bool(effective >> 14 & 1)


def load_kernels() -> None:
    """Load DeepSpeed's kernels for disks; the first process on a machine compiles them, which takes a minute."""
    try:
        # On a CPU DeepSpeed's kernel is not linked with the library, and finds it only in the process.
        ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ValueError(
            f"strategy.nvme: found no {LIBRARY}, expected it; install libaio1 (Ubuntu: libaio1t64) and libaio-dev, or "
            "leave strategy.nvme out: the host's memory takes the state"
        ) from error
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    ready = all(installed_ops.get(name, False) for name in KERNELS)
    if not ready:
        check_compilers(builder)
    try:
        with one_at_a_time(() if ready else KERNELS):
            builder.load(verbose=False)
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"strategy.nvme: found no kernels of DeepSpeed for disks ({reason}), expected them to be compiled; "
            "install g++, ninja-build, python3-dev and libaio-dev"
        ) from error


def check_compilers(builder: Any) -> None:
    """Raise if something is missing that DeepSpeed compiles its kernels with."""
    for program, package in (("g++", "g++"), ("ninja", "ninja-build")):
        if shutil.which(program) is None:
            raise ValueError(
                f"strategy.nvme: found no {program}, which DeepSpeed compiles its kernels for disks with, expected it; "
                f"install {package}"
            )
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.cuda.is_available() and CUDA_HOME is None:
        raise ValueError(
            "CUDA_HOME: found nothing, expected the CUDA toolkit, which DeepSpeed compiles its kernels for disks with; "
            "install the toolkit of torch's version, or take the image of the Dockerfile, which has the kernels"
        )
    if not builder.is_compatible(verbose=False):
        raise ValueError(
            "strategy.nvme: found no headers of libaio, which DeepSpeed compiles its kernels for disks with, expected "
            "them; install libaio-dev, or leave strategy.nvme out: the host's memory takes the state"
        )


@contextmanager
def one_at_a_time(names: tuple[str, ...]) -> Iterator[None]:
    """Compile kernels in one process at a time; a lock file of torch that a killed process left is removed."""
    if not names:
        yield
        return
    from torch.utils.cpp_extension import _get_build_directory

    folders = [Path(_get_build_directory(name, verbose=False)) for name in names]
    with (folders[0].parent / ".videodiff").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for folder, name in zip(folders, names, strict=True):
            (folder / "lock").unlink(missing_ok=True)
            if not (folder / f"{name}.so").exists():
                print(f"compiles {name} of DeepSpeed for this machine, once: some minutes", flush=True)
        yield


class Folder:
    """A folder of one process below `parent`, until `remove` is called; those of dead processes are removed first."""

    def __init__(self, parent: Path) -> None:
        for other in parent.glob(f"{PREFIX}*/{LOCK}"):
            remove_dead(other)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Nobody sees the lock before this process holds it.
        unseen = self.path / f"{LOCK}.new"
        self.lock: BinaryIO = unseen.open("wb")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        unseen.rename(self.path / LOCK)

    def lack_of_room(self, weights: int, processes: int) -> Exception | None:
        """Return what is wrong if the disk has no room for so many weights' state of each process of this node."""
        free, needed = shutil.disk_usage(self.path).free, BYTES_PER_WEIGHT * weights * processes
        if free >= needed:
            return None
        return ValueError(
            f"strategy.nvme: found {free / 2**30:,.2f} GiB free in {self.path.parent} of {socket.gethostname()}, "
            f"expected at least {needed / 2**30:,.2f} for the state of {count_text(processes, 'process')}; make room, "
            "or use more nodes"
        )

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()


def remove_dead(lock: Path) -> None:
    """Remove a folder whose process is gone: the kernel has released its lock."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    except OSError:
        # Another process holds it, or has just removed it.
        return
