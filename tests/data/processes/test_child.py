"""A child may crash, hang or be interrupted, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from videodiff.data.processes.child import TICK, Child, Gone

ROOT = Path(__file__).parents[3]


def echo(connection: Connection, prefix: str) -> None:
    """Answer each message; obey the ones that are orders."""
    while True:
        message = connection.recv()
        if message == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if message == "leave":
            os._exit(3)
        connection.send(f"{prefix}{message}")


@pytest.mark.parametrize(
    ("order", "how"), [("crash", "the process ended by SIGSEGV"), ("leave", "the process exited with 3")]
)
def test_a_child_that_ends_is_gone_and_how_it_ended_is_told(order: str, how: str) -> None:
    child = Child(echo, "> ")
    child.send("a")
    assert child.receive() == "> a"
    child.send(order)
    with pytest.raises(Gone):
        child.receive()
    assert child.end(1.0) == how


def test_an_interrupt_is_the_parents_to_answer_and_a_child_is_ended_at_once() -> None:
    child = Child(echo, "")
    child.send("a")
    assert child.receive() == "a"
    os.kill(child.process.pid, signal.SIGINT)
    child.send("b")
    assert child.receive() == "b"
    child.process.kill()
    child.process.join()
    child.send("c")  # nobody is there, which the next answer tells
    with pytest.raises(Gone):
        child.receive()
    assert child.end() == "the process ended by SIGKILL"


def test_time_in_which_the_whole_job_stood_still_is_not_charged() -> None:
    child = Child(echo, "")
    child.charge(0.25)
    child.charge(3600.0)
    assert child.spent == 0.25 + 2 * TICK
    child.send("a")
    child.receive()
    assert child.spent == 0.0
    child.end()


PARENT = """
import os, signal, time
from tests.data.processes.test_child import echo
from videodiff.data.processes.child import Child
if __name__ == "__main__":
    children = [Child(echo, ""), Child(echo, "", nests=True)]
    for child in children:
        child.send("a")
        child.receive()
    print(*(child.process.pid for child in children), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    pids, until = [int(pid) for pid in done.stdout.split()], time.monotonic() + 10
    assert len(pids) == 2, done.stderr
    while any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)
