"""The optimizer's state on a disk: what is missing for it is one line, and each process has a folder of its own.

tests/cluster/test_nvme.py trains with it.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from tests.conftest import tiny
from videodiff.parallel.zero import nvme
from videodiff.parallel.zero.nvme import LOCK, PREFIX, Folder, check_disk, check_memory, load_kernels


def test_the_folder_of_a_dead_process_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from videodiff.parallel.zero.nvme import Folder; "
        "(Folder(Path(sys.argv[1])).path / 'state.swp').write_bytes(b'x'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False, timeout=100)
    (dead,) = tmp_path.iterdir()
    living = Folder(tmp_path)
    assert not dead.exists()
    another = Folder(tmp_path)
    assert living.path.exists()
    assert living.path != another.path
    another.remove(), living.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_the_first_step(tmp_path: Path) -> None:
    own = Folder(tmp_path)
    assert own.lack_of_room(1, 2) is None
    line = str(own.lack_of_room(10**15, 2))
    assert line.startswith("strategy.nvme: found ")
    assert f"GiB free in {tmp_path} of " in line
    # Twenty bytes a weight, for both processes.
    assert f"expected at least {20 * 10**15 * 2 / 2**30:,.2f} for the state of 2 processes; make room" in line


def without_direct(path: object, flags: int, *rest: object) -> int:
    if flags & os.O_DIRECT:
        raise OSError(22, "Invalid argument")
    return OPEN(path, flags, *rest)


OPEN = os.open


def test_a_file_system_that_takes_no_direct_writes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", without_direct)
    with pytest.raises(ValueError, match=r"strategy\.nvme: found .*, whose file system has no direct input and output"):
        check_disk(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_memory_that_may_not_be_locked_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvme, "may_lock_all", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 * 2**20, 8 * 2**20))
    with pytest.raises(ValueError, match=r"strategy\.nvme: found a limit of 8 MiB of locked memory, expected none"):
        check_memory()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    check_memory()


def test_a_machine_without_the_library_or_what_compiles_is_told_which_package(
    call: Callable[..., tuple[int, str, str]],
    world_dataset: Path,
    cwd: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["train", *tiny(world_dataset), "strategy=zero3_offload", f"strategy.nvme={cwd}"]
    with monkeypatch.context() as patched:
        patched.setattr(nvme, "LIBRARY", "libaio-of-nobody.so.1")
        status, _, err = call(*words)
        assert status == 1
        (line,) = err.splitlines()
        assert line.startswith("videodiff train: error: strategy.nvme: found no libaio-of-nobody.so.1, expected it; ")
        assert "install libaio1" in line
    monkeypatch.setattr(nvme.ctypes, "CDLL", lambda name, mode: None)
    for program, package in (("g++", "g++"), ("ninja", "ninja-build")):
        with monkeypatch.context() as patched:
            patched.setattr(nvme.shutil, "which", lambda name, program=program: None if name == program else name)
            with pytest.raises(ValueError, match=rf"found no {re.escape(program)}, .* install {re.escape(package)}$"):
                load_kernels()
    builder = "deepspeed.ops.op_builder.AsyncIOBuilder"
    monkeypatch.setattr(f"{builder}.is_compatible", lambda self, verbose=False: False)
    with pytest.raises(ValueError, match=r"found no headers of libaio, .* install libaio-dev"):
        load_kernels()
    monkeypatch.setattr(f"{builder}.is_compatible", lambda self, verbose=False: True)

    def fails(self: object, verbose: bool = False) -> None:
        raise RuntimeError("Error building extension\n'async_io'")

    monkeypatch.setattr(f"{builder}.load", fails)
    with pytest.raises(
        ValueError, match=r"kernels of DeepSpeed for disks \(Error building extension 'async_io'\), exp"
    ):
        load_kernels()
    assert not list(cwd.glob(f"{PREFIX}*/{LOCK}"))
