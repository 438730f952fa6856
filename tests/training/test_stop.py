"""A second signal ends a run at once, wherever the main thread is."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from videodiff.training.callbacks import stop


@pytest.fixture
def callback() -> Iterator[stop.StopGently]:
    """Return a callback that listens, as while training is on."""
    made = stop.StopGently()
    made.on_train_start(SimpleNamespace(is_global_zero=False, strategy=SimpleNamespace(launcher=None)), None)
    yield made
    made.teardown(None, None, "fit")


@pytest.fixture
def ended(callback: stop.StopGently, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the exit statuses that a stop asked for."""
    statuses: list[int] = []
    monkeypatch.setattr(stop, "end_now", lambda processes, status: statuses.append(status))
    return statuses


def filled(statuses: list[int]) -> bool:
    """Wait some seconds for a status."""
    end = time.monotonic() + 3
    while not statuses and time.monotonic() < end:
        time.sleep(0.01)
    return bool(statuses)


def test_two_signals_within_one_call_of_a_library_are_two(ended: list[int]) -> None:
    seen: list[bool] = []

    def press_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
        seen.append(filled(ended))

    pressing = threading.Thread(target=press_twice)
    pressing.start()
    # It holds no lock of the interpreter and does not return when a signal arrives, like a product of matrices.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 15_000_000)
    within = list(seen)
    pressing.join()
    assert within == [True], "the second signal was not seen within the call"
    assert ended == [128 + signal.SIGINT]


@pytest.mark.parametrize(("signals", "processes", "wanted"), [(2, 2, [130]), (1, 2, []), (1, 1, []), (0, 2, [])])
def test_the_loss_of_a_process_that_was_quicker_to_end_is_no_error(
    callback: stop.StopGently, ended: list[int], signals: int, processes: int, wanted: list[int]
) -> None:
    if signals:
        os.kill(os.getpid(), signal.SIGINT)
    end = time.monotonic() + 3
    while signals and not callback.asked and time.monotonic() < end:
        time.sleep(0.01)
    second = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    if signals == 2:
        second.start()
    begin = time.monotonic()
    callback.on_exception(SimpleNamespace(world_size=processes), None, RuntimeError("connection closed by peer"))
    # What ends the process must come before the error goes on.
    assert ended == wanted
    assert (time.monotonic() - begin > 0.2) == (signals > 0 and processes > 1)


def test_a_signal_that_a_forked_worker_gets_too_counts_once(ended: list[int]) -> None:
    ready, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b"x")
        time.sleep(0.5)
        os._exit(0)
    os.read(ready, 1)
    os.kill(worker, signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.waitpid(worker, 0)
    assert ended == []
    os.kill(os.getpid(), signal.SIGUSR1)
    assert filled(ended)
    assert ended == [128 + signal.SIGUSR1]
