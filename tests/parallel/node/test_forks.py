"""Ranks that are forked before the imports: they wait in silence, go on as told, and end with the first one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from tests.conftest import finish, start, tiny
from videodiff import cli
from videodiff.machine import cores
from videodiff.parallel.launcher import first_failure
from videodiff.parallel.node import forks
from videodiff.parallel.node.forks import Fork
from videodiff.parallel.node.parent import is_gone

ROOT = Path(__file__).parents[3]
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", forks.THREADS)
# A first rank and two others, which import a module that says so; what each of them writes is a line of JSON.
BEGIN = """
import json, os, sys, time
from pathlib import Path
from videodiff.parallel.node import forks
Path("slow.py").write_text("import os; open(f'imported_{os.environ[\\"LOCAL_RANK\\"]}', 'w')")
sys.path.insert(0, "")
forks.fork_ranks(3, "slow")
if "LOCAL_RANK" in os.environ:
    Path(f"went_{os.environ['LOCAL_RANK']}").write_text(json.dumps(dict(os.environ)))
    sys.exit(int(os.environ["LOCAL_RANK"]) + 4)
print(json.dumps([rank.pid for rank in forks.WAITING]), flush=True)
while not all(Path(f"imported_{rank}").exists() for rank in (1, 2)):
    time.sleep(0.01)
print("imported", flush=True)
"""


def first_rank(folder: Path, rest: str) -> subprocess.Popen[str]:
    """Start a first rank of three, which forks the others and then does the rest."""
    return python(folder, BEGIN + rest)


def python(folder: Path, code: str) -> subprocess.Popen[str]:
    """Start a process without the variables of a launcher, whose output waits until it is flushed."""
    left_out = (*LAUNCHERS, "PYTHONUNBUFFERED")
    outer = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        **{"cwd": folder, "env": {**outer, "PYTHONPATH": str(ROOT)}},
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
    )


def ended(pid: int, seconds: float = 20) -> bool:
    """Return whether a process ends in time."""
    end = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return is_gone(pid)


def test_ranks_import_at_once_and_go_on_with_the_environment_they_are_sent(tmp_path: Path) -> None:
    rest = """
ranks = forks.take(2)
for number, rank in enumerate(ranks, 1):
    assert rank.poll() is None and not Path(f"went_{number}").exists()
    rank.go_on({"LOCAL_RANK": str(number), "MASTER_PORT": "4711", "odd": "a\\n\\u00e9"})
while None in [rank.poll() for rank in ranks]:
    time.sleep(0.01)
print([rank.poll() for rank in ranks], forks.WAITING)
"""
    out, _ = first_rank(tmp_path, rest).communicate(timeout=60)
    assert out.splitlines()[1:] == ["imported", "[5, 6] []"], out
    for rank in ("1", "2"):
        environment = json.loads((tmp_path / f"went_{rank}").read_text())
        assert environment == {"LOCAL_RANK": rank, "MASTER_PORT": "4711", "odd": "a\né"}


# What waits to be printed, an import that fails, and what a rank has when it goes on.
FAILING = """
import json, os, signal, sys, time
from pathlib import Path
from videodiff.parallel.node import forks
# A shell starts a job in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("begun")
had = "open(f'had_{os.environ[\\"LOCAL_RANK\\"]}', 'w').write(os.environ[\\"THREADS\\"])"
Path("fails.py").write_text(f"import os; {had}; 1 / 0")
sys.path.insert(0, "")
forks.fork_ranks(3, "fails")
if "LOCAL_RANK" in os.environ:
    here = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    Path(f"went_{os.environ['LOCAL_RANK']}").write_text(json.dumps([here, len(forks.WAITING)]))
    sys.exit()
ranks = forks.take(2)
for number, rank in enumerate(ranks, 1):
    rank.go_on({"LOCAL_RANK": str(number)})
while None in [rank.poll() for rank in ranks]:
    time.sleep(0.01)
print([rank.poll() for rank in ranks])
""".replace("THREADS", forks.THREADS)


def test_a_rank_whose_import_fails_goes_on_in_silence_as_a_process_of_its_own(tmp_path: Path) -> None:
    out, _ = python(tmp_path, FAILING).communicate(timeout=60)
    # The first rank meets the same error; what waited to be printed is printed once.
    assert out == "begun\n[0, 0]\n"
    for rank in ("1", "2"):
        assert json.loads((tmp_path / f"went_{rank}").read_text()) == [True, 0]
        assert (tmp_path / f"had_{rank}").read_text() == str(max(cores() // 3, 1))


def test_a_rank_whose_import_hangs_ends_with_the_first(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(1000)")
    code = "import sys, time; sys.path.insert(0, ''); from videodiff.parallel.node import forks\n"
    first = python(tmp_path, code + "forks.fork_ranks(2, 'hangs'); time.sleep(1000)")
    pid = int(first.stdout.readline())
    first.kill()
    first.wait()
    assert ended(pid)


@pytest.mark.parametrize("how", ["leaves", "is killed", "fails"])
def test_waiting_ranks_end_silently_with_the_first(tmp_path: Path, how: str) -> None:
    rest = {"leaves": "os._exit(0)", "is killed": "time.sleep(60)", "fails": "raise SystemExit('the one line')"}[how]
    first = first_rank(tmp_path, f"sys.stdin.readline()\n{rest}")
    pids = json.loads(first.stdout.readline())
    assert first.stdout.readline() == "imported\n"
    if how == "is killed":
        first.kill()
    out, _ = first.communicate("go\n", timeout=60)
    assert all(map(ended, pids))
    assert out == ("the one line\n" if how == "fails" else "")
    assert not list(tmp_path.glob("went_*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_the_group_is_left_to_the_first_rank(tmp_path: Path, number: int) -> None:
    rest = """
