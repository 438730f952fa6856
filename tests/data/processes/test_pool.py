import os
import signal
import sys
import time

import pytest

from tests.material import warm
from videodiff.data.processes.pool import Lost, run_all, run_ordered


def act(task):
    """Do what the task says, as a decoder might."""
    kind, value = task
    if kind == "sleep":
        time.sleep(value)
    elif kind == "raise":
        raise ValueError(value)
    elif kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while True:
            time.sleep(60)
    return kind, os.getpid()


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers):
    tasks = [("sleep", 0.1 * (number % 3 == 0)) for number in range(12)] + [(str(number), None) for number in range(60)]
    results = list(run_ordered(act, tasks, workers, timeout=20))
    assert [kind for kind, _ in results] == [kind for kind, _ in tasks]
    assert os.getpid() not in {pid for _, pid in results}


def test_a_task_that_hangs_crashes_or_raises_is_lost_alone():
    tasks = [("a", 0), ("hang", 0), ("b", 0), ("crash", 0), ("c", 0), ("raise", "no {such} frame"), ("d", 0)]
    start = time.monotonic()
    results = list(run_ordered(act, tasks, 2, timeout=1.0))
    lost = {task[0]: result for task, result in zip(tasks, results, strict=True) if isinstance(result, Lost)}
    assert lost == {
        "hang": Lost("timeout", "took longer than 1 s and was killed"),
        "crash": Lost("crashed", "the process ended by SIGSEGV"),
        "raise": Lost("failed", "ValueError: no {such} frame"),
    }
    assert [result[0] for result in results if not isinstance(result, Lost)] == ["a", "b", "c", "d"]
    assert time.monotonic() - start < 30


def test_a_process_that_hangs_is_killed_and_not_left_behind():
    (lost, (_, pid)) = run_ordered(act, [("hang", 0), ("a", 0)], 1, timeout=0.5)
    assert lost.reason == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_leaving_early_ends_the_processes():
    results = run_ordered(act, [("a", 0), *[("hang", 0)] * 5], 1, timeout=60)
    _, pid = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_results_do_not_run_far_ahead_of_the_slowest_task():
    tasks, started = [("sleep", 1.0), *[("a", n) for n in range(100)]], []

    class Watched(list):
        def __getitem__(self, number):
            started.append(number)
            return super().__getitem__(number)

    next(run_ordered(act, Watched(tasks), 2, timeout=20))
    assert max(started) < 32


def test_no_tasks_start_no_process():
    assert list(run_ordered(act, [], 4, timeout=1)) == []


def test_the_first_error_of_a_task_is_raised():
    results = run_all(act, [("a", 0), ("raise", "no {such} frame"), ("hang", 0)], 2)
    assert next(results)[0] == "a"
    with pytest.raises(ValueError, match=r"no \{such\} frame"):
        next(results)
    with pytest.raises(ChildProcessError, match=r"'crash', 0.: the process ended by SIGSEGV: memory may have"):
        list(run_all(act, [("crash", 0)], 1))


def test_no_worker_of_a_killed_verb_stays(tmp_path):
    words = ["simulate", "world=bouncing", "size=32", "out=more", "clips=5000", "workers=2"]
    # The workers have to be its own processes.
    environment = {**os.environ, warm.CHILDREN: "no"}
    process = warm.start([sys.executable, "-m", "videodiff", *words], cwd=tmp_path, env=environment)
    while process.poll() is None and not list(tmp_path.glob(".more.partial/clips/*.txt")):
        time.sleep(0.02)
    process.kill()
    # They hold the other end of the pipe.
    process.communicate(timeout=60)
