"""A run that is stopped and continued ends with the very weights of a run that was not."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import finish, start, tiny
from tests.material.runs.saved_state import assert_same_bits
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint

STEPS = 60


def wait_for_step(run: Path, process: object, step: int) -> None:
    """Return when a run has saved this step or a later one."""
    end = time.monotonic() + 120
    while not any(int(c.name.split("_")[1]) >= step for c in checkpoints(run)):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "no checkpoint within two minutes"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Return a folder with the uninterrupted run `whole`, and `stopped` and `killed`, continued to the same step."""
    cwd = tmp_path_factory.mktemp("resume")
    recipe = [*tiny(world_dataset), "optimizer=muon", f"trainer.max_steps={STEPS}", "callbacks.checkpoints.every=5"]
    finish(start("train", "name=whole", *recipe, cwd=cwd))
    for name, number in (("stopped", signal.SIGINT), ("terminated", signal.SIGTERM), ("killed", signal.SIGKILL)):
        process = start("train", f"name={name}", *recipe, cwd=cwd)
        wait_for_step(cwd / "runs" / name, process, 5)
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
        (cwd / f"{name}.txt").write_text(f"{process.returncode}\n{out}")
        (cwd / f"{name}_step.txt").write_text(latest_checkpoint(cwd / "runs" / name).name)
        finish(start("train", f"resume=runs/{name}", cwd=cwd))
    return cwd


@pytest.mark.parametrize("name", ["stopped", "terminated", "killed"])
def test_a_continued_run_ends_with_the_same_bits(folder: Path, name: str) -> None:
    interrupted = int((folder / f"{name}_step.txt").read_text().split("_")[1])
    assert 5 <= interrupted < STEPS, "the run was over before the signal came"
    whole, continued = (latest_checkpoint(folder / "runs" / run) for run in ("whole", name))
    assert whole.name == continued.name == f"step_{STEPS:08d}"
    wanted, found = (load_file(c / "average.safetensors") for c in (whole, continued))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert_same_bits(whole, continued)


@pytest.mark.parametrize("name", ["stopped", "terminated"])
def test_a_signal_leaves_a_whole_checkpoint_of_the_step_it_came_in(folder: Path, name: str) -> None:
    status, out = (folder / f"{name}.txt").read_text().split("\n", 1)
    step = int((folder / f"{name}_step.txt").read_text().split("_")[1])
    assert status == "75", "stopped before its end: start it again"
    assert f"{step} steps in runs/{name}" in out


def test_the_curves_of_both_halves_are_kept(folder: Path) -> None:
    assert len(list((folder / "runs/stopped/metrics").glob("version_*/metrics.csv"))) == 2


def test_the_run_folder_tells_how_it_came_about(folder: Path) -> None:
    commands = (folder / "runs/stopped/command.txt").read_text().splitlines()
    assert len(commands) == 2
    assert commands[0].startswith("videodiff train name=stopped data.root=")
    assert commands[1] == "videodiff train resume=runs/stopped"
