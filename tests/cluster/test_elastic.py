"""torchrun with as many nodes as there are: two agents on this machine are two nodes, and one of them vanishes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.conftest import tiny
from tests.material.servers.local_slurm import descendants, free_ports
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import checkpoints

ROOT = Path(__file__).parents[2]
STEPS = 200


def agent(folder: Path, dataset: Path, port: int) -> subprocess.Popen[str]:
    """Start a node: one of one or two."""
    recipe = ["optimizer=adamw", "schedule=constant", "strategy=ddp", f"run={folder}/run"]
    logged = ["trainer.log_every_n_steps=1", "callbacks.checkpoints.every=20", f"trainer.max_steps={STEPS}"]
    environment = {
        **os.environ,
        **{"VIDEODIFF": str(Path(sys.executable).with_name("videodiff")), "PYTHONPATH": str(ROOT)},
        **{
            "NODES": "1:2",
            "MASTER": "localhost",
            "PORT": str(port),
            "DEVICES": "1",
            "RESTARTS": "3",
            "OMP_NUM_THREADS": "1",
        },
    }
    return subprocess.Popen(
        [str(ROOT / "launch/torchrun/train.sh"), *tiny(dataset), *recipe, *logged],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_goes_on_with_the_nodes_that_are_left(tmp_path: Path, world_dataset: Path) -> None:
    (port,) = free_ports(1)
    first = agent(tmp_path, world_dataset, port)
    time.sleep(2)
    second = agent(tmp_path, world_dataset, port)
    try:
        end = time.monotonic() + 150
        while not list(tmp_path.glob("run/checkpoints/step_*")):
            assert time.monotonic() < end, "no checkpoint within some minutes"
            time.sleep(0.1)
        for process in [*descendants(second.pid), second.pid]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        out, _ = first.communicate(timeout=200)
    finally:
        for node in (first, second):
            for process in [*descendants(node.pid), node.pid]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    assert first.returncode == 0, out[-3000:]
    # Which node has the first rank is chance.
    assert "MEMBER: 1/2" in out or "MEMBER: 2/2" in out, "it began with both"
    assert "MEMBER: 1/1" in out, "it went on with one"
    assert "goes on from" in out
    assert read_run(tmp_path / "run").metrics["train/loss"][0].astype(int).tolist() == list(range(1, STEPS + 1))
    assert checkpoints(tmp_path / "run")[-1].name == f"step_{STEPS:08d}"
