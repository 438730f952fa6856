"""Python processes that begin without imports: each is a fork of one process that has imported everything already.

The imports take five of the six seconds of CPU time of a tiny training. `Popen` and `run` work like those of
`subprocess`. A forked process also starts its own Python children this way, unless its environment has
`WARM_CHILDREN=no`. The parent of a fork is the server, so the fork does not share the session of the process that asked
for it, and does not end with it. `python -m tests.material.warm SOCKET` is the server.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The variable with the address of the server.
ADDRESS = "WARM_PYTHON"
# The variable that says `no` if the processes that a process starts must be its own children.
CHILDREN = "WARM_CHILDREN"
# Variables that torch reads at import must have the same values in a fork as in a process of its own.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
# Command lines without their overrides of keys; most processes of the tests have one of these.
TRAIN = ("train", "experiment=bouncing_cpu")
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
COMPOSED = (TRAIN, *((*TRAIN, f"strategy={name}") for name in STRATEGIES), ("evaluate",), ("sample",), ("prep",))


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` whose Python processes are forks of the server.

    `subprocess` has no public place for another way to begin a process and to learn how it ended. Its three private
    methods are the only place below pipes, `communicate`, time-outs and signals, which the library keeps doing: a class
    with public methods alone would write all of them again, and the code under test asks for a real `Popen`. They have
    had these arguments since Python 3.11; where they have others, every test that starts a process is red.
    """

    talk: socket.socket | None = None

    # By name, as `subprocess` hands them over.
    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, *rest: Any):
        cwd, env, _, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _, *_, session, group = rest
        env = dict(os.environ if env is None else env)
        if shell or preexec_fn or pass_fds or not is_script(args) or ADDRESS not in env:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, *rest)
            return
        words = [os.fspath(word) for word in args[1:]]
        wanted = {"words": words, "cwd": os.fspath(cwd or os.getcwd()), "env": env, "session": session, "group": group}
        nothing = os.open(os.devnull, os.O_RDWR)
        fds = [own if own != -1 else ours for own, ours in ((p2cread, nothing), (c2pwrite, 1), (errwrite, 2))]
        self.talk = socket.socket(socket.AF_UNIX)
        self.talk.connect(env[ADDRESS])
        socket.send_fds(self.talk, [json.dumps(wanted).encode() + b"\n"], fds)
        self.lines = self.talk.makefile()
        os.close(nothing)
        for own, other in ((p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)):
            if own != -1 and other != -1:
                os.close(own)
        if hasattr(self, "_devnull"):
            os.close(self._devnull)
        self._closed_child_pipe_fds = True
        self.pid = int(self.lines.readline())
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self.talk is None:
            return super()._try_wait(wait_flags)
        if not select.select([self.talk], [], [], 0 if wait_flags & os.WNOHANG else None)[0]:
            return 0, 0
        return self.pid, int(self.lines.readline())

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self.talk is None:
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
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start(command: Sequence[Any], **how: Any) -> Popen:
    """Start a command with output and errors in one text stream, by default a pipe to this process."""
    how = {"stdout": subprocess.PIPE, **how}
    return Popen(command, stderr=subprocess.STDOUT, text=True, **with_server(how))


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
    import videodiff.verbs.train  # noqa: F401
    from tests.material import composing
    from videodiff.verbs.config.groups import conf_dir

    composing.remember()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        for verb, *options in COMPOSED:
            for mode in (RunMode.MULTIRUN, RunMode.RUN):
                GlobalHydra.instance().hydra.compose_config(verb, options, mode)


def forked(talk: socket.socket) -> int:
    """Fork the process that a connection asks for; return its number."""
    message, fds, _, _ = socket.recv_fds(talk, 1 << 20, 3)
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
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.closerange(3, 1024)
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        # The server's own, remembered there at first use.
        tempfile.tempdir = None
        if os.environ.get(CHILDREN) != "no":
            subprocess.Popen = Popen
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


def execute(words: list[str]) -> None:
    """Run Python's command line with these arguments."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # A command may name classes of the tests, such as callbacks, from any folder.
    sys.path[1:] = [*filter(None, added), *sys.path[1:], str(ROOT)]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
