"""A training goes on under another strategy and on another number of processes: same batches, same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from tests.material.runs.saved_state import tensors_of
from videodiff.report.run import read_run
from videodiff.training.run.checkpoint import checkpoints, read_record

ADAMW = ["optimizer=adamw", "optimizer.lr=1e-3", "optimizer.ema_decay=0.9", "schedule=constant", "~schedule.decay"]
EVERY = ["trainer.log_every_n_steps=1", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=0"]
# Until which step, on how many processes, and how.
PARTS = (
    (2, 4, "strategy=zero3"),
    (4, 2, "strategy=zero1"),
    (6, 3, "strategy=ddp"),
)
LAST = ["strategy=auto", "trainer.devices=1", "data.micro_batch=4"]


def losses(run: Path) -> list[float]:
    """Return the loss of every step."""
    return read_run(run).metrics["train/loss"][1].tolist()


def test_a_run_on_4_then_2_then_3_then_1_processes_is_that_of_one_that_was_never_stopped(
    tmp_path: Path, world_dataset: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = [*tiny(world_dataset), *ADAMW, *EVERY, "data.global_batch=12"]
    for step, processes, strategy in PARTS:
        name = ["name=many", *recipe] if step == 2 else ["resume=runs/many"]
        Ranks(processes, tmp_path, [*name, strategy, f"trainer.max_steps={step}"]).finish()
    for arguments in (["resume=runs/many", *LAST], ["name=one", *recipe]):
        status, _, err = call("train", *arguments, "trainer.max_steps=8")
        assert status == 0, err
    one, many = Path("runs/one"), Path("runs/many")
    assert len(losses(many)) == len(losses(one)) == 8
    assert losses(many) == pytest.approx(losses(one), rel=1e-5)
    layouts = [read_record(checkpoint)["state"] for checkpoint in checkpoints(many)]
    assert layouts == ["ZeRO 3 over 4 processes", "ZeRO 1 over 2 processes", "whole", "whole"]
    for wanted, found in zip(map(tensors_of, checkpoints(one)), map(tensors_of, checkpoints(many)), strict=True):
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key].to(value.dtype), value, rtol=0, atol=1e-5, msg=lambda t, key=key: key)
    # Of four processes under ZeRO 3 none wrote much more than its quarter.
    sizes = [file.stat().st_size for file in checkpoints(many)[0].glob("state/*.safetensors")]
    assert len(sizes) == 4
    assert max(sizes) < 0.4 * sum(sizes)
