"""Make: what workers answer becomes outcomes, and no request of a lost or half-made video is left without one."""

from __future__ import annotations

import errno
import os
import re
from socket import gethostname

import pytest

from data_prep.books.ledger import Ends, Outcome
from data_prep.books.request import ClipRequest, Place
from data_prep.engine.stopwatch import Spent
from data_prep.make import read_answers, shown, so_far
from data_prep.produce import Stop
from videodiff.data.processes.pool import Lost

SOURCES = [[ClipRequest(Place("list.csv", line), f"{name}.mp4") for line in (1, 2)] for name in "abc"]
IDS = [[request.id for request in requests] for requests in SOURCES]


@pytest.mark.parametrize(
    ("said", "reason"), [("timeout", "timeout"), ("crashed", "crashed"), ("ValueError", "unexpected")]
)
def test_all_requests_of_a_lost_video_fail_and_may_be_tried_again(said: str, reason: str) -> None:
    answers = [(2, Lost(said, "why")), (0, (Outcome(IDS[0][0], "ok"), {"fetch": Spent(1.0, 1, 5)}))]
    answers.append((1, (Outcome(IDS[1][1], "failed", "missing"), {"fetch": Spent(2.0, 1, 6)})))
    ended, spent = read_answers(answers, SOURCES)
    lost = [Outcome(id, "failed", reason, True, "why") for id in IDS[2]]
    assert ended == [*lost, Outcome(IDS[0][0], "ok"), Outcome(IDS[1][1], "failed", "missing")]
    assert spent == {"fetch": Spent(3.0, 2, 11)}


@pytest.mark.parametrize(("host", "there"), [(gethostname(), ""), ("elsewhere", " on elsewhere")])
def test_a_worker_that_cannot_write_ends_the_call_with_its_place(host: str, there: str) -> None:
    answers = [(0, (Outcome(IDS[0][0], "ok"), {})), (1, Stop(errno.EROFS, "/work", host))]
    line = f"{os.strerror(errno.EROFS)}{there}; run the same command again to continue: '/work'"
    with pytest.raises(OSError, match=re.escape(line)) as caught:
        read_answers(answers, SOURCES)
    assert caught.value.errno == errno.EROFS


def test_progress_counts_each_input_by_how_it_ended() -> None:
    failed = {"missing": {"permanent": 2}, "timeout": {"permanent": 1, "retryable": 4}}
    counts = so_far(Ends(30, 5, {"takedown": 2, "no scene": 1}, failed, 15))
    assert counts == {"ok": 5, "filtered": 3, "failed": 7}
    counts.update(clips=9)
    assert shown(counts) == {"made": 5, "clips": 9, "read": 0, "written": 0, "filtered": 3, "failed": 7}
