"""A checkpoint is what was written, or is not used; nothing in it is run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import tiny
from videodiff.data.storage.files import sha256_of
from videodiff.parallel.zero.files import PlainFiles
from videodiff.training.run import checkpoint as module
from videodiff.training.run.attempts import check_links
from videodiff.training.run.checkpoint import check_room, checkpoints, latest_checkpoint, prune, whole
from videodiff.training.run.files import StateWriter, load_state, write_state, write_tensors

Call = Callable[..., tuple[int, str, str]]


class Evil:
    """Pickled, it makes a file where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def runs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, world_dataset: Path, call: Call, monkeypatch: Any
) -> Path:
    """Return the working folder, with a run `runs/a` that has checkpoints of steps 1, 2 and 3."""
    made = tmp_path_factory.getbasetemp() / "checkpoint_runs"
    if not made.exists():
        made.mkdir()
        monkeypatch.chdir(made)
        more = ["trainer.max_steps=3", "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=3"]
        status, _, err = call("train", "name=a", *tiny(world_dataset), *more)
        assert status == 0, err
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flip(path: Path) -> None:
    """Change bytes in the middle of a file, not its size."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(255 - byte for byte in data[middle : middle + 40])
    path.write_bytes(data)


def names(run: str) -> list[str]:
    return [path.name for path in checkpoints(Path(run))]


def test_the_record_has_the_checksum_of_every_file(runs: Path) -> None:
    checkpoint = latest_checkpoint(Path("runs/a"))
    files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    assert files.keys() == {"state.ckpt", "average.safetensors"}
    for name, file in files.items():
        data = (checkpoint / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_resume_goes_on_from_the_newest_whole_state_and_the_damaged_one_stays(runs: Path, call: Call) -> None:
    flip(Path("runs/a/checkpoints/step_00000003/state.ckpt"))
    flip(Path("runs/a/checkpoints/step_00000002/average.safetensors"))
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=6", "callbacks.checkpoints.keep=1")
    assert status == 0, err
    assert "step_00000003/state.ckpt: found a damaged file" in err
    assert "going on from step_00000002: 1 steps are lost" in err
    assert "step_00000002/average.safetensors: found a damaged file" in err
    assert "training does not read it" in err
    found = {path.name for path in Path("runs/a/checkpoints").iterdir()}
    assert found == {"step_00000003.damaged", "step_00000006"}
    assert "damaged" in (Path("runs/a/checkpoints/step_00000003.damaged/damaged.txt")).read_text()


def test_sampling_takes_the_newest_whole_average_and_inspect_tells_of_each(runs: Path, call: Call) -> None:
    flip(Path("runs/a/checkpoints/step_00000003/average.safetensors"))
    status, out, err = call("sample", "runs/a", "prompts=[a ball]")
    assert status == 0, err
    assert "going on from step_00000002" in err
    status, out, _ = call("inspect", "runs/a")
    assert [("whole" in line, "not usable" in line) for line in out.splitlines() if line.startswith("checkpoint")] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    status, _, err = call("sample", "runs/a", "prompts=[a ball]", "checkpoint=runs/a/checkpoints/step_00000003")
    assert (status, err.count("\n")) == (1, 1)


def test_a_chosen_checkpoint_is_gone_on_from_and_newer_ones_are_put_aside(
    runs: Path, call: Call, world_dataset: Path
) -> None:
    status, _, err = call("train", "resume=runs/a", "checkpoint=step_00000001", "trainer.max_steps=2")
    assert status == 0, err
    assert names("runs/a") == ["step_00000001", "step_00000002"]
    assert sorted(path.name for path in Path("runs/a/checkpoints").glob("*.left")) == [
        "step_00000002.left",
        "step_00000003.left",
    ]
    for arguments, message in (
        (["resume=runs/a", "checkpoint=step_9"], "checkpoint: found step_9, expected one of runs/a/checkpoints"),
        (["name=b", "checkpoint=x"], "without resume="),
    ):
        status, _, err = call("train", *arguments, f"data.root={world_dataset}")
        assert status == 1
        assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"version": 3}, "found version 3, expected at most 2: of a newer videodiff"),
        (lambda record: record | {"files": {}}, "found no average.safetensors in the list of files"),
        (lambda record: {}, "found no readable checkpoint.json"),
        (lambda record: record | {"files": record["files"] | {"../../x": {"bytes": 1, "sha256": "0"}}}, "not followed"),
    ],
)
def test_a_record_that_is_none_is_a_line(runs: Path, change: Callable[..., Any], message: str) -> None:
    checkpoint = latest_checkpoint(Path("runs/a"))
    path = checkpoint / "checkpoint.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as error:
        whole(checkpoint)
    assert "\n" not in str(error.value)


def test_damaged_checkpoints_do_not_count_and_are_not_pruned(runs: Path) -> None:
    folder = Path("runs/a/checkpoints")
    (folder / "step_00000003" / "state.ckpt").unlink()
    (folder / "step_00000002" / "damaged.txt").write_text("found out before")
    shutil.copytree(folder / "step_00000001", folder / "step_00000004")
    prune(folder, 1)
    assert names("runs/a") == ["step_00000002", "step_00000003", "step_00000004"]


def signed(checkpoint: Path, name: str) -> None:
    """Give a file its right checksum, as whoever made the folder would."""
    path = checkpoint / "checkpoint.json"
    record = json.loads(path.read_text())
    size = (checkpoint / name).stat().st_size
    record["files"][name] = {"bytes": size, "sha256": sha256_of(checkpoint / name)}
    path.write_text(json.dumps(record))


def poisoned(path: Path, mark: Path, how: str) -> None:
    """Write a pickle that makes a folder when it is loaded: bare, or as torch saves it."""
    if how == "bare":
        path.write_bytes(pickle.dumps({"state_dict": Evil(mark)}))
    else:
        torch.save({"state_dict": Evil(mark)}, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.parametrize("how", ["bare", "zip", "old"])
def test_a_state_that_would_run_code_is_a_line(runs: Path, call: Call, how: str) -> None:
    checkpoint, mark = latest_checkpoint(Path("runs/a")), runs / "mark"
    poisoned(checkpoint / "state.ckpt", mark, how)
    signed(checkpoint, "state.ckpt")
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("videodiff train: error: ")
    assert "found something else than the state of a training" in last
    assert not mark.exists()


@pytest.mark.parametrize("how", ["bare", "zip", "old"])
def test_a_shard_of_deepspeed_that_would_run_code_is_a_line(tmp_path: Path, how: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    poisoned(path, mark, how)
    with pytest.raises(ValueError, match="nothing of it was run") as error:
        PlainFiles(StateWriter()).load(str(path), map_location="cpu")
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_a_state_comes_back_and_is_streamed_into_its_file(tmp_path: Path) -> None:
    state = {"a": torch.arange(5.0), "b": [torch.ones(2, dtype=torch.bfloat16), {"c": 1}], "d": "text"}
    written = write_state(state, tmp_path / "state")
    assert (written.bytes, written.sha256) == ((tmp_path / "state").stat().st_size, sha256_of(tmp_path / "state"))
    assert zipfile.is_zipfile(tmp_path / "state")
    found = load_state(tmp_path / "state")
    assert torch.equal(found["a"], state["a"])
    assert torch.equal(found["b"][0], state["b"][0])
    tensors = {"z": torch.randn(3, 4), "a": torch.ones(5, dtype=torch.bfloat16), "s": torch.tensor(2.0)}
    written = write_tensors(tensors, tmp_path / "tensors")
    assert (written.bytes, written.sha256) == ((tmp_path / "tensors").stat().st_size, sha256_of(tmp_path / "tensors"))
    read = load_file(tmp_path / "tensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], value) for key, value in tensors.items())


def test_what_is_not_finite_or_does_not_fit_the_disk_is_told_when_asked_and_stops_what_follows(tmp_path: Path) -> None:
    writer = StateWriter()
    writer.write({"weights": {"w": torch.tensor([1.0, float("inf")])}}, tmp_path / "state")
    writer.write({"fine": torch.ones(1)}, tmp_path / "more")
    problem, written = writer.take()
    assert "state.weights.w: found values that are not finite" in str(problem)
    assert (written, list(tmp_path.iterdir())) == ({}, [])
    writer.write({"w": torch.ones(1)}, tmp_path / "absent" / "state")
    assert str(tmp_path / "absent" / "state") in str(writer.take()[0])
    writer.write({"w": torch.ones(1)}, tmp_path / "state")
    assert writer.take()[0] is None


def test_a_disk_without_room_for_the_checkpoints_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=59_999))
    with pytest.raises(OSError, match=r"for 3 checkpoints .*keep=2.*expected 0.1") as error:
        check_room(tmp_path / "checkpoints", 1000, 2)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=60_000))
    check_room(tmp_path / "checkpoints", 1000, 2)


@pytest.mark.parametrize("name", ["checkpoints", "samples", "checkpoints/step_00000003/state.ckpt"])
@pytest.mark.parametrize("verb", ["train", "sample", "inspect"])
def test_a_link_in_a_run_folder_is_not_followed_out_of_it(runs: Path, call: Call, name: str, verb: str) -> None:
    path, elsewhere = Path("runs/a") / name, runs / "elsewhere"
    path.rename(elsewhere) if path.exists() else elsewhere.mkdir()
    path.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    arguments = {"train": ["resume=runs/a", "trainer.max_steps=4"], "sample": ["runs/a", "prompts=[a ball]"]}
    status, _, err = call(verb, *arguments.get(verb, ["runs/a"]))
    assert status == 1
    assert "expected one inside: not followed" in err.strip().splitlines()[-1]
    assert sorted(elsewhere.rglob("*")) == before


def test_a_link_that_stays_inside_is_followed(runs: Path) -> None:
    Path("runs/a/newest").symlink_to("checkpoints/step_00000003")
    check_links(Path("runs/a"))


def test_a_new_start_over_an_attempt_without_a_checkpoint_begins_anew(
    tmp_path: Path, world_dataset: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ["name=a", *tiny(world_dataset), "trainer.max_steps=1"]
    assert call("train", *recipe)[0] == 0
    shutil.rmtree("runs/a/checkpoints")
    status, _, err = call("train", *recipe)
    assert status == 0, err
    assert "runs/a: found an attempt without a checkpoint, moved it to runs/a/attempts/0" in err
    assert [path.name for path in Path("runs/a/metrics").iterdir()] == ["version_0"]
    assert (Path("runs/a/attempts/0/metrics/version_0/metrics.csv")).is_file()
