"""However a training is cut into processes, the same seed gives the same curves and the same average.

A strategy joins by a row in `ROWS`. Nothing here divides: 7 frames, 9 positions and 3 heads, over 2 and 4 processes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks, torchrun
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import AVERAGE, PROGRESS, STATE, latest_checkpoint
from videodiff.training.state.progress import read_progress
from videodiff.training.state.restoring import files_of
from videodiff.training.state.saved import Saved

# Enough to warm up, to hold and to decay, and for averages to lag behind.
STEPS = 12
# Sampling in between changes nothing.
SAMPLING = ["callbacks.samples.every=8", "sampler.steps=1", "callbacks.samples.clips=2"]
# By name: how many processes there are, and what is asked for.
ROWS = {
    "accumulated": (1, ["data.micro_batch=1"]),
    "ddp_2": (2, ["strategy=ddp"]),
    "ddp_4": (4, ["strategy=ddp"]),
    "zero1_2": (2, ["strategy=zero1"]),
    "zero2_2_accumulated": (2, ["strategy=zero2", "data.micro_batch=1"]),
    "zero3_2": (2, ["strategy=zero3", *SAMPLING]),
    "zero2_2_offload": (2, ["strategy=zero2_offload"]),
    "zero3_2_offload": (2, ["strategy=zero3_offload", "recompute=full", "data.micro_batch=1"]),
    "fsdp2_2": (2, ["strategy=fsdp2", "recompute=full", "data.micro_batch=1", *SAMPLING]),
    "sequence_2": (2, ["strategy=ddp", "strategy.sequence_parallel=2", "recompute=selective", *SAMPLING]),
    "sequence_4": (4, ["strategy=auto", "strategy.sequence_parallel=4", "data.micro_batch=2"]),
    "sequence_2_of_4": (4, ["strategy=ddp", "strategy.sequence_parallel=2", "data.micro_batch=1"]),
    "sequence_2_zero1": (2, ["strategy=zero1", "strategy.sequence_parallel=2"]),
    "sequence_2_fsdp2": (2, ["strategy=fsdp2", "strategy.sequence_parallel=2"]),
    "sequence_2_zero3": (2, ["strategy=zero3", "strategy.sequence_parallel=2", *SAMPLING]),
}


def recipe(dataset: Path) -> list[str]:
    """Return what all rows have in common."""
    return [
        *tiny(dataset),
        f"data.validation_root={dataset}",
        *("data.validation_clips=4", "data.frames=7", "data.height=12", "data.width=12"),
        *("model.width=24", "model.heads=3", "model.depth=4", "model.axes=[space,time,spacetime]"),
        *("optimizer=adamw", "optimizer.lr=1e-3", "optimizer.ema_decay=0.9"),
        *(f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS // 2}", "trainer.log_every_n_steps=1"),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Callable[[str], Path]:
    """Return a function that gives the run of a row, trained at first use."""
    folder, common = tmp_path_factory.mktemp("parity"), recipe(world_dataset)

    def run(name: str) -> Path:
        if not (folder / "runs" / name).exists():
            world, more = {"one": (1, []), **ROWS}[name]
            Ranks(world, folder, [*common, *more, f"name={name}"], torchrun).finish()
        return folder / "runs" / name

    return run


# The ends of the names of figures that tell how a process works, not what is learned.
WORK = ("mfu", "data_wait", "peak_memory_gib", "text_padding", "flops_recompute", "flops_encoders")
OF_THE_WORK = ("_per_s", *(f"train/{name}" for name in WORK))


def curves(run: Path) -> dict[str, np.ndarray]:
    """Return the curves of losses, gradients and learning rates of a run, one value a step."""
    metrics = read_run(run).metrics
    return {name: np.asarray(values) for name, (_, values) in metrics.items() if not name.endswith(OF_THE_WORK)}


def average(run: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a run."""
    return load_file(latest_checkpoint(run) / AVERAGE)


@pytest.mark.parametrize("name", ROWS)
def test_the_curves_are_those_of_one_process(runs: Callable[[str], Path], name: str) -> None:
    wanted, found = curves(runs("one")), curves(runs(name))
    assert wanted.keys() == found.keys()
    assert len(wanted["train/loss"]) == STEPS
    assert len(wanted["val/loss"]) == 2
    for key, values in wanted.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ROWS)
def test_the_average_is_that_of_one_process(runs: Callable[[str], Path], name: str) -> None:
    wanted, found = average(runs("one")), average(runs(name))
    assert wanted.keys() == found.keys()
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ROWS)
def test_optimizer_average_and_schedule_move_once_a_step_however_many_micro_batches_it_has(
    runs: Callable[[str], Path], name: str
) -> None:
    checkpoint = latest_checkpoint(runs(name))
    saved = Saved(files_of(checkpoint))
    counts = {(p, key): saved.number(p, key) for p in saved.weights() for key in ("step", "ema_step")}
    assert set(counts.values()) == {STEPS}
    (schedule,) = read_progress(checkpoint / STATE / PROGRESS)["lr_schedulers"]
    assert schedule["last_epoch"] == STEPS
