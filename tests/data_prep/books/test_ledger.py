"""The ledger: every input ends once, counts sum up at any moment, and what was noted survives a kill."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.books.ledger import Ends, Ledger, Outcome
from data_prep.books.request import BadInput, ClipRequest, Place
from data_prep.engine.stopwatch import Spent

INPUTS = 300
# It notes a group for every letter that it is sent, and all the rest once nobody sends any more.
WORKER = """
import random, sys
from data_prep.books.ledger import Ledger
from tests.data_prep.books.test_ledger import ending, inputs
ledger, group = Ledger(sys.argv[1]), []
for request in ledger.admit(inputs(), batch=40):
    group.append(ending(request.id))
    if random.random() < 0.3:
        sys.stdin.read(1)
        ledger.record(group)
        print(*(outcome.id for outcome in group), flush=True)
        group = []
ledger.record(group)
"""


def request(number: int, line: int | None = None) -> ClipRequest:
    return ClipRequest(Place("list.jsonl", number + 1 if line is None else line), f"{number}.mp4")


def inputs() -> list[ClipRequest | BadInput]:
    """Return requests, of which every seventh is bad and every eleventh has come before."""
    items: list[ClipRequest | BadInput] = []
    for number in range(INPUTS):
        if number % 7 == 3:
            items.append(BadInput(Place("list.jsonl", number + 1), "malformed-line", "found no JSON"))
        else:
            items.append(request(1 if number % 11 == 5 else number, number + 1))
    return items


def ending(id: str) -> Outcome:
    kinds = [
        ("ok", "", False),
        ("filtered", "static", False),
        ("failed", "http-404", False),
        ("failed", "timeout", True),
    ]
    return Outcome(id, *random.Random(id).choice(kinds))


def total(ends: Ends) -> int:
    failed = sum(count for kinds in ends.failed.values() for count in kinds.values())
    return ends.ok + sum(ends.filtered.values()) + failed + ends.open


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "run" / "ledger.sqlite")


def test_an_input_is_open_until_it_ends(ledger: Ledger) -> None:
    a, b, c, d = (request(number) for number in range(4))
    assert list(ledger.admit([a, b, c, d])) == [a, b, c, d]
    ledger.record([Outcome(a.id, "ok"), Outcome(b.id, "filtered", "static"), Outcome(c.id, "failed", "timeout", True)])
    assert ledger.ends() == Ends(inputs=4, ok=1, filtered={"static": 1}, failed={"timeout": {"retryable": 1}}, open=1)
    assert list(ledger.admit([a, b, c, d])) == [a, b, c, d], "what is said of them may have changed"


def test_a_bad_input_ends_as_it_is_entered_and_rows_of_one_id_are_one_input(ledger: Ledger) -> None:
    bad = BadInput(Place("list.jsonl", 2), "malformed-line", "found no JSON")
    items = [request(0), bad, request(0, line=3)]
    for _ in range(2):
        assert list(ledger.admit(items)) == [request(0), request(0, line=3)]
        ends = ledger.ends()
        assert (ends.inputs, ends.open) == (2, 1)
        assert (ends.filtered, ends.failed) == ({}, {"malformed-line": {"permanent": 1}})
    assert [(row.place, row.detail) for row in ledger.ended()] == [("list.jsonl:2", "found no JSON")]


def test_a_bad_line_is_forgotten_once_its_file_has_it_no_more(ledger: Ledger) -> None:
    lines = [BadInput(Place(file, 2), "malformed-line", "found no JSON") for file in ("a.csv", "b.csv")]
    list(ledger.admit([request(0), *lines]))
    assert ledger.ends().failed == {"malformed-line": {"permanent": 2}}
    # Moved by a line, then mended, in a file that is read again; the other one is not.
    moved = BadInput(Place("a.csv", 5), "malformed-line", "found no JSON")
    list(ledger.admit([moved]))
    assert sorted(row.place for row in ledger.ended()) == ["a.csv:5", "b.csv:2"]
    worse = BadInput(Place("a.csv", 5), "bad-time", "found soon")
    list(ledger.admit([worse]))
    assert ledger.ends().failed == {"bad-time": {"permanent": 1}, "malformed-line": {"permanent": 1}}
    list(ledger.admit([ClipRequest(Place("a.csv", 5), "mended.mp4")]))
    assert [row.place for row in ledger.ended()] == ["b.csv:2"]
    assert ledger.ends().inputs == 3
    # A reading that was broken off forgets nothing.
    next(ledger.admit(iter([ClipRequest(Place("b.csv", 2), "mended.mp4")])))
    assert [row.place for row in ledger.ended()] == ["b.csv:2"]


def test_a_file_whose_name_is_not_unicode_is_noted_and_forgotten_as_any_other(ledger: Ledger) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    list(ledger.admit([BadInput(Place(name, 2), "malformed-line", "found no JSON")]))
    assert [row.place for row in ledger.ended()] == ["caf\\udce9.csv:2"]
    list(ledger.admit([ClipRequest(Place(name, 2), "mended.mp4")]))
    assert not list(ledger.ended())


def test_what_has_ended_stays_as_it_is(ledger: Ledger) -> None:
    (a,) = ledger.admit([request(0)])
    ledger.record([Outcome(a.id, "ok")])
    assert ledger.record([Outcome(a.id, "failed", "timeout", True)]) == []
    assert [row.status for row in ledger.ended()] == ["ok"]
    (b,) = ledger.admit([request(1)])
    known, new = Outcome(a.id, "ok"), Outcome(b.id, "filtered", "static")
    assert ledger.record([known, new]) == [new], "what is counted as progress"


def test_an_input_is_where_it_was_seen_last(ledger: Ledger) -> None:
    (a,) = ledger.admit([request(0, line=3)])
    ledger.record([Outcome(a.id, "ok")])
    list(ledger.admit([request(0, line=5)]))
    assert [row.place for row in ledger.ended()] == ["list.jsonl:5"]


def test_the_cost_of_operations_adds_up_until_it_is_replaced(ledger: Ledger) -> None:
    ledger.spend({"pack": Spent(1.0, 2, 3), "fetch": Spent(4.0, 5, 6)})
    ledger.record([], {"pack": Spent(10.0, 20, 30)})
    assert ledger.spent() == {"fetch": Spent(4.0, 5, 6), "pack": Spent(11.0, 22, 33)}
    ledger.spend({"pack": Spent(7.0, 8, 9)}, anew=True)
    assert ledger.spent() == {"fetch": Spent(4.0, 5, 6), "pack": Spent(7.0, 8, 9)}


def test_only_what_failed_for_good_is_opened_again_and_no_bad_line(ledger: Ledger) -> None:
    requests = [request(number) for number in range(4)]
    list(ledger.admit([*requests, BadInput(Place("list.jsonl", 9), "malformed-line", "found no JSON")]))
    kinds = [("ok", ""), ("filtered", "static"), ("failed", "missing"), ("failed", "timeout", True)]
    ledger.record(Outcome(each.id, *kind) for each, kind in zip(requests, kinds, strict=True))
    ledger.reopen()
    failed = {"malformed-line": {"permanent": 1}, "missing": {"retryable": 1}, "timeout": {"retryable": 1}}
    assert ledger.ends() == Ends(5, 1, {"static": 1}, failed, 0)
    assert ledger.record([Outcome(requests[2].id, "ok", stamp=(9, 7))])
    assert [ledger.stamp(each.id) for each in requests[1:3]] == [None, (9, 7)]


def test_an_outcome_of_an_unknown_input_is_an_error_and_the_group_is_not_noted(ledger: Ledger) -> None:
    (a,) = ledger.admit([request(0)])
    with pytest.raises(KeyError, match="expected one of its inputs"):
        ledger.record([Outcome(a.id, "ok"), Outcome(request(1).id, "ok")])
    assert ledger.ends().open == 1


@pytest.mark.parametrize(
    "outcome", [("done",), ("ok", "", True), ("ok", "late"), ("filtered",), ("filtered", "static", True), ("failed",)]
)
def test_an_outcome_is_one_of_three(ledger: Ledger, outcome: tuple) -> None:
    (a,) = ledger.admit([request(0)])
    with pytest.raises(Exception, match="CHECK constraint failed"):
        ledger.record([Outcome(a.id, *outcome)])
    assert ledger.ends().open == 1


# Each step waits for the disk.
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from(["enter", "ok", "filtered", "failed", "again"])),
        max_size=12,
    )
)
def test_counts_sum_up_after_every_step(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")
    entered: set[int] = set()
    for number, step in steps:
        if step == "enter":
            list(ledger.admit([request(number)]))
            entered.add(number)
        elif number in entered:
            status = "failed" if step == "again" else step
            ledger.record([Outcome(request(number).id, status, "" if step == "ok" else "why", step == "again")])
        assert ledger.ends().inputs == len(entered) == total(ledger.ends())
    ledger.close()


def run_worker(path: Path, groups: int, delay: float | None) -> set[str]:
    """Let a worker note so many groups, kill it this long after it may begin the next; return what it said it noted."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path)],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if delay is None:
        out, _ = worker.communicate()
    else:
        worker.stdin.write("." * groups)
        worker.stdin.flush()
        lines = [worker.stdout.readline() for _ in range(groups)]
        worker.stdin.write(".")
        worker.stdin.flush()
        time.sleep(delay)
        worker.kill()
        out = "".join(lines) + worker.communicate()[0]
    assert worker.returncode == (0 if delay is None else -signal.SIGKILL)
    # The last line of a killed process may be cut.
    return {id for line in out.splitlines(keepends=True) if line.endswith("\n") for id in line.split()}


