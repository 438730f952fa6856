"""Figures stand under the number of steps that were taken, and validation does not depend on how its clips are cut."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import finish, start, tiny
from videodiff.report.page import write_report
from videodiff.training.state.checkpoint import checkpoints


def table(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's table of metrics: what is there, by column."""
    (path,) = run.glob("metrics/version_*/metrics.csv")
    with path.open() as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


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
