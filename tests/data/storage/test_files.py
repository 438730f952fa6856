"""A folder has one writer at a time, and a file is there whole or not at all, whatever ends a process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from videodiff.data.storage import files
from videodiff.data.storage.files import LOCK, FolderTaken, owning, partial_of, remove_abandoned, replacing, write_whole

ROOT = Path(__file__).parents[3]


def script(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs this code, with `files` imported without the rest of the project."""
    preamble = "import os, sys, time\nfrom pathlib import Path\nfrom videodiff.data.storage.files import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
with owning(sys.argv[1], "hold"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/below", "file"])
def test_a_folder_that_cannot_be_written_is_one_line_that_names_it(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / place
    with pytest.raises(OSError, match="found a place") as told, owning(folder, "train"):
        pass
    found = str(told.value)
    assert found.startswith(f"{folder}: found a place where nothing can be written (")
    assert found.endswith("), expected a writable folder")


def test_the_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    process = script(HOLD, folder)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(FolderTaken) as refused, owning(folder, "pack"):
        raise AssertionError("two owners")
    assert str(refused.value).startswith(f"{folder}: 'hold' (process {process.pid} on {os.uname().nodename}) writes")
    assert "\n" not in str(refused.value)
    process.communicate()
    with owning(folder, "pack"):
        assert json.loads((folder / LOCK).read_text())["verb"] == "pack"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_any_death_of_the_owner_frees_the_folder(tmp_path: Path, number: signal.Signals) -> None:
    process = script(HOLD, tmp_path)
    process.stdout.readline()
    process.send_signal(number)
    process.wait()
    with owning(tmp_path, "pack"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_that_outlives_its_owner_holds_nothing(tmp_path: Path) -> None:
    process = script(
        """
        with owning(sys.argv[1], "fork"):
            if os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            print("forked", flush=True)
            os._exit(0)
        """,
        tmp_path,
    )
    assert process.stdout.readline() == "forked\n"
    process.wait()
    with owning(tmp_path, "pack"):
        pass


def test_of_many_at_once_one_owns(tmp_path: Path) -> None:
    code = """
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with owning(sys.argv[1], "race"):
            print("owned", flush=True)
            sys.stdin.read()
    except FolderTaken:
        print("taken", flush=True)
    """
    racers = [script(code, tmp_path / "out") for _ in range(6)]
    assert all(racer.stdout.readline() == "ready\n" for racer in racers)
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert sorted(racer.stdout.readline() for racer in racers) == ["owned\n", *["taken\n"] * 5]
    for racer in racers:
        racer.communicate()
    assert not list((tmp_path / "out").glob("*")), "nothing came of it, but the folder may be that of another racer"


def test_an_owner_may_own_again_and_other_threads_may_not(tmp_path: Path) -> None:
    link = tmp_path / "link"
    folder = tmp_path / "out"
    with owning(folder, "outer"):
        link.symlink_to(folder)
        with owning(link, "inner"):
            assert json.loads((folder / LOCK).read_text())["verb"] == "outer"
        assert (folder / LOCK).exists()
        seen = []

        def other() -> None:
            try:
                with owning(link, "thread"):
                    seen.append("owned")
            except FolderTaken:
                seen.append("taken")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == ["taken"]
    assert not folder.exists()


def test_a_folder_that_was_there_or_has_something_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b"):
        with owning(tmp_path / name, "pack"):
            if name == "a/b":
                write_whole(tmp_path / name / "file", b"x")
    assert (tmp_path / "empty").is_dir()
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["file"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=LOCK), owning(tmp_path / "out", "pack"):
        pass
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    with owning(tmp_path, "pack"):
        write_whole(tmp_path / "file", b"x")
    assert capsys.readouterr().err == (
        f"{tmp_path}: found a file system without locks: make sure that no other process writes here\n"
    )


def test_two_writers_of_one_file_both_write_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write(b"first" * 1000)
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" * 1000
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_next_owner_removes_what_the_dead_left_and_nothing_that_is_being_written(tmp_path: Path) -> None:
    process = script(
        """
        with replacing(Path(sys.argv[1]) / "file") as file:
            file.write(b"half")
            file.flush()
            print("written", flush=True)
            sys.stdin.read()
        """,
        tmp_path,
    )
    process.stdout.readline()
    (tmp_path / ".folder.partial").mkdir()
    with owning(tmp_path, "pack"):
        assert len(list(tmp_path.glob(".file.*.partial"))) == 1
    process.kill()
    process.wait()
    assert len(list(tmp_path.glob(".file.*.partial"))) == 1
    with owning(tmp_path, "pack"):
        assert list(tmp_path.glob(".file.*.partial")) == []
    assert (tmp_path / ".folder.partial").is_dir()


def test_a_file_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def late(file: BinaryIO, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        remove_abandoned(tmp_path)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_whole(tmp_path / "table", b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("table", b"whole")]


def test_what_is_unfinished_elsewhere_is_not_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    (tmp_path / "out").mkdir()
    partial_of(tmp_path / "out" / "name").symlink_to(tmp_path / "elsewhere")
    remove_abandoned(tmp_path / "out")
    assert (tmp_path / "elsewhere").read_bytes() == b"x"
