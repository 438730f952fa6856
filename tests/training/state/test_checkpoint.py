"""A checkpoint is what was written, or is not used; nothing in it is run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import tiny
from tests.material.runs.saved_state import assert_same_bits, progress_in, weights_of
from videodiff.data.storage.files import sha256_of
from videodiff.training.module import VideoDiffusion
from videodiff.training.run.attempts import check_links
from videodiff.training.state import checkpoint as module
from videodiff.training.state.checkpoint import (
    check_room,
    checkpoints,
    latest_checkpoint,
    prune,
    remove_unfinished,
    whole,
)
from videodiff.training.state.files import Entry, write_entries
from videodiff.training.state.pieces import Piece
from videodiff.training.state.restoring import check_same, files_of
from videodiff.training.state.saved import Saved
from videodiff.training.state.saving import write_pieces
from videodiff.verbs.config.build import build_model, read_run

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
    assert files.keys() == {"state/rank_00000.safetensors", "state/progress.json", "average.safetensors"}
    for name, file in files.items():
        data = (checkpoint / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_resume_goes_on_from_the_newest_whole_state_and_the_damaged_one_stays(runs: Path, call: Call) -> None:
    flip(Path("runs/a/checkpoints/step_00000003/state/rank_00000.safetensors"))
    flip(Path("runs/a/checkpoints/step_00000002/average.safetensors"))
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=6", "callbacks.checkpoints.keep=1")
    assert status == 0, err
    assert "step_00000003/state/rank_00000.safetensors: found a damaged file" in err
    assert "going on from step_00000002: 1 step is lost" in err
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


def only(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the list of files of a record with one of them."""
    return {name: record["files"][name]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"version": 4}, "found version 4, expected at most 3: of a newer videodiff"),
        (lambda record: record | {"files": {}}, "found no average.safetensors in the list of files"),
        (lambda record: record | {"files": only(record, "average.safetensors")}, "found no state in the list of files"),
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
    (folder / "step_00000003" / "state/progress.json").unlink()
    (folder / "step_00000002" / "damaged.txt").write_text("found out before")
    shutil.copytree(folder / "step_00000001", folder / "step_00000004")
    prune(folder, 1)
    assert names("runs/a") == ["step_00000002", "step_00000003", "step_00000004"]


def test_a_process_that_dies_while_it_prunes_leaves_no_part_of_a_checkpoint(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(folder: Path) -> None:
        (folder / "checkpoint.json").unlink()
        raise Killed

    monkeypatch.setattr(module.shutil, "rmtree", die)
    with pytest.raises(Killed):
        prune(Path("runs/a/checkpoints"), 1)
    monkeypatch.undo()
    assert names(str(runs / "runs/a")) == ["step_00000002", "step_00000003"]
    for name in names(str(runs / "runs/a")):
        whole(runs / "runs/a/checkpoints" / name)
    remove_unfinished(runs / "runs/a/checkpoints")
    assert len(list((runs / "runs/a/checkpoints").iterdir())) == 2


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


def of_version_2(checkpoint: Path) -> Path:
    """Make a checkpoint one of version 2, whose state was a file of torch with the optimizer's state by number."""
    saved, progress = Saved(files_of(checkpoint)), progress_in(checkpoint)
    module = VideoDiffusion(*build_model(read_run(checkpoint.parents[1], ())), optimizer=None, schedule=None)
    kept = {}
    for number, name in enumerate(module.names_in_order()):
        whole = {key: saved.whole(name, key) for key, shape in saved.keys(name).items() if shape is not None}
        step = saved.number(name, "step")
        kept[number] = whole | {"step": torch.tensor(step), "ema_step": int(step)}
    state = progress | {"state_dict": weights_of(checkpoint), "optimizer_states": [{"state": kept}]}
    shutil.rmtree(checkpoint / "state")
    torch.save(state, checkpoint / "state.ckpt")
    record = json.loads((checkpoint / "checkpoint.json").read_text()) | {"version": 2, "state": "whole"}
    record["files"] = {"average.safetensors": record["files"]["average.safetensors"]}
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))
    signed(checkpoint, "state.ckpt")
    return checkpoint


def test_a_state_of_version_2_is_gone_on_from_to_the_bit(runs: Path, call: Call) -> None:
    shutil.copytree("runs/a", "runs/b")
    of_version_2(latest_checkpoint(Path("runs/b")))
    for name in ("a", "b"):
        status, _, err = call("train", f"resume=runs/{name}", "trainer.max_steps=5")
        assert status == 0, err
    assert_same_bits(*(latest_checkpoint(Path(f"runs/{name}")) for name in ("a", "b")))
    assert names("runs/b")[-1] == "step_00000005"


