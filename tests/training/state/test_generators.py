"""The generators of random numbers of a process go on where they were; this project draws nothing from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import tiny
from tests.material.runs.saved_state import assert_same_bits
from videodiff.training.module import VideoDiffusion
from videodiff.training.state.checkpoint import latest_checkpoint
from videodiff.training.state.generators import generators, set_generators


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = generators()
    yield
    set_generators(before)


def draw() -> list[float]:
    """Return some numbers of each generator; a normal number of numpy and of Python is kept for the next call."""
    mine = [float(np.random.normal()), random.gauss(0, 1), float(np.random.rand()), random.random()]
    return [*mine, *torch.randn(3).tolist()]


@pytest.mark.parametrize("drawn", [0, 1, 2, 5])
def test_what_is_drawn_after_a_state_is_set_is_what_was_drawn_after_it_was_taken(drawn: int) -> None:
    for _ in range(drawn):
        draw()
    state = generators()
    wanted = [draw() for _ in range(3)]
    set_generators({name: value.clone() for name, value in state.items()})
    assert [draw() for _ in range(3)] == wanted


def test_draws_of_a_users_own_go_on_and_training_does_not_depend_on_them(
    tmp_path: Path, world_dataset: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = [*tiny(world_dataset), "schedule=constant"]
    assert call("train", "name=plain", *recipe, "trainer.max_steps=4")[0] == 0
    step, seen = VideoDiffusion.training_step, []

    def drawing(self: VideoDiffusion, *arguments: Any) -> torch.Tensor:
        seen.append((self.trainer.global_step, draw()))
        return step(self, *arguments)

    monkeypatch.setattr(VideoDiffusion, "training_step", drawing)
    begun = generators()
    assert call("train", "name=whole", *recipe, "trainer.max_steps=4")[0] == 0
    set_generators(begun)
    whole, seen[:] = list(seen), []
    assert call("train", "name=half", *recipe, "trainer.max_steps=2")[0] == 0
    draw()
    assert call("train", "resume=runs/half", "trainer.max_steps=4")[0] == 0
    assert [count for count, _ in whole] == [0, 1, 2, 3]
    assert seen[2:] == whole[2:]
    plain, *others = (latest_checkpoint(Path("runs", name)) for name in ("plain", "whole", "half"))
    for other in others:
        assert_same_bits(plain, other)
