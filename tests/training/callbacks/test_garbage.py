"""Garbage of a training is collected at the steps that are asked for, and at no other time."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from tests.conftest import tiny

Call = Callable[..., tuple[int, str, str]]
# Many more objects than Python makes before it collects by itself.
MANY = 20_000
# How many objects of each step are still there when a batch begins, by that batch's step.
SEEN: dict[int, dict[int, int]] = {}


class Cycle:
    """An object that only a collection can remove."""

    def __init__(self, step: int) -> None:
        self.step, self.itself = step, self


class Litters(Callback):
    """Leaves many cycles in each step, and notes which are still there at the next one."""

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.left = fails, []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        step = trainer.global_step + 1
        SEEN[step] = Counter(cycle.step for one in self.left if (cycle := one()) is not None)
        self.left += [weakref.ref(Cycle(step)) for _ in range(MANY)]
        assert gc.get_freeze_count(), "what lives before the first step is looked at each time"
        if step == self.fails:
            raise RuntimeError("out of luck")


@pytest.fixture
def thawed() -> Iterator[None]:
    """Have nothing frozen, as in a program that has just started; the tests have frozen what they imported."""
    gc.unfreeze()
    yield
    gc.freeze()


def words(dataset: Path, *more: str) -> list[str]:
    """Return the words of a training of five steps that leaves garbage."""
    litters = "+callbacks.litters._target_=tests.training.callbacks.test_garbage.Litters"
    return ["name=a", *tiny(dataset), litters, "callbacks.garbage.every=2", "trainer.max_steps=5", *more]


def test_garbage_goes_after_every_so_many_steps_and_stays_until_then(
    call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thawed: None
) -> None:
    monkeypatch.chdir(tmp_path)
    SEEN.clear()
    status, _, err = call("train", *words(world_dataset))
    assert status == 0, err
    assert SEEN == {1: {}, 2: {1: MANY}, 3: {}, 4: {3: MANY}, 5: {}}
    assert gc.isenabled()
    assert not gc.get_freeze_count(), "the next job of a sweep needs the memory of this one"


def test_python_collects_by_itself_again_after_a_training_that_fails(
    call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frozen = gc.get_freeze_count()
    status, _, err = call("train", *words(world_dataset, "+callbacks.litters.fails=2"))
    assert status == 1
    assert "out of luck" in err
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0.9 * frozen, "what the program froze before stays so"
