"""`python -m videodiff` from a process that has imported everything already: a fork of it begins without the imports.

The imports take five of the eight seconds of CPU time of a tiny training. `python -m tests.material.warm SOCKET` is the
server: it forks one process for each connection and reports how it ended.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


class Started:
    """A process of the warm server: what the tests use of `subprocess.Popen[str]`."""

    def __init__(self, arguments: list[str], cwd: Path, env: dict[str, str], start_new_session: bool = False) -> None:
        self.args = ["python", "-m", "videodiff", *arguments]
        read, write = os.pipe()
        self.stdout: IO[str] = os.fdopen(read)
        self.talk = socket.socket(socket.AF_UNIX)
        self.talk.connect(server())
        wanted = {"arguments": arguments, "cwd": str(cwd), "env": env, "session": start_new_session}
        socket.send_fds(self.talk, [json.dumps(wanted).encode() + b"\n"], [write])
        os.close(write)
        self.lines = self.talk.makefile()
        self.pid, self.returncode = int(self.lines.readline()), None
        self.end = threading.Thread(target=self.wait_for_end, daemon=True)
        self.end.start()

    def wait_for_end(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(int(self.lines.readline()))

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.end.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.append(self.stdout.read()), daemon=True)
        reader.start()
        end = None if timeout is None else time.monotonic() + timeout
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if end is None else max(0.1, end - time.monotonic()))
        return read[0], None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def server() -> str:
    """Start the server of this test process once; it ends with it. Return the address of its socket."""
    address = f"{tempfile.mkdtemp(prefix='warm-')}/socket"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.material.warm", str(listening.fileno())]
    subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[listening.fileno()], stdin=subprocess.DEVNULL)
    return address


def serve(listening: socket.socket) -> None:
    """Fork a process for each connection, until the process that started this one is gone."""
    import videodiff.verbs.evaluate
    import videodiff.verbs.sample
    import videodiff.verbs.train  # noqa: F401

    gc.freeze()
    assert threading.active_count() == 1, "a fork of a process with several threads may hang"
    parent = os.getppid()
    waiting: dict[int, socket.socket] = {}
    while os.getppid() == parent:
        listening.settimeout(0.02 if waiting else 1.0)
        for pid, talk in list(waiting.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                report(talk, os.waitpid(pid, 0)[1])
                del waiting[pid]
        try:
            talk, _ = listening.accept()
        except TimeoutError:
            continue
        wanted, fds, _, _ = socket.recv_fds(talk, 1 << 20, 1)
        pid = os.fork()
        if pid == 0:
            listening.close()
            become(json.loads(wanted), fds[0])
        os.close(fds[0])
        report(talk, pid)
        waiting[pid] = talk


def report(talk: socket.socket, number: int) -> None:
    """Send a number to the process that waits for it, if it still does."""
    try:
        talk.sendall(f"{number}\n".encode())
    except BrokenPipeError:
        talk.close()


def become(wanted: dict[str, Any], out: int) -> None:
    """Be `python -m videodiff` with these arguments, in this folder and environment."""
    status = 1
    try:
        if wanted["session"]:
            os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(fd, target)
        os.closerange(3, 1024)
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        sys.argv = ["videodiff", *wanted["arguments"]]
        runpy.run_module("videodiff", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
