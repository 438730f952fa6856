"""Python processes that begin without imports: each is a fork of one process that has imported everything already.

The imports take five of the six seconds of CPU time of a tiny training. `Popen` and `run` work like those of
`subprocess`. A forked process also starts its own Python children this way, unless its environment has
`WARM_CHILDREN=no`. The parent of a fork is the server, so the fork does not share the session of the process that asked
for it, and does not end with it. `python -m tests.material.warm SOCKET` is the server.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import gc
import json
import multiprocessing.spawn
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The variable with the address of the server.
ADDRESS = "WARM_PYTHON"
# The variable that says `no` if the processes that a process starts must be its own children.
CHILDREN = "WARM_CHILDREN"
# The signal at which a fork writes the stacks of its threads, as Java does, and seconds in which it does that.
STACKS, WRITING = signal.SIGQUIT, 2.0
# What `multiprocessing` calls a process that it spawns.
SPAWNED = "--multiprocessing-fork"
# Variables that torch reads at import must have the same values in a fork as in a process of its own.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
# The number of files that a fork is given, and their numbers, are below these.
MOST_FILES, MOST_NUMBER = 100, 4096
# Command lines without their overrides of keys; most processes of the tests have one of these.
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
COMPOSED = (("train",), *(("train", f"strategy={name}") for name in STRATEGIES), ("evaluate",), ("sample",), ("prep",))


class Fork:
    """A process that the server forks: Python with these words, and with files that get the given numbers."""

    def __init__(
        self,
        address: str,
        words: list[str],
        files: dict[int, int],
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        session: bool = False,
        group: int = -1,
    ) -> None:
        wanted = {"words": words, "cwd": cwd or os.getcwd(), "env": env or {**os.environ}, "numbers": list(files)}
        self.talk = socket.socket(socket.AF_UNIX)
        self.talk.connect(address)
        message = json.dumps({**wanted, "session": session, "group": group}).encode()
        socket.send_fds(self.talk, [message + b"\n"], list(files.values()))
        self.lines, self.lock = self.talk.makefile(), threading.Lock()
        self.pid, self.ended = int(self.lines.readline()), None

    def status(self, wait: bool) -> int | None:
        """Return the wait status of the process, None if it has not ended; several threads may ask."""
        if self.ended is None and select.select([self.talk], [], [], None if wait else 0)[0]:
            with self.lock:
                if self.ended is None:
                    self.ended = int(self.lines.readline())
        return self.ended


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` whose Python processes are forks of the server.

    `subprocess` has no public place for another way to begin a process and to learn how it ended. Its three private
    methods are the only place below pipes, `communicate`, time-outs and signals, which the library keeps doing: a class
    with public methods alone would write all of them again, and the code under test asks for a real `Popen`. They have
    had these arguments since Python 3.11; where they have others, every test that starts a process is red.
    """

    fork: Fork | None = None

    # By name, as `subprocess` hands them over.
    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, *rest: Any):
        cwd, env, _, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _, *_, session, group = rest
        env = dict(os.environ if env is None else env)
        if shell or preexec_fn or pass_fds or not is_script(args) or ADDRESS not in env:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, *rest)
            return
        words = [os.fspath(word) for word in args[1:]]
        nothing = os.open(os.devnull, os.O_RDWR)
        given = zip((p2cread, c2pwrite, errwrite), (nothing, 1, 2), strict=True)
        files = dict(enumerate(own if own != -1 else ours for own, ours in given))
        self.fork = Fork(env[ADDRESS], words, files, os.fspath(cwd) if cwd else None, env, session, group)
        os.close(nothing)
        for own, other in ((p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)):
            if own != -1 and other != -1:
                os.close(own)
        if hasattr(self, "_devnull"):
            os.close(self._devnull)
        self._closed_child_pipe_fds = True
        self.pid = self.fork.pid
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self.fork is None:
            return super()._try_wait(wait_flags)
        status = self.fork.status(wait=not wait_flags & os.WNOHANG)
        return (0, 0) if status is None else (self.pid, status)

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self.fork is None:
            return super()._internal_poll(*args, **kwargs)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None and (ended := self._try_wait(os.WNOHANG))[0]:
                    self._handle_exitstatus(ended[1])
            finally:
                self._waitpid_lock.release()
        return self.returncode


def is_script(args: Any) -> bool:
    """Tell whether a command has this Python run a module or a file."""
    words = [] if isinstance(args, str | bytes | os.PathLike) else [os.fspath(word) for word in args]
    return words[:1] == [sys.executable] and "-c" not in words[:3]


