"""A signal ends training with a checkpoint and nothing before it, or all ranks save the same step and go on."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.conftest import tiny
from tests.material.runs.ranks import LIMIT, Ranks
from videodiff.parallel.launcher import AGAIN
from videodiff.training.callbacks.checkpoints import Checkpoints
from videodiff.training.callbacks.stop import StopGently
from videodiff.training.state.checkpoint import checkpoints, read_record, step_of, whole


class Press(Callback):
    """Sends SIGTERM to the last rank in step 3 or in what comes after it, and goes on when it has arrived."""

    def __init__(self, at: str = "step") -> None:
        self.at, self.passes = at, 0

    def press(self, trainer: lightning.Trainer) -> None:
        if trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, StopGently))
            while not stop.asked:
                time.sleep(0.01)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        module.denoiser.register_forward_hook(lambda *_: self.after_forward(trainer, module))

    def after_forward(self, trainer: lightning.Trainer, module: Any) -> None:
        """Count the passes of a sampling."""
        if self.at == "samples" and not module.training and trainer.global_step == 3:
            self.passes += 1
            if self.passes == 1:
                self.press(trainer)

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        if self.at == "step" and trainer.global_step == 2:
            self.press(trainer)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        if self.at == "validation" and trainer.global_step == 3 and index == 0:
            self.press(trainer)

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        assert self.passes <= 1, "sampling went on after the signal"


class Quiet(Callback):
    """Counts what Lightning sends to other ranks between two micro-batches."""

    def __init__(self) -> None:
        self.sent = 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        broadcast = torch.distributed.broadcast

        def counted(*given: Any, **how: Any) -> Any:
            self.sent += 1
            return broadcast(*given, **how)

        torch.distributed.broadcast = counted

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        assert self.sent == 0, "the host waits for the device before each micro-batch"


def validations(run: Path) -> dict[int, float]:
    """Return the validation losses of a run's last start, by step."""
    *_, path = sorted(run.glob("metrics/version_*/metrics.csv"))
    with path.open() as file:
        return {int(row["step"]): float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")}


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
        assert list(validations(Path("runs", name))) == validated
        assert not Path("runs", name, "samples").exists()
    status, _, err = call("train", "resume=runs/due", "trainer.max_steps=4", press, f"trust=[{__name__}]")
    assert status == 0, err
    assert [path.name for path in Path("runs/due/samples").glob("step_*")] == ["step_00000003"]
    assert list(validations(Path("runs/due"))) == [3], "made up by the resume"


def test_a_signal_ends_samples_in_progress_and_a_resume_makes_them(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    recipe = [*tiny(world_dataset), "name=one", "trainer.max_steps=9", "callbacks.samples.clips=1", "sampler.steps=3"]
    press = [f"+callbacks.press._target_={__name__}.Press", "+callbacks.press.at=samples"]
    again = [press[0], "+callbacks.press.at=never", "trainer.max_steps=4", f"trust=[{__name__}]"]
    status, _, err = call("train", *recipe, "callbacks.samples.every=3", *press)
    assert status == AGAIN, err
    assert [step_of(path) for path in checkpoints(Path("runs/one"))] == [3]
    assert not Path("runs/one/samples").exists()
    status, _, err = call("train", "resume=runs/one", *again)
    assert status == 0, err
    assert [path.name for path in Path("runs/one/samples").glob("step_*")] == ["step_00000003"]


def test_a_signal_to_any_rank_ends_a_validation_and_a_resume_makes_it_up(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    recipe = [*tiny(world_dataset), "optimizer=adamw", f"data.validation_root={world_dataset}", "data.micro_batch=1"]
    recipe += ["data.validation_clips=4", "trainer.val_check_interval=3", "callbacks.checkpoints.best=val/loss"]
    status, _, err = call("train", "name=whole", *recipe, "trainer.max_steps=4")
    assert status == 0, err
    press = [f"+callbacks.press._target_={__name__}.Press", "+callbacks.press.at=validation"]
    again = [press[0], "+callbacks.press.at=never", "trainer.max_steps=4", "trainer.devices=1", f"trust=[{__name__}]"]
    ranks = Ranks(2, cwd, ["name=one", *recipe, *press, "trainer.max_steps=9"])
    try:
        for rank in ranks.ranks:
            rank.wait(LIMIT)
        assert [rank.returncode for rank in ranks.ranks] == [AGAIN] * 2, ranks.said()
    finally:
        ranks.kill()
    run = Path("runs/one")
    assert [step_of(path) for path in checkpoints(run)] == [3]
    assert validations(run) == {}
    status, _, err = call("train", "resume=runs/one", *again)
    assert status == 0, err
    assert validations(run) == pytest.approx(validations(Path("runs/whole")), rel=1e-4)
    best = json.loads(Path(run, "checkpoints/best.json").read_text())
    assert best["step"] == 3
    # Made up once.
    status, _, err = call("train", "resume=runs/one", "checkpoint=step_00000003", *again)
    assert status == 0, err
    assert validations(run) == {}
    assert json.loads(Path(run, "checkpoints/best.json").read_text()) == best


def test_a_signal_to_any_rank_saves_and_training_goes_on(tmp_path: Path, world_dataset: Path) -> None:
    more = ["optimizer=adamw", "trainer.max_steps=100000", "callbacks.checkpoints.every=100000"]
    more += ["callbacks.checkpoints.keep=0", f"+callbacks.quiet._target_={__name__}.Quiet"]
    ranks = Ranks(2, tmp_path, ["name=one", *tiny(world_dataset), *more])
    run, end = tmp_path / "runs/one", time.monotonic() + LIMIT
    try:
        saved: list[Path] = []
        sent = 0
        while not saved:
            assert ranks.living(), ranks.said()
            assert time.monotonic() < end, ranks.stuck()
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


def test_a_process_alone_does_not_ask_its_device_at_each_step_what_it_knows(tmp_path: Path) -> None:
    # A tensor on a device that is not here is an error; on a GPU the host would wait for it.
    device = torch.device("cuda", 63)
    trainer = SimpleNamespace(world_size=1, strategy=SingleDeviceStrategy(device), lightning_module=None)
    module, stop = SimpleNamespace(device=device, step_ended=lambda: True), StopGently()
    stop.on_train_batch_end(trainer, module, None, None, 0)
    assert not stop.stopped
    saving = SimpleNamespace(problem=None, done=lambda: True)
    assert Checkpoints(tmp_path).has_ended(trainer, saving)
