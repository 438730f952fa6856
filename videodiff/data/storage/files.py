"""Write files whole or not at all, and give a folder one writer at a time, also when processes are killed.

The kernel holds all locks (flock on open descriptors), so a process that ends in any way leaves none.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from filelock import FileLock, Timeout

LOCK = ".videodiff.lock"
# Errors of a disk without room, or without room for this user.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# Errors of file systems without locks: some mounts of Lustre, and NFS without a lock daemon.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class FolderTaken(ValueError):
    """A folder that another process writes into."""


@contextmanager
def owning(folder: str | Path, verb: str) -> Iterator[None]:
    """Hold the write lock of a folder while the block runs; the folder is created if needed, and blocks may nest.

    FolderTaken, which names the owner, if another process holds the lock. Unfinished files of dead processes are
    removed. Child processes of the owner write under its lock and do not take it. Over NFS the lock holds between
    machines, unless the mount says `nolock` or `local_lock`; on a file system without locks a warning is printed.
    """
    folder = Path(folder).resolve()
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = own(folder, verb)
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # Remove the file while the lock is held: a process that opened it meanwhile notices and tries again.
            with suppress(FileNotFoundError):
                os.unlink(lock.lock_file)
        lock.release()
        # Remove the folder if nothing was written into it.
        with suppress(OSError):
            for place in made:
                place.rmdir()


def own(folder: Path, verb: str) -> FileLock:
    """Take the lock of a folder, or raise at once."""
    path = folder / LOCK
    lock = FileLock(path, is_singleton=True, fallback_to_soft=False, preserve_lock_file=True)
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_writable(folder, error) from error
        try:
            # Not zero: if the owner is just removing the lock's file, the lock is free a moment later.
            lock.acquire(timeout=0.2, poll_interval=0.02)
            break
        except Timeout:
            raise FolderTaken(f"{folder}: {owner(path)}; wait for its end, or choose another folder") from None
        except FileNotFoundError:
            # The last owner has just removed the empty folder: try again.
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise not_writable(path, error) from error
            print(
                f"{folder}: found a file system without locks: make sure that no other process writes here",
                file=sys.stderr,
            )
            return lock
    if lock.lock_counter == 1:
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        record = {"verb": verb, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            with room_at(path):
                path.write_text(json.dumps(record))
        except OSError:
            path.unlink()
            lock.release()
            raise
        remove_abandoned(folder)
    return lock


def not_writable(path: Path, error: OSError) -> OSError:
    """Return the line of a folder, or a file in it, that cannot be made."""
    return OSError(f"{path}: found a place where nothing can be written ({error.strerror}), expected a writable folder")


def check_writable(key: str, path: Path) -> None:
    """Raise if a file cannot be written at a place, whose folder is made if needed; `key` is the setting that names it.

    A file that is there is not changed. Permissions alone do not tell: root has all of them on a disk for reading only.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") if path.exists() else TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{key}: {path}: found a place where nothing can be written ({error.strerror}), expected a file that this "
            "user may write"
        ) from error


def owner(path: Path) -> str:
    """Return a sentence that says who holds a lock."""
    try:
        record = json.loads(path.read_text())
        verb, pid, host, since = (str(record[key])[:80] for key in ("verb", "pid", "host", "since"))
    except (OSError, ValueError, TypeError, KeyError):
        return "another process writes here"
    return f"{verb!r} (process {pid} on {host}) writes here since {since}"


def partial_of(path: Path) -> Path:
    """Return a temporary name beside `path` that no other writer uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove the unfinished files of a folder, or of one name in it, that no process holds open."""
    for partial in folder.glob(".*.partial" if name is None else f".{glob.escape(name)}.*.partial"):
        if partial.is_file() and not partial.is_symlink():
            with suppress(FileNotFoundError, PermissionError):
                abandoned(partial)


def lies_at(path: Path, file: BinaryIO) -> bool:
    """Return whether `path` still names this open file: it may have been renamed or removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def abandoned(partial: Path, beside: Sequence[Path] = ()) -> bool:
    """Remove a temporary file, and the files `beside` first, if no process holds its lock; return whether it did."""
    with partial.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Without locks nobody knows.
            if not isinstance(error, BlockingIOError) and error.errno not in NO_LOCKS:
                raise
            return False
        if lies_at(partial, file):
            for path in (*beside, partial):
                path.unlink(missing_ok=True)
        return True


@contextmanager
def holding(partial: Path) -> Iterator[BinaryIO]:
    """Make, open and lock an unfinished file; it is removed at the end of the block unless it was renamed.

    FileExistsError if it is there: then it is another writer's, or nobody has removed it yet.
    """
    while True:
        with partial.open("x+b") as file:
            # Without locks only an owner of the folder could take it for abandoned; that takes the lock for a moment.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if not lies_at(partial, file):
                continue  # it was taken for abandoned before it was locked
            try:
                yield file
            finally:
                partial.unlink(missing_ok=True)
            return


@contextmanager
def room_at(path: Path) -> Iterator[None]:
    """Name a place in the error of a full disk: an error of writing to an open file names none."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is flushed to disk and takes its name when the block ends without error."""
    partial = partial_of(path)
    with room_at(path), holding(partial) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)


class Hashed:
    """A new file that is written from start to end, with its size and sha256."""

    def __init__(self, path: Path) -> None:
        self.file, self.size, self.digest = path.open("xb"), 0, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes to the file."""
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        """Return how many bytes are written."""
        return self.size

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        if not self.file.closed:
            with self.file:
                self.file.flush()
                os.fsync(self.file.fileno())


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder; ValueError if the name or a link leads out of the folder."""
    folder = Path(folder)
    root, path = folder.resolve(), (folder / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(
            f"{folder / name}: found a path outside of {folder} ({path}), expected one inside: not followed"
        )
    return folder / name


def write_whole(path: Path, data: bytes) -> Path:
    """Replace a file in one step: a reader sees the old or the new content, never a part."""
    with replacing(path) as file:
        file.write(data)
    return path


def write_alone(path: Path, data: bytes) -> Path:
    """Replace a file in a folder that nobody owns: what killed calls have left of it is removed first."""
    remove_abandoned(path.parent, path.name)
    return write_whole(path, data)


def write_beside(path: Path, data: bytes) -> Path:
    """Write new content of `path` to a temporary file beside it and return its path; renaming needs no more room."""
    partial = partial_of(path)
    try:
        with room_at(path), partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def sync(path: Path) -> None:
    """Force a file, or the renames in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_file(path: str | os.PathLike[str]) -> str:
    """Return what was found in the place of a file, for a message: no file, or the folder of this name."""
    return f"{'the folder' if os.path.isdir(path) else 'no file'} {path}"
