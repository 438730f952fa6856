"""Progress and stopwatch: what a run says of itself while it goes on, and where its time went."""

from __future__ import annotations

import io
import os
import pty
import termios
import time

import pytest

from data_prep.books.ledger import Ledger
from data_prep.engine.stopwatch import Spent, Stopwatch
from data_prep.report.progress import Advance, Meter, counted, line, pace
from videodiff.report.units import rate_text, size_text, time_text

COUNTS = {"made": 390, "clips": 600, "read": 5 * 2**30, "written": 2**20, "filtered": 10, "failed": 12}


def test_a_line_says_how_far_how_fast_how_much_what_became_of_it_and_how_long_it_will_take():
    said = line(Advance("make", 412, 5000, counts=COUNTS), (2.0, "3.1 clips/s"), None)
    assert said == (
        "make    412 of 5,000 inputs (8 %), 3.1 clips/s, 5 GiB read, 1 MiB written, 390 made, 10 filtered, 12 failed, "
        "38 min left"
    )
    assert line(Advance("read", 9, None, "lines"), (3.0, "3 lines/s"), 3.0) == "read    9 lines, 3 lines/s, in 3.0 s"
    assert line(Advance("make", 0, 0), (0.0, "0 inputs/s"), None) == "make    0 of 0 inputs, 0 inputs/s"


def test_the_pace_is_that_of_the_clips_where_they_are_counted():
    before, now = Advance("make", 10, 50, counts={"clips": 100}), Advance("make", 20, 50, counts={"clips": 150})
    assert pace((5.0, before), (10.0, now)) == (2.0, "10 clips/s")
    before, now = Advance("pack", 0, None, "clips"), Advance("pack", 500, None, "clips")
    assert pace((5.0, before), (10.0, now)) == (100, "100 clips/s")


def test_a_log_gets_a_line_now_and_then_even_where_nothing_moves_and_one_at_the_end_of_each_phase():
    log = io.StringIO()
    with Meter(log, every=0.05) as meter:
        meter(Advance("read", 3))
        meter(Advance("make", 1, 4))
        time.sleep(0.3)
        meter(Advance("make", 4, 4))
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("read    3 inputs")
    assert len([text for text in lines if text.startswith("make    1 of 4")]) >= 2
    assert lines[-1].startswith("make    4 of 4 inputs (100 %)")
    assert "left" not in lines[-1]
    assert "\r" not in log.getvalue()


def test_a_terminal_gets_one_line_that_fits_and_is_written_anew():
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        termios.tcsetwinsize(leader, (24, 40))
        with Meter(terminal, every=0.02) as meter:
            meter(Advance("make", 1, 400, counts=COUNTS))
            time.sleep(0.2)
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(leader, 2**16)
        said = said.decode()
    updates = said.split("\r")[1:]
    assert len(updates) > 3
    assert said.count("\n") == 1
    assert all(len(update.replace("\x1b[K", "").rstrip()) <= 39 for update in updates)


def test_an_error_leaves_the_last_line_and_no_thread():
    log = io.StringIO()
    meter = Meter(log)

    def run() -> None:
        with meter:
            meter(Advance("make", 7, 9))
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        run()
    assert log.getvalue().startswith("make    7 of 9")
    assert not meter.thread.is_alive()


def test_items_are_told_as_they_pass():
    steps = []
    assert list(counted("abc", steps.append, "pack", "clips", 3)) == ["a", "b", "c"]
    assert steps == [Advance("pack", number, 3, "clips") for number in (1, 2, 3)]
    assert list(counted([], steps.append, "pack", "clips", 0)) == []
    assert steps[-1] == Advance("pack", 0, 0, "clips")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.96, "10 s"), (119, "119 s"), (120, "2 min"), (7199, "2 h 0 min"), (200000, "2 d 7 h")],
)
def test_durations_are_written_in_two_units(seconds, text):
    assert time_text(seconds) == text


def test_bytes_rates_and_counts_are_written_short():
    assert [size_text(n) for n in (0, 999, 1000, 123456, 5 * 2**40, 5 * 2**51)] == [
        "0 B",
        "999 B",
        "0.977 KiB",
        "121 KiB",
        "5 TiB",
        "10,240 TiB",
    ]
    assert [rate_text(rate) for rate in (0.0123, 3.14159, 31.4159, 9350.4)] == ["0.012", "3.1", "31.4", "9,350"]


def test_the_time_of_an_inner_operation_is_not_that_of_the_outer_one():
    watch = Stopwatch()
    with watch("decode"):
        time.sleep(0.02)
        with watch("encode"):
            time.sleep(0.06)
        watch.count("encode", 1, 500)
        first = watch.take()
        time.sleep(0.02)
    time.sleep(0.05)
    assert first["encode"][1:] == (1, 500)
    assert 0.06 <= first["encode"].seconds < 0.2
    assert 0.02 <= first["decode"].seconds < 0.06
    assert set(second := watch.take()) == {"decode"}
    assert 0.02 <= second["decode"].seconds < 0.05


def test_an_error_in_an_operation_ends_it():
    watch = Stopwatch()
    with pytest.raises(ValueError, match="x"), watch("fetch"):
        raise ValueError("x")
    assert watch.operation == ""


def test_the_ledger_adds_up_what_the_operations_took_and_forgets_on_request(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.record([], {"fetch": Spent(1.5, 1, 100)})
    ledger.spend({"fetch": Spent(0.5, 2, 50), "pack": Spent(3.0, 7, 9)})
    ledger.spend({"pack": Spent(1.0, 5, 8)}, anew=True)
    assert Ledger(ledger.path).spent() == {"fetch": Spent(2.0, 3, 150), "pack": Spent(1.0, 5, 8)}
