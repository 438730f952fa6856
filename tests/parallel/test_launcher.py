"""When a rank fails, one line says which and why, all processes end, and nobody else speaks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from tests.conftest import start, tiny
from tests.material import warm
from tests.material.warm import CHILDREN
from videodiff.data.storage.files import sha256_of
from videodiff.parallel import launcher
from videodiff.parallel.launcher import Launcher, first_failure, meeting_port, watch
from videodiff.parallel.node import forks
from videodiff.parallel.node.parent import PARENT, die_with_parent
from videodiff.training.state.checkpoint import latest_checkpoint

TWO = ["trainer.devices=2", "optimizer=adamw", "schedule=constant"]
TORCHRUN = ["-m", "videodiff.parallel.torchrun", "--standalone", "--nnodes=1", "--nproc-per-node=2"]


def spoken(out: str) -> list[str]:
    """Return the lines of an output that are neither a progress line nor Lightning's greeting."""
    lines = [line.strip() for line in out.replace("\r", "\n").splitlines()]
    return [line for line in lines if line and "step/s" not in line and not line.startswith("Initializing distributed")]


@pytest.mark.parametrize("dead", [0, 1])
def test_torchrun_names_the_rank_that_died_in_one_line(tmp_path: Path, world_dataset: Path, dead: int) -> None:
    words = ["train", "name=a", *tiny(world_dataset), *TWO, "strategy=ddp", "trainer.max_steps=100000"]
    words += ["+callbacks.told._target_=tests.parallel.odd_ranks.Told"]
    agent = warm.start([sys.executable, *TORCHRUN, "-m", "videodiff", *words], cwd=tmp_path, start_new_session=True)
    try:
        end = time.monotonic() + 200
        while not all((tmp_path / f"rank_{rank}").exists() for rank in range(2)):
            assert agent.poll() is None, agent.communicate()[0][-3000:]
            assert time.monotonic() < end, "no step within some minutes"
            time.sleep(0.1)
        victim = int((tmp_path / f"rank_{dead}").read_text())
        os.kill(victim, signal.SIGKILL)
        out, _ = agent.communicate(timeout=200)
    finally:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)
    assert agent.returncode == 76, "a rank was lost: start again"
    assert spoken(out) == [
        f"videodiff: error: rank {dead} (process {victim}) ended by signal 9 (SIGKILL); the others are ended"
    ]


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_process_whose_parent_ended_before_it_could_say_so_ends_too(waited_for: bool) -> None:
    parent = subprocess.Popen(["true"])
    if waited_for:
        parent.wait()
    else:
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
    for process, status in ((parent.pid, 1), (os.getpid(), 7)):
        if (child := os.fork()) == 0:
            os.environ[PARENT] = str(process)
            die_with_parent()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    parent.wait()


@pytest.mark.parametrize(
    ("last", "how"),
    [("exit 1", ""), ("exit 3", "with exit status 3"), ("kill -9 $$", "by signal 9 (SIGKILL)")],
    ids=["said", "exit", "signal"],
)
def test_a_rank_that_failed_without_a_word_is_named_and_all_are_ended(
    last: str, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(launcher, "GRACE", 0.1)
    monkeypatch.setattr(os, "_exit", left.append)
    done, failed, runs = (subprocess.Popen(["sh", "-c", command]) for command in ("exit 0", last, "exec sleep 100"))
    failed.wait()
    watch([done, failed, runs])
    line = f"videodiff train: error: rank 2 (process {failed.pid}) ended {how}; the others are ended\n"
    assert capsys.readouterr().err == (line if how else "")
    assert (left, runs.wait(10), done.wait()) == ([1], -signal.SIGKILL, 0)


def test_a_rank_that_was_stopped_by_a_signal_and_saved_has_not_failed() -> None:
    processes = [subprocess.Popen(["sh", "-c", f"exit {status}"]) for status in (0, 75)]
    for process in processes:
        process.wait()
    assert first_failure(processes) is None
    watch(processes)
    broken = subprocess.Popen(["sh", "-c", "kill -9 $$"])
    broken.wait()
    assert first_failure([*processes, broken]).told.startswith(f"rank 3 (process {broken.pid}) ended by signal 9")


def spoil(shard: Path) -> None:
    """Put into a checkpoint's file what is no state of a training, with the right checksum."""
    torch.save({"a class of somebody": Path}, shard)
    record = shard.parents[1] / "checkpoint.json"
    known = json.loads(record.read_text())
    name = str(shard.relative_to(record.parent))
    known["files"][name] = {"bytes": shard.stat().st_size, "sha256": sha256_of(shard)}
    record.write_text(json.dumps(known))


def test_a_shard_that_cannot_be_read_is_one_line_for_all_ranks(tmp_path: Path, world_dataset: Path) -> None:
    words = ["name=a", *tiny(world_dataset), *TWO, "strategy=zero2", "trainer.max_steps=1"]
    process = start("train", *words, cwd=tmp_path)
    assert process.wait(300) == 0, process.communicate()[0][-3000:]
    shard = latest_checkpoint(tmp_path / "runs/a") / "state/rank_00001.safetensors"
    spoil(shard)
    # The other rank is silent because it ends with the one that has started it.
    env = {**os.environ, CHILDREN: "no"}
    process = start("train", "resume=runs/a", "trainer.max_steps=2", cwd=tmp_path, env=env)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    (line,) = [line for line in spoken(out) if "error" in line]
    assert f"{shard.name}: found no readable pieces of a state" in line
    assert "Traceback" not in out


def test_the_port_of_a_run_is_free_and_none_that_an_outgoing_connection_gets() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {meeting_port() for _ in range(50)}
    assert len(ports) > 40, "two runs that begin together would meet"
    assert max(ports) < lowest


@pytest.mark.parametrize(("said", "cores", "threads"), [(None, 8, 4), (None, 1, 1), ("3", 8, 3)])
def test_the_processes_of_a_node_share_its_cores_unless_a_user_says_how(
    monkeypatch: pytest.MonkeyPatch, said: str | None, cores: int, threads: int
) -> None:
    begun = []

    class Launch(Launcher):
        def _call_children_scripts(self) -> None:
            begun.append(os.environ["OMP_NUM_THREADS"])
            self.procs = []

    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", PARENT):
        # Set first, so that the patch takes back what the launcher sets.
        monkeypatch.setenv(name, said or "")
    if said is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(forks, "cores", lambda: cores)
    torch.set_num_threads(3)
    try:
        assert Launch(LightningEnvironment(), 2, 1).launch(torch.get_num_threads) == threads
    finally:
        torch.set_num_threads(before)
    assert begun == [str(threads)]


def test_a_port_that_is_taken_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(launcher, "PORTS", range(port, port + 1))
        with pytest.raises(OSError, match="found no free port in 100 of"):
            meeting_port()
