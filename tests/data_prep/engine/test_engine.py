"""Engines: the same shards from the processes of one machine and from a Ray cluster, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from data_prep.engine.local import Assignment, Local
from data_prep.engine.on_ray import WORKERS, Crew, OnRay, Share, Team, make_scratch, shares
from data_prep.fetch.hosts import FarHosts, Keeper
from tests.data_prep.test_pipeline import ENDS, dataset, fill, run, temporaries
from tests.material.tasks.engine import act, break_some
from tests.verbs.test_conf import composed
from videodiff.data.processes.pool import Lost

ROOT = Path(__file__).parents[3]
ABSENT = "found no package ray, expected it for these tests: pip install 'videodiff[ray]'"


class Cluster:
    """A Ray cluster of raylets on this machine, each as if it were a machine of its own."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Raylets

        self.raylets, self.count = Raylets(), 1

    def add(self, **resources: float) -> object:
        # Ray replaces 127.0.0.1 by the address of the network; all others of 127/8 it leaves.
        self.count += 1
        how = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        return self.raylets.add_node(node_ip_address=f"127.0.0.{self.count}", **how, **resources)

    def kill(self, process: int) -> None:
        """Have the machine of this process of a pool go down without a word."""
        foreman = parent_of(process)
        (node,) = [n for n in self.others if parent_of(foreman) == n.all_processes["raylet"][0].process.pid]
        self.raylets.remove_node(node, allow_graceful=False)


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a cluster of one machine that leads and has two GPUs, or says so, and two with a core each."""
    ray = found_ray()
    # Its workers find the tasks of the tests, and nobody is told of them.
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        # A lost machine is known after 6 s, not 15.
        "RAY_health_check_period_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    here = Cluster()
    here.add(num_cpus=0, num_gpus=2)
    here.others = [here.add(num_cpus=1) for _ in range(2)]
    ray.init(here.raylets.address, _node_ip_address="127.0.0.2", log_to_driver=False, logging_level="ERROR")
    yield here
    ray.shutdown()
    here.raylets.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def found_ray():
    """Return the module ray; a laptop may do without, the check of a change may not."""
    try:
        import ray
    except ModuleNotFoundError:
        assert "CI" not in os.environ, ABSENT
        pytest.skip(ABSENT)
    return ray


def answers_of(engine, tasks, folder, timeout=20.0, workers=None, **how) -> list[list]:
    """Return the answers to each task."""
    found = [[] for _ in tasks]
    for batch in engine.run(Assignment(act, tasks, [folder], workers, timeout, **how)):
        for number, answer in batch:
            found[number].append(answer)
    return found


LOST = {
    "hang": Lost("timeout", "took longer than 2 s and was killed"),
    "crash": Lost("crashed", "the process ended by SIGSEGV"),
    "raise": Lost("failed", "ValueError: no {such} frame"),
}


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_task_that_hangs_crashes_or_raises_is_lost_alone_and_what_it_said_before_is_not(engine, request, tmp_path):
    if engine == "ray":
        request.getfixturevalue("cluster")
    tasks = [("a", 0), ("hang", 0), ("b", 0), ("crash", 0), ("c", 0), ("raise", "no {such} frame"), ("d", 0)]
    found = answers_of(Local() if engine == "local" else OnRay(), tasks, tmp_path, timeout=2.0, workers=2)
    assert [answers[0][0] for answers in found] == [kind for kind, _ in tasks]
    assert {kind: answers[1] for (kind, _), answers in zip(tasks, found, strict=True) if kind in LOST} == LOST
    assert all(answers[1][0] == "end" for (kind, _), answers in zip(tasks, found, strict=True) if kind not in LOST)


def test_machines_have_no_more_processes_together_than_asked_for(cluster, tmp_path):
    found = answers_of(OnRay(), [("sleep", 0.2)] * 6, tmp_path, workers=1)
    assert len({answers[0][1] for answers in found}) == 1


def test_processes_with_gpus_have_one_each(cluster, tmp_path):
    found = answers_of(OnRay(), [("gpu", tmp_path)] * 4, tmp_path, timeout=120.0, gpus=1)
    assert {answers[1] for answers in found} == {("gpus", "0"), ("gpus", "1")}


class Breaking:
    """An engine whose decoders crash or hang over some videos."""

    def __init__(self, engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def run(self, work):
        function = partial(break_some, function=work.function, folder=self.folder)
        return self.engine.run(work._replace(function=function))


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> tuple[Path, Path, dict]:
    """Return a table, what the local engine makes of it where decoders crash and hang, and the summary."""
    root = tmp_path_factory.mktemp("broken")
    table = fill(root / "in")
    extra = []
    for name in ("crash", "hang", "doomed"):
        (root / f"in/{name}.mp4").write_bytes((root / "in/good1.mp4").read_bytes())
        extra += [{"video": f"{name}.mp4", "from": start, "to": start + 1} for start in (0, 1.5)]
    table.write_text(table.read_text() + "".join(json.dumps(line) + "\n" for line in extra))
    (root / "killed").touch()
    return table, root / "out", run(table, root / "out", engine=Breaking(Local(), root), timeout=5.0)


def test_a_crash_half_way_costs_only_what_was_not_made_yet(broken):
    _, out, summary = broken
    lost = {"crashed": {"retryable": 1}, "timeout": {"retryable": 1}}
    assert summary["failed"] == ENDS["failed"] | lost
    assert (summary["inputs"], summary["clips"]["made"]) == (ENDS["inputs"] + 6, 8 + 4)
    assert temporaries(out) == []


def test_a_cluster_that_loses_a_machine_makes_the_same_shards(cluster, broken, tmp_path):
    table, local, expected = broken
    killed = []

    def lose() -> None:
        while not (tmp_path / "doomed").exists() or not (process := (tmp_path / "doomed").read_text()):
            time.sleep(0.1)
        (tmp_path / "killed").touch()
        killed.append(cluster.kill(int(process)))

    thread = threading.Thread(target=lose)
    thread.start()
    engine = Breaking(OnRay(scratch=str(tmp_path / "scratch")), tmp_path)
    # A worker of Ray imports its libraries anew, within the time of its task: ten seconds on a busy machine.
    summary = run(table, tmp_path / "out", engine=engine, timeout=20.0, workers=None)
    thread.join()
    assert killed == [None]
    assert summary == expected
    assert dataset(tmp_path / "out") == dataset(local)
    assert temporaries(tmp_path / "out") == []


def test_a_machine_is_shared_out_by_cores_or_by_gpus():
    machine = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
    assert shares(machine, 0) == [Share(8, 0, 8)]
    assert shares(machine, 1) == [Share(0, 1, 1)] * 2
    assert shares(machine, 0.5) == [Share(0, 0.5, 1)] * 4
    assert shares(machine, 0.4) == [Share(0, 0.4, 1)] * 4, "no process has a part of each GPU"
    assert shares(machine, 2) == [Share(0, 2, 1)]
    assert shares({"CPU": 0.5}, 0) == shares({"CPU": 8.0}, 1) == []


def leader(error: Exception) -> tuple[Crew, list[str]]:
    """Return a crew whose tasks end with an error of Ray's, and the actors that it kills."""
    killed: list[str] = []

    def get(ref):
        raise error

    def kill(actor, no_restart):
        killed.append(actor)

    return Crew(SimpleNamespace(exceptions=found_ray().exceptions, get=get, kill=kill), (), None, 0.0), killed


