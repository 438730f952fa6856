"""The ledger: what became of every input, so that counts sum up at any moment, also after a kill.

SQLite in the standard library gives what this needs in the least code: a transaction is there whole or not at all, also
after power loss (write-ahead log, fsync at each commit). Only the process that leads a run writes, so that its machine
alone has the file open, wherever the workers are. Rows are only ever added.
"""

from __future__ import annotations

import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.request import NAMESPACE, BadInput, ClipRequest
from data_prep.stopwatch import Spent

TABLES = """
CREATE TABLE IF NOT EXISTS inputs (id BLOB PRIMARY KEY, place TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
    number INTEGER PRIMARY KEY, id BLOB NOT NULL REFERENCES inputs, status TEXT NOT NULL, reason TEXT NOT NULL,
    retryable INTEGER NOT NULL, detail TEXT NOT NULL, host TEXT NOT NULL, time REAL NOT NULL,
    CHECK (status IN ('ok', 'filtered', 'failed')), CHECK ((status = 'ok') = (reason = '')),
    CHECK (status = 'failed' OR NOT retryable)
);
CREATE INDEX IF NOT EXISTS by_id ON outcomes (id);
CREATE VIEW IF NOT EXISTS ended AS SELECT * FROM outcomes
    WHERE number = (SELECT max(number) FROM outcomes AS later WHERE later.id = outcomes.id);
CREATE TABLE IF NOT EXISTS stages (stage TEXT PRIMARY KEY, seconds REAL NOT NULL, items INTEGER NOT NULL,
    bytes INTEGER NOT NULL);
"""

# Inputs that are entered at once.
BATCH = 50_000


@dataclass(frozen=True)
class Outcome:
    """How an input ended, and where: `ok`, `filtered` for a reason, or `failed` with a class, maybe worth a retry."""

    id: str
    status: str
    reason: str = ""
    retryable: bool = False
    detail: str = ""
    host: str = field(default_factory=socket.gethostname, compare=False)


