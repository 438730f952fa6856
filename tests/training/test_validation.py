"""A step draws by seed, step and position; figures stand under the number of steps that were taken, and validation does
not depend on how its clips are cut.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import finish, start, tiny
from videodiff.codec.pixels import Pixels
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective
from videodiff.diffusion.path import RectifiedFlow
from videodiff.report.page import write_report
from videodiff.text.words import Words
from videodiff.training.module import VALIDATION_LEVELS, VideoDiffusion
from videodiff.training.state.checkpoint import checkpoints


def table(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's table of metrics: what is there, by column."""
    (path,) = run.glob("metrics/version_*/metrics.csv")
    with path.open() as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


class Black(nn.Module):
    """Stands for a network that predicts zeros."""

    def forward(self, z: Tensor, tau: Tensor, **_: Tensor) -> Tensor:
        return torch.zeros_like(z)


def module(seed: int = 0) -> VideoDiffusion:
    objective = Objective(RectifiedFlow(), NoiseLevels(), prediction="x", loss="v")
    return VideoDiffusion(Black(), objective, Pixels(), Words(["ball"], max_words=3, width=4), None, None, seed)


def batch(*positions: int, step: int = 3) -> dict[str, Any]:
    """Return a batch in which all clips are the same."""
    video = torch.randint(256, (1, 3, 2, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    count, place = len(positions), torch.tensor(positions)
    known = {"caption": ["ball"] * count, "fps": torch.full((count,), 8.0)}
    return {"video": video.expand(count, -1, -1, -1, -1), "position": place, "step": step, **known}


def test_a_step_is_the_mean_over_its_clips_of_draws_by_seed_step_and_position() -> None:
    first, second, both = (float(module().training_step(batch(*at), 0)) for at in ([4], [9], [4, 9]))
    assert both == pytest.approx((first + second) / 2)
    others = [second, module(seed=1).training_step(batch(4), 0), module().training_step(batch(4, step=4), 0)]
    assert len({first, *map(float, others)}) == 4


def test_validation_sums_the_losses_of_its_clips_at_each_level() -> None:
    # The velocity is (z - x) / tau: where the network predicts x = 0 it is wrong by x / tau, whatever the noise.
    found, x = module(), batch(0)["video"] / 127.5 - 1
    found.stopwatch.enter("validation")
    found.validated = torch.zeros(len(VALIDATION_LEVELS) + 1, dtype=torch.float64)
    for share in (batch(0, 1), batch(2)):
        found.validation_step(share, 0)
    wanted = [3 * float(x.square().mean()) / tau**2 for tau in (0.1, 0.3, 0.5, 0.7, 0.9)]
    torch.testing.assert_close(found.validated, torch.tensor([*wanted, 3.0], dtype=torch.float64), rtol=1e-5, atol=0)


def test_steps_are_counted_alike_and_the_loss_of_uneven_validation_is_that_of_all_clips(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    # Seven clips divide neither over two processes nor into batches of two.
    recipe = [
        *tiny(world_dataset),
        *(f"data.validation_root={world_dataset}", "data.validation_clips=7", "trainer.val_check_interval=2"),
        *("trainer.max_steps=4", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=0"),
        *("callbacks.samples.every=2", "callbacks.samples.clips=1", "sampler.steps=1"),
    ]
    cuts = {"by_one": ["data.micro_batch=1"], "by_two": ["data.micro_batch=2"], "by_four": []}
    for name, cut in cuts.items():
        status, out, err = call("train", f"name={name}", *recipe, *cut)
        assert status == 0, err
        assert f"videodiff train: 4 steps in runs/{name}" in out
    finish(start("train", "name=ranks", *recipe, "strategy=ddp", "trainer.devices=2", cwd=cwd))
    wanted = [row for row in table(Path("runs/by_one")) if "val/loss" in row]
    assert [row["step"] for row in wanted] == [2, 4]
    for row in wanted:
        levels = [row[f"val/loss_tau_{level}"] for level in VALIDATION_LEVELS]
        assert row["val/loss"] == pytest.approx(sum(levels) / 5)
        assert len(set(levels)) == 5
    for name in ("by_two", "by_four", "ranks"):
        found = [row for row in table(Path("runs") / name) if "val/loss" in row]
        for one, other in zip(wanted, found, strict=True):
            assert other == pytest.approx(one, rel=1e-6, abs=1e-6), name
    # The same numbers everywhere: curves, checkpoints, samples, the page.
    rows = table(Path("runs/ranks"))
    assert {row["step"] for row in rows if "train/loss" in row} == {1, 4}
    assert [path.name for path in checkpoints(Path("runs/ranks"))] == ["step_00000002", "step_00000004"]
    assert sorted(path.name for path in Path("runs/ranks/samples").glob("step_*")) == ["step_00000002", "step_00000004"]
    assert "Trained to step 4 at" in write_report(Path("runs/ranks")).read_text()


def test_a_share_of_too_few_clips_is_one_line(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    share = [f"data.validation_root={world_dataset}", "data.validation_clips=1", "trainer.limit_val_batches=0.1"]
    status, _, err = call("train", *tiny(world_dataset), *share)
    assert status == 1
    line = err.strip().splitlines()[-1]
    assert line.startswith("videodiff train: error: You requested to check 0.1 of the `val_dataloader`")
    assert "VIDEODIFF_TRACEBACK" not in line
