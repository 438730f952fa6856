"""On resume the processes read each file of a checkpoint once among them, and agree on an older one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from tests.material.runs.small_checkpoint import FILES, write_checkpoint
from videodiff.training.state import checkpoint as checkpoint_file
from videodiff.training.state import verifying
from videodiff.training.state.checkpoint import CheckpointError, checkpoints, step_of
from videodiff.training.state.files import Written
from videodiff.training.state.verifying import share_of

RECIPE = ["optimizer=adamw", "schedule=constant", "strategy=zero1", "callbacks.checkpoints.keep=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Train four steps on two processes, with checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("verified")
    more = ["trainer.max_steps=4", "callbacks.checkpoints.every=2"]
    Ranks(2, folder, ["name=one", *tiny(world_dataset), *RECIPE, *more]).finish()
    return folder / "runs/one"


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that calls another one with each rank; processes that meet are threads here."""
    own = threading.local()

    def on_all(world: int, function: Callable[[int], Any]) -> list[Any]:
        met, told, found = threading.Barrier(world), [None] * world, [None] * world

        def gather(world: int, value: object) -> list[object]:
            told[own.rank] = value
            met.wait(20)
            values = list(told)
            met.wait(20)
            return values

        def call(rank: int) -> None:
            own.rank = rank
            try:
                found[rank] = function(rank)
            except CheckpointError as error:
                found[rank] = error

        monkeypatch.setattr(verifying, "gather", gather)
        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return on_all


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_file_is_read_by_one_process_and_all_know_what_is_wrong(
    tmp_path: Path, world: int, ranks: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, read, sha256_of = write_checkpoint(tmp_path, 1), [], checkpoint_file.sha256_of
    damage(newest / FILES[0])
    monkeypatch.setattr(checkpoint_file, "sha256_of", lambda path: (read.append(path), sha256_of(path))[1])
    found = ranks(world, lambda rank: verifying.damage(newest, rank, world))
    assert sorted(read) == sorted(newest / name for name in FILES)
    assert len(set(found)) == 1
    assert f"{FILES[0]}: found a damaged file" in str(found[0])


def damage(path: Path) -> None:
    """Change the last byte of a file: only the checksum tells."""
    path.write_bytes(path.read_bytes()[:-1] + b"!")


# What is damaged in three checkpoints by step, and the step that training goes on from.
DAMAGED = {
    "nothing": ({}, 3),
    "the newest": ({3: FILES[0]}, 2),
    "the newer two": ({3: FILES[0], 2: FILES[1]}, 1),
    "an average": ({3: FILES[2]}, 3),
    "all": ({3: FILES[0], 2: FILES[1], 1: FILES[0]}, None),
}


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", DAMAGED)
def test_all_go_on_from_the_newest_state_that_is_whole(
    tmp_path: Path, case: str, world: int, ranks: Callable[..., list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    files, wanted = DAMAGED[case]
    steps = [write_checkpoint(tmp_path, step) for step in (1, 2, 3)]
    for step, name in files.items():
        damage(steps[step - 1] / name)
    fell: list[tuple[int, str]] = []

    def look(rank: int) -> Path:
        trainer = SimpleNamespace(world_size=world, global_rank=rank, is_global_zero=rank == 0)
        return verifying.verified(trainer, steps[-1], lambda one: fell.append((rank, one.name)))

    found, out = ranks(world, look), capfd.readouterr().out
    assert out.count("training does not read it") == (case == "an average")
    assert out.count("1 step is lost") == len(fell) / world
    if wanted is None:
        assert len({str(error) for error in found}) == 1
        assert "state/rank_00000.safetensors: found a damaged file" in str(found[0])
        assert str(found[0]).endswith(f"no other checkpoint of {tmp_path} is whole")
    else:
        assert found == [steps[wanted - 1]] * world
        older = [(rank, steps[step - 1].name) for step in range(2, wanted - 1, -1) for rank in range(world)]
        assert sorted(fell) == sorted(older)


def test_an_older_one_without_all_of_its_bytes_is_passed_over(
    tmp_path: Path, ranks: Callable[..., list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (write_checkpoint(tmp_path, step) for step in (1, 2, 3))
    damage(third / FILES[0])
    (second / FILES[1]).write_bytes(b"")

    def look(rank: int) -> Path:
        trainer = SimpleNamespace(world_size=2, global_rank=rank, is_global_zero=rank == 0)
        return verifying.verified(trainer, third, lambda one: None)

    assert ranks(2, look) == [first, first]
    out = capfd.readouterr().out
    assert "found 0 bytes" in out
    assert out.count("going on from step_00000001: 2 steps are lost") == 1


def test_a_chosen_checkpoint_that_is_damaged_is_an_error_on_all(
    tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    write_checkpoint(tmp_path, 1)
    damage((chosen := write_checkpoint(tmp_path, 2)) / FILES[1])

    def look(rank: int) -> Path:
        trainer = SimpleNamespace(world_size=2, global_rank=rank, is_global_zero=rank == 0)
        return verifying.verified(trainer, chosen, None)

    found = ranks(2, look)
    assert len({str(error) for error in found}) == 1
    assert "state/progress.json: found a damaged file" in str(found[0])


def test_the_bytes_are_shared_about_evenly() -> None:
    files = {f"state/rank_{rank:05d}.safetensors": Written(100 + rank, "") for rank in range(64)}
    shares = [sum(files[name].bytes for name in share_of(files, rank, 8)) for rank in range(8)]
    assert sum(shares) == sum(file.bytes for file in files.values())
    assert max(shares) < 1.02 * min(shares)


def test_a_damaged_checkpoint_is_found_by_the_processes_together_and_they_go_on_from_the_one_before(
    run: Path, world_dataset: Path
) -> None:
    newest = checkpoints(run)[-1]
    damaged = newest / "state/rank_00001.safetensors"
    # The size stays: only the checksum tells.
    with damaged.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\x7e")
    ranks = Ranks(2, run.parents[1], ["resume=runs/one", "trainer.max_steps=5"])
    ranks.finish()
    assert f"{newest.name}" in ranks.said()
    assert ranks.said().count("going on from step_00000002: 2 steps are lost") == 1
    assert [step_of(path) for path in checkpoints(run)] == [2, 4, 5]
    assert (run / "checkpoints/step_00000004.damaged/damaged.txt").is_file()
