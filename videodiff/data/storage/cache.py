"""Cache shards of a remote dataset on the local disk: each node fetches and verifies a shard once; eviction is LRU.

The kernel holds all locks (flock on open descriptors), so a killed process leaves none. A shard is named by the
checksum of its content, and gets this name only when it is whole and verified.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from videodiff.data.storage.files import abandoned, lies_at, sync
from videodiff.data.storage.remote import RemoteError, Url, path_or_url

# A cache may share its folder with other files: it counts and removes only its own.
OWN = re.compile(r"([0-9a-f]{64})(\.partial)?")
LOOK_AGAIN = 0.1  # seconds


class Cache:
    """A folder that the processes of a node share, with at most `gib` GiB of shards.

    It should have room for two shuffle windows of shards: the current one and the next, which is prefetched.
    """

    def __init__(self, folder: str | Path, gib: float) -> None:
        if gib <= 0:
            raise ValueError(f"cache: found {gib} GiB, expected more than 0")
        self.folder, self.bytes = Path(folder), int(gib * 2**30)
        self.folder.mkdir(parents=True, exist_ok=True)

    def over(self, url: Url, shards: Sequence[Mapping[str, Any]]) -> CachedFolder:
        """Return a remote folder that is read through the cache; `shards` have name, bytes and sha256."""
        return CachedFolder(url, self, {shard["name"]: shard for shard in shards})

    def open(self, source: Url, size: int, sha256: str) -> BinaryIO:
        """Open a file of this size and content, and fetch it first if needed; it stays readable after eviction.

        RemoteError if it cannot be fetched or has other content.
        """
        path = self.folder / sha256
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                self._fetch(path, source, size)
                continue
            os.utime(file.fileno())
            return file

    def _fetch(self, path: Path, source: Url, size: int) -> None:
        """Bring a file into the cache, or wait until another process or thread has done so."""
        partial = path.with_name(f"{path.name}.partial")
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not lies_at(partial, file):
                return
            try:
                self._reserve(partial, file, size)
                found = copy(source, file, size)
                if found != (size, path.name):
                    raise RemoteError(
                        f"{source}: found {found[0]} bytes with sha256 {found[1][:12]}, expected {size} with "
                        f"{path.name[:12]} as in the manifest: the shard or the manifest was replaced"
                    )
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            sync(self.folder)

    def _reserve(self, partial: Path, file: BinaryIO, size: int) -> None:
        """Wait for room, then reserve it by giving the file its full size."""
        if size > self.bytes:
            raise ValueError(
                f"{self.folder}: found a cache of {self.bytes / 2**30:.3g} GiB, expected room for a few shards of "
                f"{size / 2**30:.3g}"
            )
        while not self._reserved(partial, file, size):
            time.sleep(LOOK_AGAIN)

    def _reserved(self, partial: Path, file: BinaryIO, size: int) -> bool:
        with locked(self.folder):
            whole, room = [], self.bytes - size
            for path in self.folder.iterdir():
                # Another process may rename or remove a file meanwhile; such a file takes no room here.
                with contextlib.suppress(FileNotFoundError):
                    own = OWN.fullmatch(path.name)
                    if own is None or path == partial or (own[2] and abandoned(path)):
                        continue
                    room -= path.stat().st_size
                    if not own[2]:
                        whole.append((path.stat().st_mtime_ns, path))
            for _, path in sorted(whole):
                if room >= 0:
                    break
                room += path.stat().st_size
                path.unlink()
            if room >= 0:
                file.truncate(0)
                os.posix_fallocate(file.fileno(), 0, size)
            return room >= 0


@dataclass(frozen=True)
class CachedFolder:
    """The shards of a remote folder, by name, read through a cache; like a `Path` it has `/`."""

    url: Url
    cache: Cache
    shards: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return str(self.url)

    def __truediv__(self, name: str) -> CachedFile:
        return CachedFile(self.url / name, self.cache, self.shards[name]["bytes"], self.shards[name]["sha256"])

    def prefetch(self, names: Sequence[str], threads: int = 4) -> list[threading.Thread]:
        """Fetch shards in this order in the background; the process may end before the threads do."""
        started = [threading.Thread(target=self._warm, args=(names[i::threads],), daemon=True) for i in range(threads)]
        for thread in started:
            thread.start()
        return started

    def _warm(self, names: Sequence[str]) -> None:
        # The reader that needs the shard meets the same error and reports it.
        with contextlib.suppress(OSError):
            for name in names:
                (self / name).open().close()


@dataclass(frozen=True)
class CachedFile:
    """One shard of a remote folder; like a `Path` it has `open`."""

    url: Url
    cache: Cache
    size: int
    sha256: str

    def __str__(self) -> str:
        return str(self.url)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the local copy for reading."""
        return self.cache.open(self.url, self.size, self.sha256)


def copy(source: Url, file: BinaryIO, size: int) -> tuple[int, str]:
    """Write a remote file to disk, at most `size` bytes of it; return its number of bytes and their sha256."""
    digest, found = hashlib.sha256(), 0
    for piece in source.pieces():
        found += len(piece)
        if found > size:
            break
        digest.update(piece)
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
    return found, digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_remote(root: Any) -> bool:
    """Return whether the files of a folder are at a host, whether a cache keeps them here or not."""
    return isinstance(path_or_url(root), (Url, CachedFolder))
