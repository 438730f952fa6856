"""A signal ends training with a checkpoint and nothing before it, or all ranks save the same step and go on."""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from tests.conftest import tiny
from tests.material.runs.ranks import LIMIT, Ranks
from videodiff.parallel.launcher import AGAIN
from videodiff.training.callbacks.stop import StopGently
from videodiff.training.state.checkpoint import checkpoints, read_record, step_of, whole


class Press(Callback):
    """Sends SIGTERM in step 3, and goes on when it has arrived."""

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, StopGently))
            while not stop.asked:
                time.sleep(0.01)


def test_nothing_is_validated_or_sampled_between_a_signal_and_its_checkpoint(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    recipe = [*tiny(world_dataset), f"data.validation_root={world_dataset}", "trainer.max_steps=9"]
    recipe += ["callbacks.samples.every=3", "callbacks.samples.clips=1", "sampler.steps=1"]
    press = f"+callbacks.press._target_={__name__}.Press"
    # Neither a validation that is due at the last step nor the one with which Lightning ends a training.
    for name, every, validated in (("due", 3, []), ("not", 2, [2])):
        status, _, err = call("train", f"name={name}", *recipe, f"trainer.val_check_interval={every}", press)
        assert status == AGAIN, err
        assert [step_of(path) for path in checkpoints(Path("runs", name))] == [3]
        with Path("runs", name, "metrics/version_0/metrics.csv").open() as file:
            assert [int(row["step"]) for row in csv.DictReader(file) if row.get("val/loss")] == validated
        assert not Path("runs", name, "samples").exists()
    status, _, err = call("train", "resume=runs/due", "trainer.max_steps=4", press, f"trust=[{__name__}]")
    assert status == 0, err
    assert [path.name for path in Path("runs/due/samples").glob("step_*")] == ["step_00000003"]


def test_a_signal_to_any_rank_saves_and_training_goes_on(tmp_path: Path, world_dataset: Path) -> None:
    more = ["optimizer=adamw", "trainer.max_steps=100000", "callbacks.checkpoints.every=100000"]
    ranks = Ranks(2, tmp_path, ["name=one", *tiny(world_dataset), *more, "callbacks.checkpoints.keep=0"])
    run, end = tmp_path / "runs/one", time.monotonic() + LIMIT
    try:
        saved: list[Path] = []
        sent = 0
        while not saved:
            assert ranks.living(), ranks.said()
            assert time.monotonic() < end, ranks.said()
            if any(run.glob("metrics/version_0/metrics.csv")):
                # Not to the rank that saves the record.
                os.kill(ranks.ranks[1].pid, signal.SIGUSR2)
                sent += 1
            time.sleep(0.2)
            saved = checkpoints(run)
        os.kill(ranks.ranks[0].pid, signal.SIGTERM)
        for rank in ranks.ranks:
            rank.wait(LIMIT)
        assert [rank.returncode for rank in ranks.ranks] == [AGAIN] * 2, ranks.said()
    finally:
        ranks.kill()
    found = checkpoints(run)
    assert step_of(found[0]) == step_of(saved[0]) < step_of(found[-1])
    for checkpoint in found:
        assert read_record(whole(checkpoint))["processes"] == 2
    # The last checkpoint is the one of the end.
    asked = ranks.said().count("SIGUSR2: a checkpoint is saved, training goes on")
    assert 1 <= asked <= sent
    assert len(found) <= asked + 1, "a signal asks once"
