"""Make: make the clips of all open requests, one task for each video, in workers that may hang or crash."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from socket import gethostname

from data_prep.books.ledger import Ends, Outcome
from data_prep.books.plan import Sources
from data_prep.books.work_folder import VIDEOS
from data_prep.choose.rules import is_taken
from data_prep.engine.local import Assignment
from data_prep.engine.stopwatch import Spent, total
from data_prep.fetch.acquire import Acquirer
from data_prep.preparation import Preparation
from data_prep.produce import Ended, Making, Stop, produce
from data_prep.report.progress import Advance
from videodiff.data.processes.pool import Lost


def make(preparation: Preparation) -> None:
    """Make the clips of all open requests; with `retry`, of the requests that failed."""
    if not preparation.makes:
        return
    settings, work, root = preparation.settings, preparation.work, preparation.root
    plan, ledger, retry, taken = preparation.plan, preparation.ledger, preparation.retries, preparation.rules.taken
    making = Making(work, root, settings.make, settings.fetch)
    Acquirer(work / VIDEOS, root, settings.fetch)  # makes the folder
    if settings.retry == "all":
        ledger.reopen()
    if taken:
        down = plan.sources(retry).only(lambda request: is_taken(request, taken))
        ledger.record(Outcome(request.id, "filtered", "takedown") for request in list(down))
    sources, counts = plan.sources(retry), so_far(ledger.ends())
    counts["failed"] -= sources.requests if retry else 0
    inputs = sources.requests + sum(counts.values())
    preparation.progress(Advance("make", inputs - sources.requests, inputs, counts=shown(counts)))
    how = settings.processes
    assigned = Assignment(partial(produce, making=making), sources, [work, root], how.workers, how.timeout)
    with closing(how.engine.run(assigned)) as batches:
        for answers in batches:
            ended, spent = read_answers(answers, sources)
            counts.update(outcome.status for outcome in ledger.record(ended, spent))
            made, read = spent.get("encode", Spent()), spent.get("fetch", Spent())
            counts.update(clips=made.items, read=read.bytes, written=made.bytes)
            done = sum(counts[status] for status in ("ok", "filtered", "failed"))
            preparation.progress(Advance("make", done, inputs, counts=shown(counts)))
    shutil.rmtree(work / VIDEOS)


def read_answers(
    answers: Sequence[tuple[int, Ended | Stop | Lost]], sources: Sources
) -> tuple[list[Outcome], dict[str, Spent]]:
    """Split the answers of workers into outcomes and time spent; OSError if one of them cannot write."""
    ended, parts = [], []
    for number, answer in answers:
        if isinstance(answer, Stop):
            there = "" if answer.host == gethostname() else f" on {answer.host}"
            line = f"{os.strerror(answer.errno)}{there}; run the same command again to continue"
            raise OSError(answer.errno, line, answer.path)
        if isinstance(answer, Lost):
            reason = answer.reason if answer.reason in ("timeout", "crashed") else "unexpected"
            # Requests of this video that ended earlier keep their outcome.
            ended += [Outcome(each.id, "failed", reason, True, answer.detail) for each in sources[number]]
        else:
            ended.append(answer[0])
            parts.append(answer[1])
    return ended, total(parts)


def so_far(ends: Ends) -> Counter:
    """Return how many inputs ended in each way."""
    failed = sum(count for kinds in ends.failed.values() for count in kinds.values())
    return Counter(ok=ends.ok, filtered=sum(ends.filtered.values()), failed=failed)


def shown(counts: Counter) -> dict[str, int]:
    """Return the counts that progress shows; an `ok` input counts as made: the rules judge it only later."""
    names = ("clips", "read", "written", "filtered", "failed")
    return {"made": counts["ok"]} | {name: counts[name] for name in names}