def busy(node: str, actor: str) -> Team:
    """Return a foreman with a task."""
    team = Team((node, 0), actor, 1)
    team.ready, team.load = True, 1
    return team


def test_a_foreman_that_ray_kills_for_its_memory_counts_as_a_lost_machine():
    crew, killed = leader(found_ray().exceptions.OutOfMemoryError("1 worker was killed"))
    crew.teams = {("a", 0): (team := busy("a", "foreman"))}
    assert crew.take_answers(None, 7, team) == []
    assert (list(crew.waiting), killed, crew.teams, crew.refused) == ([7], ["foreman"], {}, {})
    for _ in range(2):
        found = crew.take_answers(None, 7, team)
    assert found == [(7, Lost("crashed", "3 machines were lost while they worked on it"))]


def test_late_answers_of_a_lost_foreman_are_not_those_of_the_one_in_its_place():
    crew, killed = leader(found_ray().exceptions.ActorDiedError())
    crew.teams = {("a", 0): (new := busy("a", "new"))}
    crew.take_answers(None, 7, busy("a", "old"))
    assert (list(crew.waiting), killed, crew.teams, new.load) == ([7], [], {("a", 0): new}, 1)


def test_a_machine_whose_foreman_fails_is_left_out_and_others_take_its_tasks(caplog):
    trace = "Traceback:\nRuntimeError: a worker ended before its first task: the process exited with 1"
    error = found_ray().exceptions.RayTaskError("do", trace, RuntimeError()).as_instanceof_cause()
    (crew, killed), one, other = leader(error), busy("a", "one"), busy("b", "other")
    crew.teams = {("a", 0): one, ("b", 0): other}
    assert crew.take_answers(None, 7, one) == []
    assert (list(crew.waiting), killed, crew.teams, list(crew.refused)) == ([7], ["one"], {("b", 0): other}, ["a"])
    line = "its foreman failed: RuntimeError: a worker ended before its first task: the process exited with 1"
    assert caplog.messages == [f"machine a of the Ray cluster is not used: {line}"]
    with pytest.raises(ValueError, match=f"^engine=ray: found no machine that can be used: {line}$"):
        crew.take_answers(None, 7, other)


