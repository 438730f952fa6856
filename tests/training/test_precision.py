"""Weights in another precision meet the same noise, and are sampled from while they train."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.conftest import finish, start, tiny
from videodiff.training.limits import half_type

BF16, FP16 = ("bf16", "bf16-mixed", "bf16-true"), ("16", "16-mixed", "16-true")


def losses(run: Path) -> list[float]:
    """Return the losses of the steps of a run."""
    with (run / "metrics/version_0/metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.parametrize("precision", [*BF16, *FP16, "32", "32-true", "64", "64-true"])
def test_the_type_of_16_bits_is_that_of_the_precision(precision: str) -> None:
    expected = torch.bfloat16 if precision in BF16 else torch.float16 if precision in FP16 else None
    assert half_type(precision) is expected


def test_training_in_half_or_double_precision_follows_that_in_single(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    recipe = [*tiny(world_dataset), "trainer.max_steps=3", "trainer.log_every_n_steps=1", "sampler.steps=1"]
    recipe += ["callbacks.samples.every=2", "callbacks.samples.clips=2"]
    for precision in ("32-true", "bf16-true", "64-true"):
        status, _, err = call("train", f"name={precision}", f"trainer.precision={precision}", *recipe)
        assert status == 0, err
        assert len(list(Path("runs", precision, "samples/step_00000002").glob("*.mp4"))) == 2
    wanted = losses(Path("runs/32-true"))
    assert len(wanted) == 3
    for precision, off in (("bf16-true", 1e-3), ("64-true", 1e-6)):
        found = losses(Path("runs", precision))
        # A new network gives zeros, so that its first loss is that of the noise alone.
        assert found[0] == pytest.approx(wanted[0], rel=1e-7)
        assert found == pytest.approx(wanted, rel=off)


class Rates(Callback):
    """Looks at the frame rates of clips of which every third frame is taken."""

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        assert batch["fps"].tolist() == torch.full((4,), 5 / 3, dtype=torch.float32).tolist()

    def on_validation_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        self.on_train_batch_start(trainer, module, batch, index)


def test_frame_rates_are_not_rounded_to_the_precision_of_the_weights(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    recipe = [*tiny(world_dataset), "data.frames=2", "data.stride=3", "trainer.max_steps=1", "sampler.steps=1"]
    recipe += [f"data.validation_root={world_dataset}", "data.validation_clips=4", "trainer.val_check_interval=1"]
    recipe += [f"+callbacks.rates._target_={__name__}.Rates"]
    status, _, err = call("train", "name=true", *recipe, "trainer.precision=bf16-true")
    assert status == 0, err
    zero = ["strategy=zero2", "trainer.devices=1", "trainer.precision=bf16-mixed"]
    finish(start("train", "name=mixed", *recipe, *zero, cwd=cwd))


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_clips_are_sampled_under_zero_though_every_step_so_far_was_skipped(
    call: Callable[..., tuple[int, str, str]], float16: None, strategy: str, world_dataset: Path, cwd: Path
) -> None:
    recipe = [*tiny(world_dataset), f"strategy={strategy}", "trainer.devices=1", "trainer.precision=16-true"]
    recipe += ["callbacks.samples.every=1", "callbacks.samples.clips=1", "sampler.steps=1"]
    # In float16 DeepSpeed first looks for the scale of the loss.
    status, out, err = call("train", "name=a", *recipe, "trainer.max_steps=1")
    assert status == 0, err
    assert "step 1: skipped, loss or gradient not finite" in out + err
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 0, err
    first, last = ((cwd / f"runs/a/samples/step_{step:08d}/clip_0.mp4").read_bytes() for step in (1, 4))
    assert first != last
