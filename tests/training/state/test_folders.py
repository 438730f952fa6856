"""The checkpoints of a run as folders: their order, which one is resumed from, and which ones go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.material.runs.disk import Disk
from tests.material.runs.small_checkpoint import FILES, write_checkpoint
from videodiff.training.state import checkpoint as module
from videodiff.training.state.checkpoint import (
    CheckpointError,
    check_room,
    checkpoints,
    choose_checkpoint,
    find_checkpoint,
    latest_checkpoint,
    leave_behind,
    prune,
    put_in_place,
    step_of,
    whole,
)

# Sorted as text, they stand the other way round.
BEFORE, AFTER = 99_999_999, 100_000_000


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def damage(checkpoint: Path, name: str = FILES[0]) -> None:
    """Change a file, not its size."""
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes().swapcase())


def test_checkpoints_are_ordered_by_their_steps(tmp_path: Path) -> None:
    newest = write_checkpoint(tmp_path, AFTER)
    write_checkpoint(tmp_path, BEFORE)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [BEFORE, AFTER]
    assert latest_checkpoint(tmp_path) == newest
    prune(tmp_path / "checkpoints", keep=1)
    assert checkpoints(tmp_path) == [newest]


def test_none_goes_where_none_may_and_chosen_steps_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    prune(tmp_path / "checkpoints", keep=0)
    assert len(names(tmp_path)) == 4
    prune(tmp_path / "checkpoints", keep=1, is_kept=lambda step: step == 2)
    assert names(tmp_path) == ["step_00000002", "step_00000004"]


def test_a_checkpoint_takes_the_place_of_an_earlier_one_of_its_step_before_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, partial, remove = write_checkpoint(tmp_path / "run", 1), write_checkpoint(tmp_path / "new", 1), shutil.rmtree
    (partial / "mark").touch()

    def look(folder: Path) -> None:
        assert (final / "mark").is_file()
        remove(folder)

    monkeypatch.setattr(module.shutil, "rmtree", look)
    disk = Disk(monkeypatch)
    put_in_place(partial, final)
    assert names(tmp_path / "run") == ["step_00000001"]
    assert (final / "mark").is_file()
    assert "step_00000001" in disk.kept[final.parent]


def test_a_damaged_checkpoint_of_the_same_step_is_kept_beside_however_often_it_comes(tmp_path: Path) -> None:
    final = write_checkpoint(tmp_path, 1)
    for count in range(3):
        (final / FILES[1]).unlink()
        put_in_place(write_checkpoint(tmp_path / f"{count}", 1), final)
        assert whole(final)
    assert names(tmp_path) == ["step_00000001", *(f"step_00000001.damaged{n}" for n in ("", 1, 2))]


def test_what_is_newer_than_the_checkpoint_to_resume_from_is_put_aside_or_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, chosen, newer, newest = (write_checkpoint(tmp_path, step) for step in (1, 2, 3, 4))
    (chosen / "damaged.txt").write_text("found out before, and mended since")
    (older / "damaged.txt").write_text("found out before")
    damage(newer)
    disk = Disk(monkeypatch)
    leave_behind(tmp_path, chosen)
    # After a power cut it must not be the newest again.
    assert "step_00000004.left" in disk.kept[newest.parent]
    assert names(tmp_path) == ["step_00000001", "step_00000002", "step_00000003", "step_00000004.left"]
    assert "found a damaged file" in (newer / "damaged.txt").read_text()
    assert (older / "damaged.txt").read_text() == "found out before"
    assert not (chosen / "damaged.txt").exists()
    # The training that goes on comes to this step again, and is given up again.
    write_checkpoint(tmp_path, step_of(newest))
    leave_behind(tmp_path, chosen)
    assert names(tmp_path)[-2:] == ["step_00000004.left", "step_00000004.left1"]


def test_what_matters_is_the_part_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_checkpoint(tmp_path, step) for step in (1, 2))
    damage(second, "average.safetensors")
    assert latest_checkpoint(tmp_path, module.STATE) == second
    assert latest_checkpoint(tmp_path, module.AVERAGE) == first
    assert latest_checkpoint(tmp_path, hashed=False) == second, "sizes alone"
    capsys.readouterr()
    assert choose_checkpoint(tmp_path, None) == choose_checkpoint(tmp_path, "step_00000002") == second
    assert capsys.readouterr().err.count("training does not read it") == 2
    damage(second)
    assert choose_checkpoint(tmp_path, None) == first
    with pytest.raises(CheckpointError, match=r"step_00000002/state/rank_00000.safetensors: found a damaged file"):
        choose_checkpoint(tmp_path, "step_00000002")


def test_a_chosen_checkpoint_is_one_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, elsewhere = tmp_path / "run", write_checkpoint(tmp_path / "other", 5)
    own = write_checkpoint(run, 5)
    for chosen in ("step_00000005", str(own)):
        assert choose_checkpoint(run, chosen) == find_checkpoint(run, chosen) == own
    with pytest.raises(FileNotFoundError, match=r"checkpoint: found .*/other/.*, expected one of .*: step_00000005"):
        choose_checkpoint(run, str(elsewhere))
    # Its average may be sampled from.
    assert find_checkpoint(run, str(elsewhere)) == elsewhere
    for choose in (choose_checkpoint, find_checkpoint):
        with pytest.raises(FileNotFoundError, match=r"step_6, expected one of .*: step_00000005"):
            choose(run, "step_6")


@pytest.mark.parametrize("version", [1, 2])
def test_records_of_older_versions_are_read(tmp_path: Path, version: int) -> None:
    """Version 1 had sizes only; before version 3 the state was one file that one process wrote."""
    folder = write_checkpoint(tmp_path, 1)
    (folder / "state.ckpt").write_bytes(b"state")
    shutil.rmtree(folder / "state")
    record = json.loads((folder / "checkpoint.json").read_text())
    del record["processes"]
    files: dict[str, Any] = {"average.safetensors": record["files"]["average.safetensors"]}
    files["state.ckpt"] = {"bytes": 5, "sha256": module.sha256_of(folder / "state.ckpt")}
    if version == 1:
        files = {name: file["bytes"] for name, file in files.items()}
    (folder / "checkpoint.json").write_text(json.dumps(record | {"version": version, "files": files}))
    assert module.read_record(whole(folder))["processes"] == 1
    (folder / "state.ckpt").write_bytes(b"other")
    if version == 1:
        assert latest_checkpoint(tmp_path, module.STATE) == folder, "nothing but the size is known"
    else:
        with pytest.raises(CheckpointError, match="found a damaged file"):
            whole(folder, module.STATE)
    (folder / "state.ckpt").write_bytes(b"longer")
    with pytest.raises(CheckpointError, match=r"state.ckpt: found 6 bytes, expected 5 bytes"):
        whole(folder)
    with pytest.raises(CheckpointError, match=r"no other checkpoint of .* is whole"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("there", "keep", "needed"), [(0, 2, 60_000), (45_000, 2, 20_000), (10_000, 2, 50_000), (0, 0, 20_000)]
)
def test_the_room_of_checkpoints_that_will_go_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, keep: int, needed: int
) -> None:
    (tmp_path / "old").write_bytes(bytes(there))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    check_room(tmp_path, 1000, keep)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(OSError, match=f"callbacks.checkpoints.keep={keep}"):
        check_room(tmp_path, 1000, keep)
