"""A training goes on under another strategy and on another number of processes: same batches, same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import finish, start, tiny
from tests.material.saved_state import tensors_of
from videodiff.report.run import read_run
from videodiff.training.run.checkpoint import AVERAGE, checkpoints, latest_checkpoint, read_record

ADAMW = ["optimizer=adamw", "optimizer.lr=1e-3", "optimizer.ema_decay=0.9", "schedule=constant", "~schedule.decay"]
EVERY = ["trainer.log_every_n_steps=1", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=0"]
# What goes on after how many steps: four processes, two, three, one.
PARTS = (
    (2, ["strategy=zero3", "trainer.devices=4"]),
    (4, ["strategy=zero1", "trainer.devices=2"]),
    (6, ["strategy=ddp", "trainer.devices=3"]),
    (8, ["strategy=auto", "trainer.devices=1", "data.micro_batch=4"]),
    (10, ["strategy=zero2", "trainer.devices=2", "data.micro_batch=null"]),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Return the run folders: `one` of one process that was never stopped, `many` that went on in all of PARTS."""
    cwd = tmp_path_factory.mktemp("topology")
    recipe = [*tiny(world_dataset), *ADAMW, *EVERY, "data.global_batch=12"]
    finish(start("train", "name=one", *recipe, "trainer.max_steps=10", cwd=cwd))
    for step, how in PARTS:
        name = ["name=many", *recipe] if step == 2 else ["resume=runs/many"]
        finish(start("train", *name, *how, f"trainer.max_steps={step}", cwd=cwd))
    return cwd / "runs"


def losses(run: Path) -> list[float]:
    """Return the loss of every step."""
    return read_run(run).metrics["train/loss"][1].tolist()


def test_the_losses_are_those_of_one_process_that_was_never_stopped(runs: Path) -> None:
    wanted, found = losses(runs / "one"), losses(runs / "many")
    assert len(wanted) == len(found) == 10
    assert found == pytest.approx(wanted, rel=1e-5)


def test_weights_moments_averages_and_counts_are_those_of_one_process(runs: Path) -> None:
    for one, many in zip(checkpoints(runs / "one"), checkpoints(runs / "many"), strict=True):
        wanted, found = tensors_of(one), tensors_of(many)
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key].to(value.dtype), value, rtol=0, atol=1e-5, msg=lambda t, key=key: key)
    kept = {read_record(checkpoint)["state"] for checkpoint in checkpoints(runs / "many")}
    assert kept == {"ZeRO 3 over 4 processes", "ZeRO 1 over 2 processes", "whole", "ZeRO 2 over 2 processes"}


def test_no_file_of_a_split_state_holds_the_whole(runs: Path) -> None:
    sizes = [file.stat().st_size for file in checkpoints(runs / "many")[0].glob("state/*.safetensors")]
    assert len(sizes) == 4
    assert max(sizes) < 0.4 * sum(sizes)


@pytest.mark.usefixtures("runs")
def test_a_resume_to_nothing_more_saves_nothing(
    runs: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    before = load_file(latest_checkpoint(runs / "one") / AVERAGE)
    status, _, err = call("train", "resume=runs/one")
    assert status == 0, err
    after = load_file(latest_checkpoint(runs / "one") / AVERAGE)
    assert all(torch.equal(before[name], after[name]) for name in before)
