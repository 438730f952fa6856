"""A disk of 4 MiB in memory, in a mount namespace of its own: `small_disk.py BEFORE LEFT AFTER VERB OVERRIDE...`.

It runs `videodiff` in a copy of the folder BEFORE on a disk with LEFT KiB to spare; AFTER gets what is there then. The
processes are forks of this one, not of the server, which has another namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.material import warm

CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)


def succeed(status: int) -> None:
    """Raise unless a call of the C library succeeded."""
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(disk: Path) -> None:
    """Mount an empty disk that only this process and its children see, as root or not."""
    user, group = os.getuid(), os.getgid()
    succeed(LIBC.unshare(CLONE_NEWNS | CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    succeed(LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    succeed(LIBC.mount(b"none", os.fsencode(disk), b"tmpfs", 0, b"size=4m"))


def fill(path: Path, left: int) -> None:
    """Write a file that leaves so many KiB."""
    found = os.statvfs(path.parent)
    path.write_bytes(bytes(found.f_bavail * found.f_frsize - left * 1024))


def serve_here() -> None:
    """Let a fork of this process start the Python processes of its children."""
    address = f"{tempfile.mkdtemp(prefix='warm-')}/socket"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    if os.fork() == 0:
        warm.fork_for_each(listening, os.pidfd_open(os.getppid()))
        os._exit(0)
    os.environ[warm.ADDRESS] = address


def main(before: str, left: str, after: str, *words: str) -> int:
    """Run a verb on the disk; return its status."""
    disk = Path(after).with_name("disk")
    mount(disk)
    subprocess.run(["cp", "-a", f"{before}/.", disk], check=True)
    fill(disk / "filling", int(left))
    serve_here()
    status = subprocess.Popen([sys.executable, "-m", "videodiff", *words], cwd=disk).wait()
    (disk / "filling").unlink()
    subprocess.run(["cp", "-a", f"{disk}/.", after], check=True)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