def test_after_random_kills_everything_noted_is_there_and_every_input_ends_once(tmp_path: Path) -> None:
    path, chance = tmp_path / "ledger.sqlite", random.Random(0)
    noted: set[str] = set()
    for _ in range(6):
        noted |= run_worker(path, chance.randint(0, 4), chance.random() * 0.006)
        ledger = Ledger(path)
        assert noted <= {row.id for row in ledger.ended()}
        assert total(ledger.ends()) == ledger.ends().inputs <= INPUTS
        assert ledger.ends().open > 0 or ledger.ends().inputs < INPUTS
        ledger.close()
    run_worker(path, 0, None)
    fresh, ledger = Ledger(tmp_path / "fresh.sqlite"), Ledger(path)
    fresh.record([ending(item.id) for item in fresh.admit(inputs())])
    assert ledger.ends() == fresh.ends()
    assert (ledger.ends().inputs, ledger.ends().open) == (len({item.id for item in inputs()}), 0)


def note(path: Path, numbers: range) -> None:
    ledger = Ledger(path)
    for number in numbers:
        ledger.record([Outcome(request(number).id, "ok")])


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    list(ledger.admit([request(number) for number in range(80)]))
    context = multiprocessing.get_context("spawn")
    arguments = [(ledger.path, range(start, start + 40)) for start in (0, 40)]
    processes = [context.Process(target=note, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert ledger.ends().ok == 80


def test_inputs_are_entered_as_they_stream(ledger: Ledger) -> None:
    seen = []
    stream = (seen.append(number) or request(number) for number in range(10**9))
    admitted = ledger.admit(stream, batch=10)
    assert [next(admitted) for _ in range(15)][-1] == request(14)
    assert len(seen) == 20


def test_outcomes_say_when_and_where(ledger: Ledger) -> None:
    (a,) = ledger.admit([request(0)])
    ledger.record([Outcome(a.id, "failed", "timeout", True, "found nothing within 30 s")])
    (row,) = ledger.ended()
    assert (row.id, row.retryable, row.host) == (a.id, True, os.uname().nodename)
    assert row.time > 1e9