sys.stdin.readline()
ranks = forks.take(2)
assert [rank.poll() for rank in ranks] == [None, None]
ranks[0].go_on(os.environ | {"LOCAL_RANK": "1"})
while ranks[0].poll() is None:
    time.sleep(0.01)
print(ranks[0].poll())
"""
    first = first_rank(tmp_path, rest)
    pids = json.loads(first.stdout.readline())
    assert first.stdout.readline() == "imported\n"
    for pid in pids:
        os.kill(pid, number)
    out, _ = first.communicate("go\n", timeout=60)
    assert out == "5\n"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_ranks_of_another_number_than_the_launcher_wants_are_ended(tmp_path: Path, count: int) -> None:
    first = first_rank(tmp_path, f"print(forks.take({count}), flush=True)\nsys.stdin.readline()")
    pids = json.loads(first.stdout.readline())
    assert [first.stdout.readline() for _ in range(2)] == ["imported\n", "[]\n"]
    assert all(map(ended, pids)), "while the first rank goes on"
    assert first.poll() is None
    first.communicate("go\n", timeout=60)


def test_a_rank_that_dies_while_it_waits_is_named(tmp_path: Path) -> None:
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    rank = Fork(pid, write)
    assert first_failure([rank]) is None
    rank.kill()
    assert ended(pid)
    rank.go_on({"LOCAL_RANK": "1"})
    assert first_failure([rank]).told == f"rank 1 (process {pid}) ended by signal 9 (SIGKILL)"
    rank.kill()


@pytest.mark.parametrize(
    "env",
    [
        {"LOCAL_RANK": "0"},
        {"TORCHELASTIC_RUN_ID": "a"},
        {"SLURM_NTASKS": "2"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"MASTER_PORT": "port"},
    ],
    ids=lambda env: next(iter(env)),
)
def test_where_a_launcher_is_or_its_variables_are_wrong_nothing_is_forked(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    monkeypatch.setattr(forks, "sys", SimpleNamespace(platform="linux", modules={}))
    monkeypatch.setattr(forks, "threads", lambda: 1)
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    assert forks.is_safe()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert not forks.is_safe()


@pytest.mark.parametrize(
    ("platform", "modules", "threads"), [("darwin", {}, 1), ("linux", {"torch": 1}, 1), ("linux", {}, 2)]
)
def test_a_process_that_may_hang_when_forked_is_not_forked(
    monkeypatch: pytest.MonkeyPatch, platform: str, modules: dict[str, int], threads: int
) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(forks, "sys", SimpleNamespace(platform=platform, modules=modules))
    monkeypatch.setattr(forks, "threads", lambda: threads)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    forks.fork_ranks(2, "json")
    assert forks.WAITING == []


def test_every_thread_counts_not_only_those_of_python() -> None:
    code = "from videodiff.parallel.node.forks import threads; print(threads()); import threading, time\n"
    code += "threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); print(threads())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.split() == ["1", "2"]


@pytest.mark.parametrize(
    ("devices", "strategy", "mode", "count"),
    [
        (2, "ddp", RunMode.RUN, 2),
        ("3", "zero", RunMode.RUN, 3),
        ([0, 2], "fsdp2", RunMode.RUN, 2),
        (-1, "ddp", RunMode.RUN, 1),
        ("auto", "ddp", RunMode.RUN, 1),
        (2, "single", RunMode.RUN, 1),
        (2, "ddp", RunMode.MULTIRUN, 1),
    ],
)
def test_what_is_not_known_before_torch_is_imported_is_not_forked(
    monkeypatch: pytest.MonkeyPatch, devices: object, strategy: str, mode: RunMode, count: int
) -> None:
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(mode=mode))
    target = {"_target_": f"videodiff.parallel.strategy.{strategy}"}
    assert cli.ranks_of_node(OmegaConf.create({"trainer": {"devices": devices}, "strategy": target})) == count


# Begun without the server of the tests, whose processes have imported torch already.
def test_forked_ranks_train_what_new_processes_train(tmp_path: Path, world_dataset: Path) -> None:
    words = ["train", *tiny(world_dataset), "trainer.devices=2", "strategy=ddp", "trainer.max_steps=3"]
    words += ["+callbacks.said._target_=tests.parallel.odd_ranks.Said", "trainer.log_every_n_steps=1"]
    outer = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    command = [sys.executable, "-m", "videodiff", *words, "name=forked"]
    env = {**outer, "PYTHONPATH": str(ROOT), forks.THREADS: "1"}
    (tmp_path / "forked").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "forked", env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "new").mkdir()
    finish(start(*words, "name=new", cwd=tmp_path / "new"))
    said = {
        how: [json.loads((tmp_path / how / f"said_{rank}").read_text()) for rank in (0, 1)] for how in ("forked", "new")
    }
    losses = {how: [one["losses"] for one in ranks] for how, ranks in said.items()}
    assert losses["forked"] == losses["new"]
    assert [len(rank) for rank in losses["forked"]] == [3, 3]
    first, second = said["forked"]
    assert first["command"] == second["command"]
    assert second["parent"] == first["pid"]
