"""Engines: the same shards from the processes of one machine and from a Ray cluster, whatever is lost on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_tasks import act

from data_prep.engine.local import Local
from data_prep.engine.on_ray import OnRay
from data_prep.pool import Lost

ROOT = Path(__file__).parents[1]
ABSENT = "found no package ray, expected it for these tests: pip install 'videodiff[ray]'"


class Cluster:
    """A Ray cluster of raylets on this machine, each as if it were a machine of its own."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Raylets

        self.raylets, self.count = Raylets(), 1
        self.add(num_cpus=0)

    def add(self, **resources: float) -> object:
        # Ray replaces 127.0.0.1 by the address of the network; all others of 127/8 it leaves.
        self.count += 1
        how = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        return self.raylets.add_node(node_ip_address=f"127.0.0.{self.count}", **how, **resources)

    def kill(self, node: object) -> None:
        """Have a machine go down without a word."""
        self.raylets.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a cluster of a machine that leads, with no cores, and two that work."""
    if not has_ray():
        # A laptop may do without; the check of a change may not.
        assert "CI" not in os.environ, ABSENT
        pytest.skip(ABSENT)
    import ray

    # Its workers find the tasks of the tests, and nobody is told of them.
    places = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    here = Cluster()
    here.nodes = [here.add(num_cpus=1) for _ in range(2)]
    ray.init(here.raylets.address, _node_ip_address="127.0.0.2", log_to_driver=False, logging_level="ERROR")
    yield here
    ray.shutdown()
    here.raylets.shutdown()


def has_ray() -> bool:
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def answers_of(engine, tasks, folder, timeout=20.0, **how) -> list[list]:
    """Return the answers to each task."""
    found = [[] for _ in tasks]
    for batch in engine.run(act, tasks, [folder], how.pop("workers", None), timeout, **how):
        for number, answer in batch:
            found[number].append(answer)
    return found


LOST = {
    "hang": Lost("timeout", "took longer than 2 s and was killed"),
    "crash": Lost("crashed", f"the process ended with exit code {-signal.SIGSEGV}"),
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


def test_the_tasks_of_a_lost_machine_are_done_on_another_and_a_new_machine_joins(cluster, tmp_path):
    doomed = cluster.add(num_cpus=2)
    tasks = [("once", str(tmp_path / "first")), *[("sleep", 0.2)] * 60]
    found, killed = [[] for _ in tasks], False
    (tmp_path / "work").mkdir()
    for batch in OnRay(scratch=str(tmp_path / "scratch")).run(act, tasks, [tmp_path / "work"], None, 60.0):
        for number, answer in batch:
            found[number].append(answer)
        if not killed and (tmp_path / "first").exists():
            for node in [doomed, *cluster.nodes]:
                cluster.kill(node)
            cluster.nodes = [cluster.add(num_cpus=1) for _ in range(2)]
            killed = True
    assert killed
    assert [[kind for kind, _ in answers] for answers in found] == [[kind, "end"] for kind, _ in tasks]
    assert len({answers[1][1] for answers in found}) > 2
    assert list((tmp_path / "work").iterdir()) == []