def test_the_folders_of_killed_foremen_are_removed_and_those_of_others_stay(tmp_path):
    alive = make_scratch(tmp_path, "videodiff-x-")
    assert alive.stat().st_mode & 0o777 == 0o700
    (dead := tmp_path / "videodiff-x-dead").mkdir()
    (dead / WORKERS).touch()
    assert make_scratch(tmp_path, "videodiff-x-") != alive
    assert alive.exists()
    assert not dead.exists()


def test_what_others_put_in_the_temporary_folder_is_neither_followed_nor_touched(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / WORKERS).write_text("keep")
    (tmp_path / "videodiff-x-link").symlink_to(precious)
    (open_to_all := tmp_path / "videodiff-x-open").mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / WORKERS).write_text("keep")
    (linked := tmp_path / "videodiff-x-linked").mkdir()
    (linked / WORKERS).symlink_to(precious / WORKERS)
    (tmp_path / "begin.lock").symlink_to(precious / WORKERS)
    make_scratch(tmp_path, "videodiff-x-")
    assert [path.read_text() for path in (precious / WORKERS, open_to_all / WORKERS)] == ["keep", "keep"]
    assert linked.is_dir()


def test_the_machines_of_a_cluster_share_the_pace_of_a_host_and_its_pauses():
    with Keeper("127.0.0.1") as keeper:
        start = time.monotonic()
        threads = [threading.Thread(target=ask, args=(keeper.address,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start >= 11 / 20 - 0.01
        hosts, start = FarHosts(keeper.address, rate=1000), time.monotonic()
        hosts.pause("slow", 0.5)
        hosts.wait("quick")
        assert time.monotonic() - start < 0.4
        hosts.wait("slow")
        assert time.monotonic() - start >= 0.5


def ask(address: str) -> None:
    for _ in range(6):
        FarHosts(address, rate=20).wait("example.org:80")


def test_without_ray_the_command_says_how_to_install_it(tmp_path):
    (tmp_path / "footage").mkdir()
    (tmp_path / "footage/a.mp4").touch()
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')")
    command = [sys.executable, "-m", "videodiff", "prep", f"source={tmp_path}/footage", f"out={tmp_path}/out"]
    places = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    how = {"capture_output": True, "text": True, "env": {**os.environ, "PYTHONPATH": places}}
    done = subprocess.run([*command, "engine=ray"], **how, check=False)
    line = "videodiff prep: error: found no package ray, expected it: pip install 'videodiff[ray]'\n"
    assert (done.returncode, done.stderr.endswith(line)) == (1, True), done.stderr


def test_the_job_for_kubernetes_is_a_command_that_composes():
    job = yaml.safe_load((ROOT / "launch/kubernetes/prep.yaml").read_text())["spec"]
    program, verb, *overrides = job["entrypoint"].split()
    cfg = composed(verb, overrides)
    assert (program, cfg.engine._target_) == ("videodiff", "data_prep.engine.on_ray.OnRay")
    pods = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (pod["template"]["spec"] for pod in pods):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert cfg.out.startswith(mounts["data"])


def test_an_address_without_a_cluster_is_told(tmp_path):
    with pytest.raises(ValueError, match="found ray://here:1, expected host:port or auto"):
        OnRay("ray://here:1")
