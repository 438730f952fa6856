"""When a checkpoint is saved, which ones stay, and that training goes on while one is written."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
from lightning.pytorch.callbacks import Callback

from tests.conftest import tiny
from tests.material.runs.ranks import LIMIT, Ranks
from tests.material.runs.saved_state import assert_same_bits
from videodiff.training.callbacks.checkpoints import Checkpoints
from videodiff.training.module import VALIDATED, VideoDiffusion
from videodiff.training.state import saving
from videodiff.training.state.checkpoint import checkpoints, step_of, whole

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that trains six steps, with these overrides, and returns what was said."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *more: str, expected: int = 0) -> str:
        status, _, err = call("train", f"name={name}", *tiny(world_dataset), "trainer.max_steps=6", *more)
        assert status == expected, err
        return err

    return run


def keys(**values: Any) -> list[str]:
    """Return overrides of the callback's keys."""
    return [f"callbacks.checkpoints.{key}={value}" for key, value in values.items()]


def steps(name: str) -> list[int]:
    """Return the steps that a run has checkpoints of."""
    return [step_of(path) for path in checkpoints(Path("runs", name))]


def instead(monkeypatch: pytest.MonkeyPatch, first: Callable[[], None]) -> None:
    """Have something happen in the thread before it writes its pieces."""
    write = saving.write_pieces

    def wrapped(*arguments: Any) -> Any:
        first()
        return write(*arguments)

    monkeypatch.setattr(saving, "write_pieces", wrapped)


