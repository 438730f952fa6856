"""DeepSpeed's launcher over a real ssh: two names of this machine are two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.data.storage.test_remote import free_port
from tests.material.servers.local_ssh import Ssh, ssh
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import checkpoints, read_record, whole

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with ssh(tmp_path_factory.mktemp("ssh")) as running:
        yield running


def launch(reached: Ssh, hostfile: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Start the processes of a hostfile."""
    own = {"VIDEODIFF": str(Path(sys.executable).with_name("videodiff")), "MASTER": "127.0.0.1"}
    own |= {"PORT": str(free_port()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "launch/deepspeed/train.sh"), str(hostfile), *words]
    return subprocess.run(
        command, env=reached.environment | own, capture_output=True, text=True, timeout=400, check=False
    )


def test_two_nodes_of_a_hostfile_train_together_and_go_on(reached: Ssh, tmp_path: Path, world_dataset: Path) -> None:
    hostfile, run = tmp_path / "hostfile", tmp_path / "run"
    hostfile.write_text("# name and processes\n" + "".join(f"{node} slots=1\n" for node in reached.nodes))
    words = [*tiny(world_dataset), "optimizer=adamw", "schedule=constant", "strategy=zero2"]
    words += [f"run={run}", "trainer.log_every_n_steps=1"]
    for step in (2, 4):
        done = launch(reached, hostfile, *words, f"trainer.max_steps={step}")
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        for rank, node in enumerate(reached.nodes):
            assert f"{node}: " in done.stdout + done.stderr
            assert f"nnodes=2, num_local_procs=1, node_rank={rank}" in done.stdout + done.stderr
        assert read_record(whole(checkpoints(run)[-1]))["processes"] == 2
    assert "goes on from" in done.stdout + done.stderr
    assert read_run(run).metrics["train/loss"][0].astype(int).tolist() == [1, 2, 3, 4]
    assert reached.log.read_text().count("Accepted publickey") >= 4


def test_a_node_that_nobody_knows_is_one_line(reached: Ssh, tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(f"{reached.nodes[0]} slots=1\nnode.invalid slots=1\n")
    done = launch(reached, hostfile, "name=a")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"train.sh: {hostfile}: found no node node.invalid by ssh (")
    assert "Could not resolve hostname node.invalid" in line
    assert "expected one that answers `ssh node.invalid true` without a password" in line
    assert not os.path.exists("runs/a")