def run(command: Sequence[Any], *, timeout: float | None = None, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end as `subprocess.run` does, with its output as text."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **with_server(how)) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            end_late([process])
            raise AssertionError("\n".join(process.communicate())) from late
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start(command: Sequence[Any], **how: Any) -> Popen:
    """Start a command with output and errors in one text stream, by default a pipe to this process."""
    how = {"stdout": subprocess.PIPE, **how}
    return Popen(command, stderr=subprocess.STDOUT, text=True, **with_server(how))


def end_late(processes: Sequence[Popen]) -> None:
    """Kill processes that should have ended; before, those that still run write where they are."""
    for process in processes:
        process.send_signal(STACKS)
    time.sleep(WRITING)
    for process in processes:
        process.kill()


def with_server(how: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a process with the server in its environment."""
    return {**how, "env": {**how.get("env", os.environ), **ENVIRONMENT, ADDRESS: server()}}


def server() -> str:
    """Return the address of the server; it starts at first use and ends with the process that started it."""
    if ADDRESS not in os.environ:
        address = f"{tempfile.mkdtemp(prefix='warm-')}/socket"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen()
        command = [sys.executable, "-m", "tests.material.warm", str(listening.fileno())]
        how = {"pass_fds": [listening.fileno()], "stdin": subprocess.DEVNULL}
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, **how)
        os.environ[ADDRESS] = address
    return os.environ[ADDRESS]


def serve(listening: socket.socket) -> None:
    """Fork a process for each connection, until the process that started this one is gone."""
    parent = os.pidfd_open(os.getppid())
    # Import only when the first request comes.
    if parent in select.select([listening, parent], [], [])[0]:
        return
    import_all()
    gc.freeze()
    fork_for_each(listening, parent)


def fork_for_each(listening: socket.socket, parent: int) -> None:
    """Fork this process for each connection, until its parent, a pidfd, is gone."""
    assert threading.active_count() == 1, "a fork of a process with several threads may hang"
    children: dict[int, tuple[int, socket.socket]] = {}
    while parent not in (ready := select.select([listening, parent, *children], [], [])[0]):
        for pidfd in ready:
            if pidfd in children:
                pid, talk = children.pop(pidfd)
                report(talk, os.waitpid(pid, 0)[1])
                talk.close()
                os.close(pidfd)
        if listening in ready:
            talk, _ = listening.accept()
            pid = forked(talk)
            report(talk, pid)
            children[os.pidfd_open(pid)] = (pid, talk)


def import_all() -> None:
    """Import the modules that the verbs import sooner or later, and let Hydra find its plugins."""
    import hydra
    import s3fs  # noqa: F401
    import torch.distributed.run  # noqa: F401
    from diffusers import AutoencoderKL  # noqa: F401
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from transformers import T5EncoderModel  # noqa: F401

    import videodiff.parallel.fsdp.strategy
    import videodiff.parallel.zero.muon
    import videodiff.parallel.zero.strategy
    import videodiff.verbs.evaluate
    import videodiff.verbs.prep
    import videodiff.verbs.sample
    import videodiff.verbs.train.command  # noqa: F401
    from tests.material import composing
    from videodiff.verbs.config.groups import conf_dir

    composing.remember()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        for verb, *options in COMPOSED:
            for mode in (RunMode.MULTIRUN, RunMode.RUN):
                GlobalHydra.instance().hydra.compose_config(verb, options, mode)


def forked(talk: socket.socket) -> int:
    """Fork the process that a connection asks for; return its number."""
    message, fds, _, _ = socket.recv_fds(talk, 1 << 20, MOST_FILES)
    while not message.endswith(b"\n"):
        message += talk.recv(1 << 20)
    pid = os.fork()
    if pid == 0:
        become(json.loads(message), fds)
    for fd in fds:
        os.close(fd)
    return pid


def report(talk: socket.socket, number: int) -> None:
    """Send a number to the process that waits for it, if it still does."""
    try:
        talk.sendall(f"{number}\n".encode())
    except BrokenPipeError:
        talk.close()


def become(wanted: dict[str, Any], fds: list[int]) -> None:
    """Turn this process into Python with these arguments, in this folder and environment."""
    status = 1
    try:
        if wanted["session"]:
            os.setsid()
        if wanted["group"] >= 0:
            os.setpgid(0, wanted["group"])
        number_files(dict(zip(wanted["numbers"], fds, strict=True)))
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        faulthandler.register(STACKS)
        # The server's own, remembered there at first use.
        tempfile.tempdir = None
        if os.environ.get(CHILDREN) != "no":
            from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

            from tests.material.processes import spawned

            # The agent of torchrun took the name when the server imported it.
            subprocess.Popen = subprocess_handler.Popen = Popen
            spawned.from_server()
        execute(wanted["words"])
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


def number_files(files: dict[int, int]) -> None:
    """Give files these numbers, and close all others."""
    free = max(files) + 1
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, free) for number, fd in files.items()}
    os.closerange(0, free)
    for number, fd in moved.items():
        os.dup2(fd, number)
    os.closerange(free, MOST_NUMBER)


def execute(words: list[str]) -> None:
    """Run Python's command line with these arguments."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # A command may name classes of the tests, such as callbacks, from any folder.
    sys.path[1:] = [*filter(None, added), *sys.path[1:], str(ROOT)]
    if words[0] == SPAWNED:
        sys.argv = ["-c", *words]
        multiprocessing.spawn.spawn_main(tracker_fd=int(words[1]), pipe_handle=int(words[2]))
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
