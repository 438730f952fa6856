"""Every second of a run is on one account, over all its restarts."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import tiny
from videodiff.training.stopwatch import ACCOUNTS, Stopwatch


class Hands:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_is_on_one_account() -> None:
    clock = Hands()
    watch = Stopwatch(clock, clock)
    for account, seconds in (("compute", 3.0), ("data", 5.0), ("compute", 1.0)):
        clock.now += seconds
        watch.enter(account)
    clock.now += 2
    with watch.during("checkpoint"):
        clock.now += 4
    clock.now += 6
    # 3 s before the first step, 5 of it, 1 for data, and 2 + 6 around the checkpoint.
    found = watch.state()
    assert found.pop("at") == clock.now
    assert found == dict.fromkeys(ACCOUNTS, 0.0) | {"start": 3.0, "compute": 13.0, "data": 1.0, "checkpoint": 4.0}
    assert watch.shares()["compute"] == pytest.approx(13 / 21)


def test_what_passes_between_a_checkpoint_and_the_next_step_is_a_restart() -> None:
    clock = Hands()
    watch = Stopwatch(clock, clock)
    watch.enter("compute")
    clock.now += 8
    saved = watch.state()
    clock.now += 50
    again = Stopwatch(clock, clock)
    clock.now += 2
    again.resume(saved)
    clock.now += 1
    again.enter("compute")
    clock.now += 4
    assert again.shares()["restart"] == pytest.approx(53 / 65)
    assert again.seconds["compute"] == 12.0


@pytest.mark.parametrize("moved", [-4e9, 4e9])
def test_a_time_of_day_that_is_set_during_a_run_counts_nothing(moved: float) -> None:
    clock, day = Hands(), Hands()
    watch = Stopwatch(clock, day)
    watch.enter("compute")
    clock.now += 2
    day.now += moved
    assert watch.state() == {**dict.fromkeys(ACCOUNTS, 0.0), "compute": 2.0, "at": day.now}


def test_a_time_of_day_that_is_set_back_between_two_processes_takes_no_time_away() -> None:
    clock, day = Hands(), Hands()
    saved = Stopwatch(clock, day).state()
    day.now -= 40
    again = Stopwatch(clock, day)
    again.resume(saved)
    assert again.seconds["restart"] == 0.0


def test_validation_and_samples_are_no_time_of_training() -> None:
    clock = Hands()
    watch = Stopwatch(clock, clock)
    watch.enter("compute")
    clock.now += 3
    begun = watch.state()
    for account, seconds in (("compute", 4.0), ("samples", 50.0), ("data", 2.0), ("validation", 70.0)):
        watch.enter(account)
        clock.now += seconds
    assert watch.trained_since(begun) == 6.0


def test_rates_leave_out_the_time_of_samples(
    world_dataset: Path,
    cwd: Path,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    slow = ["callbacks.samples.every=3", "callbacks.samples.clips=4", "sampler.steps=150", "callbacks.progress.every=1"]
    status, _, err = call("train", *tiny(world_dataset), *slow, "name=a", "trainer.max_steps=5")
    assert status == 0, err
    with (cwd / "runs/a/metrics/version_0/metrics.csv").open() as file:
        found = {
            row["step"]: float(row["train/clips_per_s"]) for row in csv.DictReader(file) if row["train/clips_per_s"]
        }
    # In step 3 clips were sampled, for as long as a hundred steps take.
    assert found["3"] > min(found[step] for step in "245") / 5


def test_a_run_logs_where_its_time_goes_and_says_it_at_the_end(
    world_dataset: Path,
    cwd: Path,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    recipe = [*tiny(world_dataset), "name=a", "callbacks.goodput.every=1", "callbacks.checkpoints.every=1"]
    status, _, err = call("train", *recipe, "trainer.max_steps=3")
    assert status == 0, err
    with (cwd / "runs/a/metrics/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["time/compute"]]
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert sum(float(row[f"time/{account}"]) for account in ACCOUNTS) == pytest.approx(1)
    assert float(rows[-1]["time/checkpoint"]) > 0
    assert float(rows[-1]["time/restart"]) == 0
    (line,) = [line for line in err.splitlines() if line.startswith("time of the run ")]
    assert "compute" in line
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 0, err
    with (cwd / "runs/a/metrics/version_1/metrics.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["time/compute"]]
    assert float(row["time/restart"]) > 0
