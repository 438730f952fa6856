"""Every verb that writes into a folder leaves it alone while another one does."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import tiny
from videodiff.data.storage.files import owning

Call = Callable[..., tuple[int, str, str]]


@contextmanager
def another_writer(folder: Path) -> Iterator[None]:
    """Let another thread, which is like another process here, own a folder."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with owning(folder, "somebody"):
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def cwd(tmp_path: Path, world_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder: a dataset `data`, a bare tar in `tars`, a clip in `clips`, and a run `runs/a`."""
    shutil.copytree(world_dataset, tmp_path / "data")
    (tmp_path / "tars").mkdir()
    (tmp_path / "clips").mkdir()
    tar = shutil.copy(next(world_dataset.glob("*.tar")), tmp_path / "tars")
    subprocess.run(["tar", "-xf", tar, "-C", tmp_path / "clips", "0000.mp4", "0000.txt"], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


VERBS = {
    "train": ("runs/a", ["name=a", *tiny(Path("data"))]),
    "simulate": (".more.partial", ["world=bouncing", "out=more", "clips=1", "workers=1"]),
    "pack": ("out", ["source=clips", "out=out", "workers=1"]),
    "prep": ("out", ["source=clips", "out=out", "workers=1"]),
    "index": ("tars", ["tars=tars", "workers=1"]),
    "cache": ("out", ["root=data", "out=out", "workers=1", "codec=sd_vae", "codec.path_or_name=nowhere"]),
    "sample": ("runs/a/generated", ["run=runs/a", "prompts=[a ball]"]),
    "evaluate": ("runs/a/evaluation", ["run=runs/a"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_refuses_a_folder_that_another_process_writes_into(cwd: Path, call: Call, verb: str) -> None:
    folder, arguments = VERBS[verb]
    if verb in ("sample", "evaluate"):
        assert call("train", *VERBS["train"][1], "trainer.max_steps=1")[0] == 0
    before = sorted(cwd.rglob("*"))
    with another_writer(cwd / folder):
        status, out, err = call(verb, *arguments)
    assert status == 1
    assert re.fullmatch(
        rf"videodiff {verb}: error: {re.escape(str(cwd / folder))}: 'somebody' \(process \d+ on .+\) writes here "
        r"since \d.+; wait for its end, or choose another folder\n",
        err,
    ), err + out
    assert sorted(cwd.rglob("*")) == before


def test_the_jobs_of_a_sweep_have_folders_of_their_own(cwd: Path, call: Call) -> None:
    recipe = [*tiny(Path("data")), "trainer.max_steps=1"]
    status, _, err = call("train", *recipe, "optimizer.lr=1e-3,2e-3", "--multirun")
    assert status == 0, err
    assert sorted(p.name for p in (cwd / "runs").glob("run*")) == ["run_0", "run_1"]
    status, out, err = call("train", "resume=runs/run_1", "trainer.max_steps=2")
    assert status == 0, err
    assert "2 steps in runs/run_1" in out
    status, _, err = call("train", *recipe, "name=lr_${optimizer.lr}", "optimizer.lr=1e-3,2e-3", "--multirun")
    assert status == 0, err
    assert {"lr_0.001", "lr_0.002"} < {p.name for p in (cwd / "runs").iterdir()}
