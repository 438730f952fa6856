"""Trainings whose processes share Muon's iteration are those of one process, whoever shares it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from tests.material.runs.saved_state import tensors_of
from videodiff.training.state.checkpoint import checkpoints

# Four blocks of width 64, one of them frozen: processes save each other more than 10^8 FLOPs a step.
RECIPE = [
    *("model.width=64", "model.depth=4", "model.axes=[space,time]", "model.captioned=[true]", "data.global_batch=12"),
    *("freeze=[denoiser.blocks.1.*]", "optimizer.ema_decay=0.9", "trainer.gradient_clip_val=0.01"),
    *("optimizer=muon", "schedule=constant", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=0"),
]
# Until which step, on how many processes, and how.
PARTS = ((2, 4, "strategy=ddp"), (4, 3, "strategy=fsdp2"))


def test_a_run_shared_by_4_then_split_over_3_is_that_of_one_process(
    cwd: Path, world_dataset: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    recipe, moved = [*tiny(world_dataset), *RECIPE], 0
    for step, processes, strategy in PARTS:
        name = ["name=many", *recipe] if step == 2 else ["resume=runs/many"]
        Ranks(processes, cwd, [*name, strategy, f"trainer.max_steps={step}"]).finish()
    status, _, err = call("train", "name=one", *recipe, "trainer.max_steps=4")
    assert status == 0, err
    for one, many in zip(checkpoints(Path("runs/one")), checkpoints(Path("runs/many")), strict=True):
        wanted, found = tensors_of(one), tensors_of(many)
        assert wanted.keys() == found.keys()
        moved = sum(key.endswith(" momentum") for key in wanted)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key].to(value.dtype), value, rtol=0, atol=1e-5, msg=lambda t, key=key: key)
    # Seven matrices a block, and none of the frozen block.
    assert moved == 3 * 7
