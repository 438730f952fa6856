"""The ledger: what became of every input, so that counts sum up at any moment, also after a kill.

SQLite in the standard library gives what this needs in the least code: a transaction is there whole or not at all, also
after power loss (write-ahead log, fsync at each commit). Only the process that leads a run writes, so that its machine
alone has the file open, wherever the workers are. Outcomes are only ever added, but for those of lines that could not
be used and are gone.
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
from typing import NamedTuple

from data_prep.books.private import private_file
from data_prep.books.request import BadInput, ClipRequest, admitted
from data_prep.engine.stopwatch import Spent

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
CREATE TABLE IF NOT EXISTS bad (id BLOB PRIMARY KEY, file TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stamps (id BLOB PRIMARY KEY, size INTEGER NOT NULL, time INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stages (stage TEXT PRIMARY KEY, seconds REAL NOT NULL, items INTEGER NOT NULL,
    bytes INTEGER NOT NULL);
"""

# Inputs that are entered at once.
BATCH = 50_000


@dataclass(frozen=True)
class Outcome:
    """How an input ended, and where: `ok`, `filtered` for a reason, or `failed` with a class, maybe worth a retry.

    stamp: size and time of the local file that was worked on, None for other sources.
    """

    id: str
    status: str
    reason: str = ""
    retryable: bool = False
    detail: str = ""
    host: str = field(default_factory=socket.gethostname, compare=False)
    stamp: tuple[int, int] | None = field(default=None, compare=False)


class EndedInput(NamedTuple):
    """An input that ended: its place in the metadata, how it ended (see `Outcome`), on which host, and when."""

    id: str
    place: str
    status: str
    reason: str
    retryable: bool
    detail: str
    host: str
    time: float


@dataclass(frozen=True)
class Ends:
    """How many inputs there are and how they ended: `inputs` is the sum of the others.

    filtered: by reason; failed: by class, and there `retryable` or `permanent`; open: not ended yet.
    """

    inputs: int = 0
    ok: int = 0
    filtered: dict[str, int] = field(default_factory=dict)
    failed: dict[str, dict[str, int]] = field(default_factory=dict)
    open: int = 0