def test_training_goes_on_while_a_checkpoint_is_written(
    train: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later, seen, end = threading.Event(), [], Checkpoints.on_train_batch_end

    def look(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        end(self, trainer, *rest)
        seen.append((trainer.global_step, steps("thread")))
        if trainer.global_step == 5:
            later.set()

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", look)
    instead(monkeypatch, lambda: later.wait(60))
    train("thread", *keys(every=3, keep=0))
    assert (4, []) in seen, "the checkpoint of step 3 was waited for"
    assert steps("thread") == [3, 6]


def test_what_a_thread_writes_are_the_bits_of_its_step(
    train: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("waited", *keys(every=2, keep=0, asynchronous="false"))
    instead(monkeypatch, lambda: time.sleep(0.3))
    train("thread", *keys(every=2, keep=0))
    assert steps("waited") == steps("thread") == [2, 4, 6]
    for one, other in zip(checkpoints(Path("runs/waited")), checkpoints(Path("runs/thread")), strict=True):
        assert_same_bits(one, other)
        whole(other)


def test_a_save_waits_for_the_one_before_and_says_so_once(
    train: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, lambda: time.sleep(1.2))
    err = train("a", *keys(every=1, keep=0), "trainer.max_steps=4")
    lines = [line for line in err.splitlines() if "waited" in line]
    assert len(lines) == 1
    assert lines[0].startswith("step 2: waited 1.")
    assert "for the checkpoint of step 1 to be on the disk; a larger callbacks.checkpoints.every than 1" in lines[0]
    assert steps("a") == [1, 2, 3, 4]


def test_a_write_that_fails_is_one_line_at_a_later_step_and_nothing_of_it_stays(
    train: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = []

    def fill() -> None:
        count.append(1)
        if len(count) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "x")

    instead(monkeypatch, fill)
    err = train("a", *keys(every=2, keep=0), expected=1)
    last = err.strip().splitlines()[-1]
    assert "No space left on device for a checkpoint, which needs about" in last
    assert "runs/a/checkpoints" in last
    assert [path.name for path in Path("runs/a/checkpoints").iterdir()] == ["step_00000002"]


class Full(Callback):
    """Asks for a checkpoint in step 3; from there on the last rank can write to no file."""

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        if trainer.global_step != 2:
            return
        # How long files do not grow where a rank is gone.
        saving.STALL = 0.5
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                callback.due = True
        if trainer.global_rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_rank_that_can_write_nothing_not_even_that_it_failed_ends_training_soon(
    tmp_path: Path, world_dataset: Path
) -> None:
    recipe = [*tiny(world_dataset), "name=a", "optimizer=adamw", "trainer.max_steps=400", "trainer.log_every_n_steps=1"]
    ranks = Ranks(2, tmp_path, [*recipe, f"+callbacks.full._target_={__name__}.Full"])
    try:
        for rank in ranks.ranks:
            rank.wait(LIMIT)
    finally:
        ranks.kill()
    said = ranks.said()
    assert [rank.returncode for rank in ranks.ranks] == [1, 1], said
    assert said.count("videodiff train: error: ") == 1, said
    assert os.strerror(errno.EFBIG) in said
    assert not list((tmp_path / "runs/a/checkpoints").iterdir())
    (table,) = (tmp_path / "runs/a/metrics").glob("*/metrics.csv")
    assert len(table.read_text().splitlines()) < 200


def test_multiples_are_kept_for_good(train: Callable[..., str]) -> None:
    train("a", *keys(every=1, keep=1, keep_every=2))
    assert steps("a") == [2, 4, 6]
    train("b", *keys(every=1, keep=2, keep_every=3))
    assert steps("b") == [3, 5, 6]


def test_the_clock_saves_too(train: Callable[..., str]) -> None:
    train("a", *keys(keep=0, minutes=1e-6))
    assert steps("a") == [1, 2, 3, 4, 5, 6]
    train("b", *keys(keep=0, minutes=60))
    assert steps("b") == [6]


# Saved because of the best alone, and at the very steps of the validations.
@pytest.mark.parametrize(("every", "asynchronous"), [(1000, True), (2, True), (2, False)])
def test_the_best_is_saved_and_stays_through_a_resume(
    every: int,
    asynchronous: bool,
    train: Callable[..., str],
    call: Call,
    world_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = {2: math.nan, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5}

    def end(self: VideoDiffusion) -> None:
        self.validated_figures = dict.fromkeys(VALIDATED, losses[self.trainer.global_step])

    monkeypatch.setattr(VideoDiffusion, "on_validation_epoch_end", end)
    validation = [f"data.validation_root={world_dataset}", "data.validation_clips=2", "trainer.val_check_interval=2"]
    train("a", *keys(every=every, keep=1, best="val/loss", asynchronous=asynchronous), *validation)
    assert steps("a") == [4, 6]
    assert json.loads(Path("runs/a/checkpoints/best.json").read_text()) == {"step": 4, "val/loss": 1.0}
    for last, begin, expected in ((8, 4, [4, 8]), (10, 8, [10])):
        more = [f"trainer.max_steps={last}", f"checkpoint=step_{begin:08d}"]
        status, _, err = call("train", "resume=runs/a", *more)
        assert status == 0, err
        assert steps("a") == expected


def test_the_record_of_the_best_belongs_to_the_checkpoint_that_is_resumed(
    train: Callable[..., str], call: Call, world_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {2: 1.0, 4: 2.0, 6: 0.5, 8: 3.0}

    def end(self: VideoDiffusion) -> None:
        self.validated_figures = dict.fromkeys(VALIDATED, losses[self.trainer.global_step])

    monkeypatch.setattr(VideoDiffusion, "on_validation_epoch_end", end)
    validation = [f"data.validation_root={world_dataset}", "data.validation_clips=2", "trainer.val_check_interval=2"]
    train("a", *keys(every=2, keep=0, best="val/loss"), *validation)
    best = Path("runs/a/checkpoints/best.json")
    assert json.loads(best.read_text())["step"] == 6
    # The checkpoint of step 6 is put aside, and that of step 5 is no better than the one before.
    status, _, err = call("train", "resume=runs/a", "checkpoint=step_00000004", "trainer.max_steps=5")
    assert status == 0, err
    assert json.loads(best.read_text()) == {"step": 2, "val/loss": 1.0}
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=6", *keys(best="null"))
    assert status == 0, err
    assert not best.exists(), "nothing measures it any more"


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ("val/los", "callbacks.checkpoints.best: found 'val/los', expected one of val/loss, val/loss_tau_0.1,"),
        ("val/loss", "callbacks.checkpoints.best: found 'val/loss' without clips to validate with; set data.valid"),
    ],
)
def test_a_best_that_nobody_measures_is_a_line_before_the_first_step(
    train: Callable[..., str], best: str, message: str
) -> None:
    err = train("a", *keys(best=best), expected=1)
    assert message in err.strip().splitlines()[-1]
    assert not checkpoints(Path("runs/a"))
