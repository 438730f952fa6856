"""Checkpoints in an object store: whole or ignored, the newest that verifies, and a store that fails costs a line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from tests.conftest import tiny
from tests.data.storage.test_remote import free_port, wait_for
from tests.material.runs.disk import Disk, content
from tests.material.runs.saved_state import assert_same_bits
from tests.material.runs.small_checkpoint import write_checkpoint
from videodiff.data.storage import store
from videodiff.data.storage.store import Store, StoreError
from videodiff.report.run import read_run
from videodiff.training.state import mirror
from videodiff.training.state.checkpoint import CheckpointError, checkpoints, is_damaged, step_of, whole
from videodiff.training.state.mirror import Mirror, bring

SECRET = "a-secret-that-nobody-prints"
URL = "s3://set/runs"


class Server:
    """A moto server that may be stopped and started again at the same port; it forgets what it held."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "moto.server", "-p", str(self.port)]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(self.port, self.process)
        self.client.create_bucket(Bucket="set")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    @cached_property
    def client(self) -> Any:
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        return botocore.session.get_session().create_client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", **keys)

    def objects(self) -> dict[str, bytes]:
        """Return all that it holds."""
        found = self.client.list_objects_v2(Bucket="set").get("Contents", [])
        return {one["Key"]: self.client.get_object(Bucket="set", Key=one["Key"])["Body"].read() for one in found}

    def records(self, run: str) -> list[int]:
        """Return the steps whose checkpoints have a record."""
        names = [key.split("/") for key in self.objects() if key.endswith("/checkpoint.json")]
        return [int(name[-2][5:]) for name in names if name[1] == run]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point at the server as every AWS program is pointed, and wait shortly."""
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_ACCESS_KEY_ID": "key",
                        "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
                        "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "WAIT", 0.01)
    monkeypatch.setattr(mirror, "PAUSE", 0.05)


def checkpoint(run: Path, step: int) -> Path:
    """Write a checkpoint of a few bytes, and the overrides of its run."""
    folder = write_checkpoint(run, step)
    (run / "overrides.yaml").write_text(f"- step={step}\n")
    return folder


def sent(
    run: Path, *steps: int, keep: int = 2, kept: Callable[[int], bool] = lambda step: False, start: int = 0
) -> None:
    """Copy checkpoints of these steps, one after the other, and remove old ones there."""
    copies = Mirror(URL, run, keep, kept)
    copies.begin(new=not start)
    copies.start = start
    for step in steps:
        copies.send(checkpoint(run, step))
        while copies.needs(step):
            time.sleep(0.02)
        copies.prune()
    copies.finish(20)


def test_the_store_keeps_what_the_disk_keeps(server, tmp_path):
    run = tmp_path / "keeps"
    for name in ("metrics/version_0/metrics.csv", ".videodiff.lock", ".hidden.json", "notes.bin", "samples/clip.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("text")
    sent(run, 1, 2, 3, 4, 5, kept=lambda step: step == 2)
    beside = {key for key in server.objects() if key.startswith("runs/keeps/") and "/checkpoints/" not in key}
    assert beside == {"runs/keeps/overrides.yaml", "runs/keeps/metrics/version_0/metrics.csv"}
    assert server.records("keeps") == [2, 4, 5]
    left = {key.split("/")[3] for key in server.objects() if key.startswith("runs/keeps/checkpoints/")}
    assert left == {"step_00000002", "step_00000004", "step_00000005"}


def test_the_record_goes_there_last_and_away_first(tmp_path, monkeypatch):
    done: list[tuple[str, str]] = []
    for name in ("put", "remove"):
        act = getattr(Store, name)
        monkeypatch.setattr(
            Store, name, lambda self, *words, act=act, name=name: (done.append((name, words[-1])), act(self, *words))[1]
        )
    sent(tmp_path / "order", 1, 2, keep=1)
    put = [name for what, name in done if what == "put" and "/step_00000001/" in name]
    gone = [name for what, name in done if what == "remove" and "/step_00000001/" in name]
    assert len(put) == len(gone) == 4
    assert put[-1] == gone[0] == "checkpoints/step_00000001/checkpoint.json"


def test_a_checkpoint_of_the_same_step_is_sent_anew_after_the_record_of_the_earlier_one_is_gone(
    server, tmp_path, monkeypatch
):
    """A run that went back comes to the same step with other weights."""
    run = tmp_path / "anew"
    sent(run, 1)
    done: list[tuple[str, str]] = []
    for name in ("put", "remove"):
        act = getattr(Store, name)
        monkeypatch.setattr(
            Store, name, lambda self, *words, act=act, name=name: (done.append((name, words[-1])), act(self, *words))[1]
        )
    shutil.rmtree(run / "checkpoints")
    sent(run, 1, start=1)
    folder = "checkpoints/step_00000001"
    removed = done.index(("remove", f"{folder}/checkpoint.json"))
    assert removed < min(done.index(found) for found in done if found[0] == "put")
    assert done[-1] == ("put", f"{folder}/checkpoint.json")
    assert server.records("anew") == [1]


def test_a_checkpoint_that_is_being_sent_is_still_needed(tmp_path, monkeypatch):
    begun, go_on, put = threading.Event(), threading.Event(), Store.put
    monkeypatch.setattr(Store, "put", lambda self, *words: (begun.set(), go_on.wait(30), put(self, *words))[2])
    copies = Mirror(URL, tmp_path / "busy", 1, lambda step: False)
    copies.begin(new=True)
    copies.send(checkpoint(tmp_path / "busy", 1))
    assert begun.wait(30)
    copies.send(checkpoint(tmp_path / "busy", 2))
    assert copies.needs(1)
    assert copies.needs(2)
    go_on.set()
    copies.finish(30)
    assert not copies.needs(1)
    assert not copies.needs(2)


def test_a_fresh_folder_gets_the_newest_that_verifies_and_a_line_says_which_does_not(server, tmp_path, capsys):
    sent(tmp_path / "here" / "fall", 1, 2, 3, 4, keep=0)
    folder = "runs/fall/checkpoints/step_00000004"
    server.client.delete_object(Bucket="set", Key=f"{folder}/checkpoint.json")
    server.client.put_object(
        Bucket="set", Key="runs/fall/checkpoints/step_00000003/average.safetensors", Body=b"another".ljust(29)
    )
    fresh = tmp_path / "there" / "fall"
    bring(f"{URL}/fall", fresh)
    assert [step_of(path) for path in checkpoints(fresh)] == [2]
    assert whole(checkpoints(fresh)[0])
    assert (fresh / "overrides.yaml").read_text() == "- step=4\n"
    said = capsys.readouterr().out
    assert "step_00000003" in said
    assert "takes the checkpoint before it" in said
    # Nothing is left of what did not verify.
    assert [path.name for path in (fresh / "checkpoints").iterdir()] == ["step_00000002"]


def test_what_was_brought_stays_after_a_power_cut(tmp_path, monkeypatch):
    sent(tmp_path / "here" / "cut", 1)
    disk, run = Disk(monkeypatch), tmp_path / "there" / "cut"
    bring(f"{URL}/cut", run)
    assert disk.holds(run / "checkpoints/step_00000001")
    assert disk.kept[run / "overrides.yaml"] == content(run / "overrides.yaml")


def test_a_record_that_comes_by_half_leaves_the_one_that_is_here(tmp_path, monkeypatch):
    sent(tmp_path / "here" / "half", 1)
    run = tmp_path / "there" / "half"
    run.mkdir(parents=True)
    (run / "overrides.yaml").write_text("older\n")
    get = Store.get

    def breaks(self: Store, name: str, path: Path) -> None:
        get(self, name, path)
        if name == "overrides.yaml":
            path.write_bytes(path.read_bytes()[:1])
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "get", breaks)
    with pytest.raises(KeyboardInterrupt):
        bring(f"{URL}/half", run)
    assert (run / "overrides.yaml").read_text() == "older\n"
    assert not list(run.rglob("*.partial"))


def test_a_missing_object_counts_as_damage_and_nothing_whole_is_an_error(server, tmp_path):
    sent(tmp_path / "here" / "none", 1)
    server.client.delete_object(Bucket="set", Key="runs/none/checkpoints/step_00000001/state/progress.json")
    with pytest.raises(CheckpointError, match=r"no other checkpoint of s3://set/runs/none is whole"):
        bring(f"{URL}/none", tmp_path / "there" / "none")


def test_a_newer_checkpoint_here_stays_the_one_to_go_on_from(tmp_path):
    sent(tmp_path / "here" / "newer", 1, 2)
    run = tmp_path / "there" / "newer"
    checkpoint(run, 3)
    bring(f"{URL}/newer", run)
    assert [step_of(path) for path in checkpoints(run)] == [3]


def test_a_checkpoint_that_is_here_is_not_brought_again(tmp_path, capsys):
    sent(tmp_path / "here" / "same", 1, 2)
    run = tmp_path / "there" / "same"
    there = checkpoint(run, 2).stat().st_ino
    capsys.readouterr()
    bring(f"{URL}/same", run)
    assert checkpoints(run)[-1].stat().st_ino == there
    assert "brought" not in capsys.readouterr().out


def test_a_damaged_checkpoint_here_does_not_count(tmp_path):
    sent(tmp_path / "here" / "worse", 1, 2)
    run = tmp_path / "there" / "worse"
    (checkpoint(run, 3) / "state/progress.json").unlink()
    bring(f"{URL}/worse", run)
    assert [(step_of(path), is_damaged(path)) for path in checkpoints(run)] == [(2, False), (3, True)]


def test_a_store_without_a_run_is_an_error_where_one_is_needed(tmp_path):
    bring(f"{URL}/nothing", tmp_path / "nothing", needed=False)
    with pytest.raises(FileNotFoundError, match="resume: found no checkpoint in s3://set/runs/nothing/checkpoints"):
        bring(f"{URL}/nothing", tmp_path / "nothing")


def test_a_store_that_is_away_does_not_matter_where_a_checkpoint_is_here(server, tmp_path, capsys):
    server.stop()
    with pytest.raises(StoreError):
        bring(f"{URL}/gone", tmp_path / "nothing" / "gone")
    run = tmp_path / "gone"
    checkpoint(run, 3)
    bring(f"{URL}/gone", run)
    assert capsys.readouterr().out.endswith("; goes on from step 3, which is here\n")
    server.start()


def test_a_record_that_names_a_file_outside_is_not_followed(server, tmp_path):
    sent(tmp_path / "here" / "outside", 1)
    key = "runs/outside/checkpoints/step_00000001/checkpoint.json"
    record = json.loads(server.objects()[key])
    record["files"]["../../../../owned"] = record["files"]["average.safetensors"]
    server.client.put_object(Bucket="set", Key=key, Body=json.dumps(record).encode())
    with pytest.raises(CheckpointError, match="not followed"):
        bring(f"{URL}/outside", tmp_path / "there" / "outside")
    assert not list(tmp_path.rglob("owned"))


def test_what_a_killed_process_left_there_is_removed_and_checkpoints_of_another_future_are_put_aside(server, tmp_path):
    run = tmp_path / "left"
    sent(run, 1, 2, 3, keep=0)
    server.client.put_object(Bucket="set", Key="runs/left/checkpoints/step_00000009/average.safetensors", Body=b"half")
    # Training goes on from step 2, saves step 4.
    sent(run, 4, keep=0, start=2)
    assert server.records("left") == [1, 2, 4]
    names = [key for key in server.objects() if key.startswith("runs/left/checkpoints/")]
    assert not any("step_00000009" in name for name in names)
    assert "runs/left/checkpoints/step_00000003/checkpoint.left.json" in names
    # And again from step 2: now 4 is of another future, and 3 is not any more.
    shutil.rmtree(run / "checkpoints")
    sent(run, 3, keep=0, start=2)
    assert server.records("left") == [1, 2, 3]
    left = [key for key in server.objects() if key.startswith("runs/left/") and key.endswith("/checkpoint.left.json")]
    assert left == ["runs/left/checkpoints/step_00000004/checkpoint.left.json"]


def test_a_store_that_is_away_costs_one_line_and_gets_the_checkpoint_when_it_is_back(server, tmp_path, capsys):
    run = tmp_path / "away"
    copies = Mirror(URL, run, 1, lambda step: False)
    copies.begin(new=True)
    server.stop()
    copies.send(checkpoint(run, 1))
    while not copies.told:
        time.sleep(0.02)
    # It would be removed at once: only the newest waits.
    copies.send(checkpoint(run, 2))
    assert not copies.needs(1)
    assert copies.needs(2)
    server.start()
    while copies.needs(2):
        time.sleep(0.02)
    copies.finish(20)
    assert server.records("away") == [2]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "training goes on" in said[0]


@pytest.mark.parametrize(("keep", "waiting"), [(2, [2, 4, 5]), (1, [2, 5]), (0, [1, 2, 3, 4, 5])])
def test_only_what_the_store_would_keep_waits(tmp_path, keep, waiting):
    copies = Mirror(URL, tmp_path / "waits", keep, lambda step: step == 2)
    for step in range(1, 6):
        copies.send(tmp_path / f"waits/checkpoints/step_{step:08d}")
    assert [step_of(one) for one in copies.waiting] == waiting
    # Training has gone back to an older one, and this is not here any more.
    copies.copy(copies.waiting[0])


def test_each_failure_of_the_store_after_a_success_is_told_once(tmp_path, capsys):
    copies = Mirror(URL, tmp_path / "told", 1, lambda step: False)

    def fail():
        raise OSError("the store is away")

    assert [copies.try_to(act) for act in (fail, fail, list, fail)] == [False, False, True, False]
    assert capsys.readouterr().out.count("the store is away; training goes on") == 2


def test_training_ends_where_the_store_never_answers(server, tmp_path, capsys):
    run = tmp_path / "never"
    copies = Mirror(URL, run, 2, lambda step: False)
    copies.begin(new=True)
    server.stop()
    copies.send(checkpoint(run, 1))
    copies.finish(60)
    assert not copies.thread.is_alive()
    assert "step_00000001 could not be copied there; the run folder holds them" in capsys.readouterr().out
    server.start()


@pytest.mark.parametrize("folder", [".", "../mine", "checkpoints/.."])
def test_the_place_of_a_run_has_its_name_whatever_its_folder_is_called(tmp_path, monkeypatch, folder):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert str(Mirror(URL, Path(folder), 2, lambda step: False).store.url) == f"{URL}/mine"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("https://host/runs", "found https://, expected one of s3, gs, az, abfs"),
        ("s3://nobody/runs", r"callbacks\.checkpoints\.mirror: s3://nobody/runs/new.*no such file or bucket"),
    ],
)
def test_a_store_that_can_not_be_written_to_is_an_error_before_the_first_step(tmp_path, url, line):
    with pytest.raises(ValueError, match=line):
        Mirror(url, tmp_path / "new", 2, lambda step: False).begin(new=True)


def test_a_run_goes_on_from_the_store_on_a_machine_that_has_nothing(server, call, world_dataset, tmp_path, monkeypatch):
    """To the bit, with the whole curve; and no secret lies in the store or in the run folder."""
    # Its rate does not depend on how many steps there are to be.
    constant = ["schedule=constant"]
    recipe = [*tiny(world_dataset), *constant, "callbacks.checkpoints.every=2", "trainer.log_every_n_steps=1"]
    there = f"callbacks.checkpoints.mirror={URL}"

    def run(folder: str, *words: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        status, out, err = call("train", *words)
        assert status == 0, err
        return out

    run("one", "name=a", *recipe, "trainer.max_steps=6")
    run("first", "name=a", *recipe, there, "trainer.max_steps=4")
    run("second", f"resume={URL}/a", "trainer.max_steps=5")
    out = run("third", "name=a", *recipe, there, "trainer.max_steps=6", "resume=auto")
    assert "brought step_00000005" in out
    last = Path("checkpoints/step_00000006")
    assert_same_bits(tmp_path / "one/runs/a" / last, tmp_path / "third/runs/a" / last)
    assert len(read_run(Path("runs/a")).metrics["train/loss"][1]) == 6
    assert server.records("a") == [5, 6]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in data for data in (*server.objects().values(), *files))
    (tmp_path / "fourth").mkdir()
    monkeypatch.chdir(tmp_path / "fourth")
    status, _, err = call("train", "name=a", *recipe, there)
    assert status == 1
    assert f"{URL}/a already holds a run; continue it with resume={URL}/a" in err
    # A folder may not send its checkpoints elsewhere than to the store that the command line names.
    theirs = server.objects()["runs/a/overrides.yaml"].replace(b"s3://set/runs", b"s3://set/theirs")
    server.client.put_object(Bucket="set", Key="runs/a/overrides.yaml", Body=theirs)
    (tmp_path / "fifth").mkdir()
    monkeypatch.chdir(tmp_path / "fifth")
    status, _, err = call("train", f"resume={URL}/a")
    assert status == 1
    assert "callbacks.checkpoints.mirror='s3://set/theirs'" in err
    assert "only the command line may set this key" in err
    assert not [key for key in server.objects() if "theirs" in key]