class Ledger:
    """The ledger of one run, in a file.

    Inputs are told apart by their id: what several lines, files or calls say of one id is said of one input. A line
    that cannot be used is an input until its file is read again and has none such.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(private_file(self.path), timeout=60, isolation_level=None)
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

        A bad input ends at once as failed. Secrets are taken off the sources: see `request.admitted`.
        """
        items = (admitted(item) if isinstance(item, ClipRequest) else item for item in items)
        # Lines that were bad before, and those of their files that are read now.
        before = {file for (file,) in self.base.execute("SELECT DISTINCT file FROM bad")}
        self.base.executescript("DROP TABLE IF EXISTS temp.found; CREATE TEMP TABLE found (id BLOB PRIMARY KEY);")
        read: set[str] = set()
        while group := list(islice(items, batch)):
            if before:
                # An index of captions gives only its bad lines; its name is the origin of the others.
                read |= before & {name for item in group for name in (item.place.name, item.origin)}
            with self._transaction():
                for number in index_order([item.id for item in group]):
                    self._enter(group[number])
            yield from (item for item in group if isinstance(item, ClipRequest))
        with self._transaction():
            for file in read:
                self._forget(file)

    def _enter(self, item: ClipRequest | BadInput) -> None:
        """Enter one input at the place where it was seen last."""
        id, place = key(item.id), str(item.place)
        new = self.base.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?)", (id, place)).rowcount
        if not new and self._place(item.id) != place:
            self.base.execute("UPDATE inputs SET place = ? WHERE id = ?", (place, id))
        if isinstance(item, BadInput):
            self.base.execute("INSERT OR REPLACE INTO bad VALUES (?, ?)", (id, item.origin or item.place.name))
            self.base.execute("INSERT OR IGNORE INTO temp.found VALUES (?)", (id,))
            last = self.base.execute("SELECT reason, detail FROM ended WHERE id = ?", (id,)).fetchone()
            if last != (item.reason, item.detail):
                self._note(Outcome(item.id, "failed", item.reason, detail=item.detail))

    def _forget(self, file: str) -> None:
        """Forget the bad lines of a file that has been read again and has them no more."""
        gone = "SELECT id FROM bad WHERE file = ? AND id NOT IN (SELECT id FROM temp.found)"
        for table in ("outcomes", "inputs"):
            self.base.execute(f"DELETE FROM {table} WHERE id IN ({gone})", (file,))
        self.base.execute("DELETE FROM bad WHERE file = ? AND id NOT IN (SELECT id FROM temp.found)", (file,))

    def record(self, outcomes: Iterable[Outcome], spent: Mapping[str, Spent] | None = None) -> list[Outcome]:
        """Note how inputs ended, all of them or, where one was never entered, none; on return this is on the disk.

        What has ended stays as it is: only a failure that may be retried is followed by another outcome. Those that
        are new are returned. `spent` are the figures of the operations since the last call.
        """
        with self._transaction():
            self._spend(spent or {})
            outcomes = list(outcomes)
            for outcome in outcomes:
                if self._place(outcome.id) is None:
                    raise KeyError(f"{self.path}: found an outcome of {outcome.id}, expected one of its inputs")
            return [outcome for outcome in outcomes if self._add(outcome)]

    def reopen(self) -> None:
        """Let all requests that failed for good be tried again: what they failed of may be mended."""
        with self._transaction():
            self.base.execute(
                "INSERT INTO outcomes (id, status, reason, retryable, detail, host, time) "
                "SELECT id, status, reason, 1, detail, host, time FROM ended "
                "WHERE status = 'failed' AND NOT retryable AND id NOT IN (SELECT id FROM bad)"
            )

    def spend(self, spent: Mapping[str, Spent], anew: bool = False) -> None:
        """Add to the figures of operations, or replace them with `anew`."""
        with self._transaction():
            if anew:
                self.base.executemany("DELETE FROM stages WHERE stage = ?", [(operation,) for operation in spent])
            self._spend(spent)

    def spent(self) -> dict[str, Spent]:
        """Return the figures of each operation, over all processes and calls except killed ones."""
        rows = self.base.execute("SELECT stage, seconds, items, bytes FROM stages ORDER BY stage")
        return {operation: Spent(*values) for operation, *values in rows}

    def ends(self) -> Ends:
        """Return how many inputs ended in each way."""
        with self._transaction("DEFERRED"):
            (inputs,) = self.base.execute("SELECT count(*) FROM inputs").fetchone()
            counts = self.base.execute(
                "SELECT status, reason, retryable, count(*) FROM ended GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
            ).fetchall()
        failed: dict[str, dict[str, int]] = {}
        for status, reason, retryable, count in counts:
            if status == "failed":
                failed.setdefault(reason, {})["retryable" if retryable else "permanent"] = count
        ok = sum(count for status, *_, count in counts if status == "ok")
        filtered = {reason: count for status, reason, _, count in counts if status == "filtered"}
        return Ends(inputs, ok, filtered, failed, inputs - sum(count for *_, count in counts))

    def ended(self) -> Iterator[EndedInput]:
        """Yield how each input ended."""
        rows = self.base.execute(
            "SELECT inputs.id, place, status, reason, retryable, detail, host, time FROM ended JOIN inputs USING (id)"
        )
        for id, place, status, reason, retryable, *rest in rows:
            yield EndedInput(str(uuid.UUID(bytes=id)), place, status, reason, bool(retryable), *rest)

    def stamp(self, id: str) -> tuple[int, int] | None:
        """Return size and time of the local file that an input ended with; None where none is known."""
        return self.base.execute("SELECT size, time FROM stamps WHERE id = ?", (key(id),)).fetchone()

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
        self._note(outcome)
        if outcome.stamp is not None:
            self.base.execute("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?)", (key(outcome.id), *outcome.stamp))
        return True

    def _note(self, outcome: Outcome) -> None:
        values = key(outcome.id), outcome.status, outcome.reason, outcome.retryable, outcome.detail, outcome.host
        self.base.execute(
            "INSERT INTO outcomes (id, status, reason, retryable, detail, host, time) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*values, time.time()),
        )

    def _spend(self, spent: Mapping[str, Spent]) -> None:
        self.base.executemany(
            "INSERT INTO stages VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds, "
            "items = items + excluded.items, bytes = bytes + excluded.bytes",
            [(operation, *values) for operation, values in spent.items()],
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
