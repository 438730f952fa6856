"""Copies in an object store of a training on two processes, which are killed while they send, and go on elsewhere."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.material.runs.ranks import LIMIT, Ranks
from tests.material.servers.object_store import ObjectStore, object_store
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import checkpoints, read_record, step_of, whole

STEPS = 6
RECIPE = [
    *("optimizer=adamw", "schedule=constant", "trainer.log_every_n_steps=1"),
    "callbacks.checkpoints.every=2",
]
KEEP = "callbacks.checkpoints.keep=2"
THERE = "callbacks.checkpoints.mirror=s3://set/runs"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as monkeypatch, object_store(monkeypatch) as running:
        yield running


def losses(run: Path) -> list[float]:
    """Return the loss of every step."""
    return read_run(run).metrics["train/loss"][1].tolist()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> list[float]:
    """Return the losses of one process that was never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Ranks(1, folder, ["name=a", *tiny(world_dataset), *RECIPE, KEEP, f"trainer.max_steps={STEPS}"]).finish()
    return losses(folder / "runs/a")


def files_of(store: ObjectStore, run: str, step: int) -> dict[str, bytes]:
    """Return what the store holds of a checkpoint."""
    folder = f"runs/{run}/checkpoints/step_{step:08d}/"
    return {key.removeprefix(folder): data for key, data in store.objects().items() if key.startswith(folder)}


def check_whole(store: ObjectStore, run: str, step: int) -> None:
    """Hold that the files of both ranks are there, each with the checksum in the record."""
    files = files_of(store, run, step)
    record = json.loads(files.pop("checkpoint.json"))
    assert record["processes"] == 2
    assert {"state/rank_00000.safetensors", "state/rank_00001.safetensors", "average.safetensors"} <= files.keys()
    assert {name: file["sha256"] for name, file in record["files"].items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_processes_that_are_killed_while_they_send_go_on_from_the_store_on_an_empty_disk(
    store: ObjectStore, tmp_path: Path, world_dataset: Path, undisturbed: list[float], strategy: str
) -> None:
    words = [f"name={strategy}", *tiny(world_dataset), *RECIPE, f"strategy={strategy}", THERE]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    # The file of the second rank never arrives: the record of this checkpoint must not either.
    held = f"/set/runs/{strategy}/checkpoints/step_00000004/state/rank_00001.safetensors"
    store.hold(f"PUT {held}")
    # All are kept: a slow store is not sent what would be removed there at once.
    ranks = Ranks(2, here, [*words, "callbacks.checkpoints.keep=0", "trainer.max_steps=100000"])
    try:
        assert store.reached.wait(LIMIT), ranks.stuck()
        # The others are sent beside it.
        end = time.monotonic() + LIMIT
        while not any(line.startswith(f"end PUT {held.rpartition('/state/')[0]}/") for line in store.asked):
            assert time.monotonic() < end, ranks.stuck()
            time.sleep(0.02)
        assert ranks.living(), ranks.said()
    finally:
        ranks.kill()
    for rank in ranks.ranks:
        rank.wait(LIMIT)
    check_whole(store, strategy, 2)
    half = files_of(store, strategy, 4)
    assert half
    assert not half.keys() & {"checkpoint.json", "state/rank_00001.safetensors"}
    store.release()

    ranks = Ranks(2, there, [*words, KEEP, "resume=auto", f"trainer.max_steps={STEPS}"])
    ranks.finish()
    said = ranks.said()
    assert said.count("brought step_00000002 from s3://set/runs") == 1, "one process brings it"
    assert "goes on from" in said
    run = there / "runs" / strategy
    assert [step_of(checkpoint) for checkpoint in checkpoints(run)] == [4, STEPS]
    assert all(read_record(whole(checkpoint))["processes"] == 2 for checkpoint in checkpoints(run))
    assert losses(run) == pytest.approx(undisturbed, rel=1e-5)
    for step in (4, STEPS):
        check_whole(store, strategy, step)
    assert not files_of(store, strategy, 2), "the store keeps as many as the disk"
    for step in (2, 4, STEPS):
        folder = f"PUT /set/runs/{strategy}/checkpoints/step_{step:08d}/"
        ends = [at for at, line in enumerate(store.asked) if line.startswith(f"end {folder}") and "json" not in line]
        record = store.asked.index(f"begin {folder}checkpoint.json")
        assert len(ends) >= 3
        assert max(ends) < record, "the record is sent when all else has arrived"