class Ledger:
    """The ledger of one run, in a file.

    Inputs are told apart by their id, and two of the same id by their place: a ledger belongs to one list of inputs, to
    which lines may be appended.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        self.base.execute("PRAGMA journal_mode = WAL")
        self.base.execute("PRAGMA synchronous = FULL")
        self.base.execute("PRAGMA foreign_keys = ON")
        # Room for the upper levels of a hundred million ids; it is taken as it is needed.
        self.base.execute("PRAGMA cache_size = -65536")
        self.base.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")

    def close(self) -> None:
        self.base.close()

    def admit(self, items: Iterable[ClipRequest | BadInput], batch: int = BATCH) -> Iterator[ClipRequest]:
        """Enter inputs and yield the requests, those that have ended too: what is said of them may have changed.

        A bad input ends at once as failed, a second one of the same id as filtered.
        """
        items = iter(items)
        while group := list(islice(items, batch)):
            with self._transaction():
                taken = {number for number in index_order([item.id for item in group]) if self._enter(group[number])}
            yield from (item for number, item in enumerate(group) if number in taken)

    def _enter(self, item: ClipRequest | BadInput) -> bool:
        """Enter one input, and tell whether it is a request to be met."""
        place = str(item.place)
        new = self.base.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?)", (key(item.id), place)).rowcount
        if not new and self._place(item.id) != place:
            twin = str(uuid.uuid5(NAMESPACE, f"{item.id} {place}"))
            self.base.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?)", (key(twin), place))
            self._add(Outcome(twin, "filtered", "duplicate", detail=f"as {self._place(item.id)}"))
            return False
        if isinstance(item, BadInput):
            self._add(Outcome(item.id, "failed", item.reason, detail=item.detail))
            return False
        return True

    def record(self, outcomes: Iterable[Outcome], spent: Mapping[str, Spent] | None = None) -> list[Outcome]:
        """Note how inputs ended, all of them or, where one was never entered, none; on return this is on the disk.

        What has ended stays as it is: only a failure that may be retried is followed by another outcome. Those that
        are new are returned. `spent` is what the stages of the work took since they were last told of.
        """
        with self._transaction():
            self._spend(spent or {})
            outcomes = list(outcomes)
            for outcome in outcomes:
                if self._place(outcome.id) is None:
                    raise KeyError(f"{self.path}: found an outcome of {outcome.id}, expected one of its inputs")
            return [outcome for outcome in outcomes if self._add(outcome)]

    def spend(self, spent: Mapping[str, Spent], anew: bool = False) -> None:
        """Add to what the stages of the work took, or with `anew` replace what was known of these."""
        with self._transaction():
            if anew:
                self.base.executemany("DELETE FROM stages WHERE stage = ?", [(stage,) for stage in spent])
            self._spend(spent)

    def spent(self) -> dict[str, Spent]:
        """Return what each stage took, in all processes and calls together but for those that were killed."""
        rows = self.base.execute("SELECT stage, seconds, items, bytes FROM stages ORDER BY stage")
        return {stage: Spent(*values) for stage, *values in rows}

    def summary(self) -> dict[str, Any]:
        """Return `inputs`, `ok`, `filtered` by reason, `failed` by class and retryability, and `open`: not ended yet.

        `inputs` is always the sum of the others.
        """
        with self._transaction("DEFERRED"):
            (inputs,) = self.base.execute("SELECT count(*) FROM inputs").fetchone()
            counts = self.base.execute(
                "SELECT status, reason, retryable, count(*) FROM ended GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
            ).fetchall()
        failed: dict[str, dict[str, int]] = {}
        for status, reason, retryable, count in counts:
            if status == "failed":
                failed.setdefault(reason, {})["retryable" if retryable else "permanent"] = count
        return {
            "inputs": inputs,
            "ok": sum(count for status, *_, count in counts if status == "ok"),
            "filtered": {reason: count for status, reason, _, count in counts if status == "filtered"},
            "failed": failed,
            "open": inputs - sum(count for *_, count in counts),
        }

    def ended(self) -> Iterator[dict[str, Any]]:
        """Yield how each input ended: id, place, status, reason, retryable, detail, host, time."""
        rows = self.base.execute(
            "SELECT inputs.id, place, status, reason, retryable, detail, host, time FROM ended JOIN inputs USING (id)"
        )
        names = [column[0] for column in rows.description]
        for row in rows:
            yield dict(zip(names, row, strict=True)) | {"id": str(uuid.UUID(bytes=row[0])), "retryable": bool(row[4])}

    def _place(self, id: str) -> str | None:
        row = self.base.execute("SELECT place FROM inputs WHERE id = ?", (key(id),)).fetchone()
        return row and row[0]

    def _state(self, id: str) -> str:
        last = "SELECT retryable FROM outcomes WHERE id = ? ORDER BY number DESC LIMIT 1"
        row = self.base.execute(last, (key(id),)).fetchone()
        return "open" if row is None else "retryable" if row[0] else "ended"

    def _add(self, outcome: Outcome) -> bool:
        if self._state(outcome.id) == "ended":
            return False
        values = key(outcome.id), outcome.status, outcome.reason, outcome.retryable, outcome.detail, outcome.host
        self.base.execute(
            "INSERT INTO outcomes (id, status, reason, retryable, detail, host, time) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*values, time.time()),
        )
        return True

    def _spend(self, spent: Mapping[str, Spent]) -> None:
        self.base.executemany(
            "INSERT INTO stages VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds, "
            "items = items + excluded.items, bytes = bytes + excluded.bytes",
            [(stage, *values) for stage, values in spent.items()],
        )

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self.base.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            self.base.execute("ROLLBACK")
            raise
        self.base.execute("COMMIT")


def index_order(ids: Sequence[str]) -> list[int]:
    """Return the places of ids in the order of an index of them, which so is walked once for all of a batch.

    They are random: entered as they come, each would touch a page of its own, to be read and written for it alone.
    """
    return sorted(range(len(ids)), key=ids.__getitem__)


def key(id: str) -> bytes:
    """Return the 16 bytes of a UUID, half its text."""
    return bytes.fromhex(id.replace("-", ""))
