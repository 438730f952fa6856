"""On resume the processes read each file of a checkpoint once among them, and agree on an older one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from videodiff.training.state import checkpoint as checkpoint_file
from videodiff.training.state import verifying
from videodiff.training.state.checkpoint import checkpoints, read_record, step_of
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


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_file_is_read_by_one_process_and_all_know_what_is_wrong(
    run: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, read = checkpoints(run)[-1], [0] * world
    files = read_record(newest)["files"]
    # Processes that meet are threads here, which write down what they have read.
    met, told, ranks = threading.Barrier(world), [None] * world, threading.local()

    def gather(world: int, value: object) -> list[object]:
        told[ranks.own] = value
        met.wait(20)
        return list(told)

    def sha256_of(path: Path) -> str:
        read[ranks.own] += path.stat().st_size
        return "damaged" if path.name == "rank_00001.safetensors" else files[path.relative_to(newest).as_posix()].sha256

    def look(rank: int) -> None:
        ranks.own = rank
        found[rank] = verifying.damage(newest, rank, world)

    monkeypatch.setattr(verifying, "gather", gather)
    monkeypatch.setattr(checkpoint_file, "sha256_of", sha256_of)
    found: list[str | None] = [None] * world
    threads = [threading.Thread(target=look, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(read) == sum(file.bytes for file in files.values())
    assert len(set(found)) == 1
    assert "rank_00001.safetensors: found a damaged file" in str(found[0])


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
