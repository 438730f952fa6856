"""A full disk ends every verb that writes with one line, and what was there before stays as it was.

The disk is a real one: a file system of a few MiB in memory, in a mount namespace of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import finish, start, tiny
from tests.material import warm
from tests.material.preparing import prep
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint, whole

SCRIPT = Path(__file__).parent / "material" / "processes" / "small_disk.py"


def on_a_full_disk(
    before: Path, after: Path, left: int, *arguments: str, children: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a verb in a copy of `before` on a disk with `left` KiB to spare; `after` gets what is there then."""
    after.with_name("disk").mkdir(), after.mkdir()
    command = [sys.executable, SCRIPT, before, f"{left}", after, *arguments]
    return warm.run(command, env={**os.environ, warm.CHILDREN: children})


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def before(tmp_path: Path, world_dataset: Path) -> Path:
    """Return a folder with a dataset `data`, its clips loose in `clips`, and nothing else."""
    folder = tmp_path / "before"
    shutil.copytree(world_dataset, folder / "data")
    subprocess.run(["tar", "-xf", next(world_dataset.glob("*.tar")), "-C", folder], check=True)
    (folder / "clips").mkdir()
    for path in folder.glob("0*"):
        path.rename(folder / "clips" / path.name)
    return folder


VERBS = {
    "simulate": (20, ".more", ["simulate", "world=bouncing", "size=32", "out=more", "clips=64", "workers=1"]),
    "pack": (20, "made", ["pack", "source=clips", "out=made", "workers=1"]),
    "train": (
        100,
        "runs/a",
        ["train", "name=a", *tiny(Path("data")), "trainer.max_steps=4", "callbacks.checkpoints.every=2"],
    ),
}


def test_a_disk_without_any_room_is_named_and_has_no_lock_left(before: Path, tmp_path: Path) -> None:
    done = on_a_full_disk(before, tmp_path / "after", 0, "train", "name=a", *tiny(Path("data")))
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("videodiff train: error: [Errno 28] No space left on device: "), done.stderr
    assert "disk/runs/a/.videodiff.lock" in done.stderr
    assert contents(tmp_path / "after") == contents(before)


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(before: Path, tmp_path: Path, verb: str) -> None:
    left, place, arguments = VERBS[verb]
    done = on_a_full_disk(before, tmp_path / "after", left, *arguments)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1, done.stderr
    assert last.startswith(f"videodiff {verb}: error: "), done.stderr
    assert "No space left on device" in last
    assert f"disk/{place}" in last or f"'{place}" in last
    assert "Traceback" not in done.stderr
    found = contents(tmp_path / "after")
    assert contents(before).items() <= found.items()
    assert not [name for name in found if ".partial" in name]
    assert not list((tmp_path / "after").glob("runs/*/checkpoints/step_*"))


ZERO = [
    *("train", "name=a", *tiny(Path("data")), "strategy=zero2", "trainer.devices=2", "optimizer=adamw"),
    *("schedule=constant", "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=0"),
]


def test_a_disk_that_fills_under_zero_is_one_line_and_the_checkpoint_before_goes_on(
    before: Path, tmp_path: Path
) -> None:
    """Two processes; a few checkpoints fit. A rank that is left over would keep the pipe open, and this waiting."""
    # The second process has to be a child of the first, with which it ends.
    done = on_a_full_disk(before, after := tmp_path / "after", 2800, *ZERO, "trainer.max_steps=20", children="no")
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("videodiff train: error: ")
    assert "No space left on device for a checkpoint, which needs about 0." in errors[0]
    assert "runs/a/checkpoints" in errors[0]
    assert "Traceback" not in done.stderr
    saved = checkpoints(after / "runs/a")
    assert [path.name for path in saved] == [f"step_{n + 1:08d}" for n in range(len(saved))]
    assert 1 <= len(saved) < 20
    for checkpoint in saved:
        whole(checkpoint)
    assert not list(after.rglob("*.partial"))
    # With room again it goes on from there.
    finish(start("train", "resume=runs/a", f"trainer.max_steps={len(saved) + 1}", cwd=after))
    assert latest_checkpoint(after / "runs/a").name == f"step_{len(saved) + 1:08d}"


PREP = ["prep", "source=clips", "score=false", "prep=all", "encode.short_side=16", "workers=1"]


@pytest.mark.parametrize("left", [30, 130, 250])
def test_prep_on_a_full_disk_is_one_line_and_goes_on_to_the_same_bytes(before: Path, tmp_path: Path, left: int) -> None:
    """The disk fills while inputs are entered, clips are made, and shards are written."""
    done = on_a_full_disk(before, after := tmp_path / "after", left, *PREP, "out=made")
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("videodiff prep: error: ")
    assert "No space left on device" in errors[0]
    assert f"{tmp_path}/disk/made" in errors[0]
    assert "Traceback" not in done.stderr
    assert contents(before).items() <= contents(after).items()
    assert not (after / "made/manifest.parquet").exists()
    # Where the disk was mounted: a source is known by its whole path.
    disk = shutil.copytree(after, tmp_path / "disk", dirs_exist_ok=True)
    for out in ("made", "whole"):
        prep(disk / out, disk / "clips", score=False, encode={"short_side": 16}, workers=1)
    whole = {name: data for name, data in contents(disk / "whole").items() if not name.startswith(".work")}
    found = {name: data for name, data in contents(disk / "made").items() if not name.startswith(".work")}
    assert len(whole) > 3
    assert found == whole
    assert not list(disk.rglob("*.partial"))
