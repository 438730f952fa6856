"""Runs that come with videodiff: found by their name, copied once, never mixed up with a run of the user's own."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from videodiff.shipped import runs
from videodiff.shipped.runs import find_run, shipped, take_run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run `small` that comes with videodiff; the current folder is an empty one."""
    folder = tmp_path / "package/small"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: small\n")
    (folder / "checkpoints/weights").write_bytes(b"weights")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(runs, "HOME", tmp_path / "package")
    return folder


def test_a_run_that_comes_with_videodiff_is_copied_when_it_is_first_used(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shipped() == ["small"]
    assert find_run("small") == home
    assert not any(Path().iterdir()), "looking for a run writes nothing"
    assert take_run("small") == Path("runs/small")
    assert "the run small comes with videodiff; it is copied to runs/small" in capsys.readouterr().out
    assert (Path("runs/small/checkpoints/weights")).read_bytes() == b"weights"
    assert find_run("small") == Path("runs/small")
    (Path("runs/small/generated")).mkdir()
    assert take_run("small") == Path("runs/small")
    assert capsys.readouterr().out == ""
    assert Path("runs/small/generated").is_dir()
    assert sorted(path.name for path in Path("runs").iterdir()) == ["small"]


def test_a_folder_goes_before_a_name_and_other_names_are_folders(home: Path) -> None:
    assert find_run("runs/mine") == Path("runs/mine")
    Path("small").mkdir()
    assert find_run("small") == Path("small")


def test_a_run_of_the_users_own_is_not_taken_for_the_one_that_comes_with_videodiff(home: Path) -> None:
    Path("runs/small").mkdir(parents=True)
    Path("runs/small/config.yaml").write_text("name: mine\n")
    with pytest.raises(ValueError, match="run: found another run in runs/small than the small that comes with"):
        take_run("small")
    assert Path("runs/small/config.yaml").read_text() == "name: mine\n"


def test_a_copy_that_fails_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        take_run("small")
    assert list(Path("runs").iterdir()) == []


def test_processes_that_copy_at_once_take_the_first_copy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def slower(partial: Path, copy: Path) -> None:
        shutil.copytree(partial, copy)
        rename(partial, copy)

    monkeypatch.setattr(os, "rename", slower)
    assert take_run("small") == Path("runs/small")
    assert [path.name for path in Path("runs").iterdir()] == ["small"]