def test_a_state_of_version_2_under_zero_is_a_line_that_tells_the_way(runs: Path, call: Call) -> None:
    checkpoint = of_version_2(latest_checkpoint(Path("runs/a")))
    record = json.loads((checkpoint / "checkpoint.json").read_text()) | {"state": "ZeRO 2 over 2 processes"}
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=5")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert "found the state of ZeRO 2 over 2 processes in version 2, expected version 3; sample and evaluate" in last


@pytest.mark.parametrize("how", ["bare", "zip", "old"])
def test_a_state_that_would_run_code_is_a_line(runs: Path, call: Call, how: str) -> None:
    checkpoint, mark = of_version_2(latest_checkpoint(Path("runs/a"))), runs / "mark"
    poisoned(checkpoint / "state.ckpt", mark, how)
    signed(checkpoint, "state.ckpt")
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("videodiff train: error: ")
    assert "found something else than the state of a training" in last
    assert not mark.exists()


STRANGE = {
    "pickle": ("state/rank_00000.safetensors", "found no readable pieces of a state"),
    "progress": ("state/progress.json", "found no readable progress of a training"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_state_that_is_none_is_a_line(runs: Path, call: Call, name: str) -> None:
    checkpoint, (file, message) = latest_checkpoint(Path("runs/a")), STRANGE[name]
    poisoned(checkpoint / file, runs / "mark", "bare")
    signed(checkpoint, file)
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert f"{file}: {message}" in last
    assert "Traceback" not in err
    assert not (runs / "mark").exists()


@pytest.mark.parametrize("part", ["ClipDataModule", "callbacks.Guard", "loops.fit_loop", "lr_schedulers.0"])
@pytest.mark.parametrize(
    "state", [{}, [1], {"last_epoch": "two", "step": None, "skipped": 3}], ids=["lacks", "list", "kinds"]
)
def test_progress_in_another_form_is_a_line_that_names_its_part(
    runs: Path, call: Call, part: str, state: object
) -> None:
    checkpoint = latest_checkpoint(Path("runs/a"))
    path = checkpoint / "state/progress.json"
    found = outer = json.loads(path.read_text())
    *ways, last = [int(key) if key.isdecimal() else key for key in part.split(".")]
    for key in ways:
        outer = outer[key]
    assert outer[last], "no such part"
    outer[last] = state
    path.write_text(json.dumps(found))
    signed(checkpoint, "state/progress.json")
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 1
    assert f"{path}: " in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_a_state_of_another_model_lists_what_differs(runs: Path, call: Call) -> None:
    config = Path("runs/a/config.yaml")
    config.write_text(config.read_text().replace("mlp_ratio: 4.0", "mlp_ratio: 2.0"))
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert "weight denoiser.blocks.0.mlp.0.bias: found shape (64,), expected shape (32,); weight " in last
    assert "; 2 more weights differ; the checkpoint is of another model configuration" in last


def test_a_file_of_a_rank_that_lacks_a_piece_is_a_line_that_names_it(runs: Path, call: Call) -> None:
    checkpoint = latest_checkpoint(Path("runs/a"))
    path = checkpoint / "state/rank_00000.safetensors"
    with safe_open(path, "pt") as file:
        notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["denoiser.head.bias|exp_avg|0"]
    save_file(tensors, path, notes)
    signed(checkpoint, "state/rank_00000.safetensors")
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=4")
    assert status == 1
    assert "state: denoiser.head.bias: found no value 0 of 'exp_avg' in rank_00000.safetensors" in err
    path.unlink()
    status, _, err = call("train", "resume=runs/a", "checkpoint=step_00000003", "trainer.max_steps=4")
    assert f"{path}: found no file, expected" in err


def test_tensors_are_streamed_into_their_file(tmp_path: Path) -> None:
    tensors = {"z": torch.randn(3, 4), "a": torch.ones(5, dtype=torch.bfloat16), "s": torch.tensor(2.0)}
    written = write_entries([Entry.of(name, tensor) for name, tensor in tensors.items()], tmp_path / "tensors")
    assert (written.bytes, written.sha256) == ((tmp_path / "tensors").stat().st_size, sha256_of(tmp_path / "tensors"))
    read = load_file(tmp_path / "tensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], value) for key, value in tensors.items())


def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    piece = Piece("w", "exp_avg", 0, torch.tensor([1.0, float("inf")]), (2,))
    with pytest.raises(ValueError, match="found values that are not finite, expected numbers: not saved"):
        write_pieces([piece], {}, tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("name", ["checkpoints", "samples", "checkpoints/step_00000003/state/rank_00000.safetensors"])
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


def test_ranks_that_have_chosen_other_checkpoints_do_not_go_on(tmp_path: Path) -> None:
    check_same(["step_00000010", "step_00000010"], tmp_path)
    with pytest.raises(
        ValueError, match=r"found other checkpoints on other ranks \(rank 0: step_00000010, rank 1: step"
    ):
        check_same(["step_00000010", "step_00000005"], tmp_path)
