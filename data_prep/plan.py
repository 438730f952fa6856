"""The plan: every request that was admitted, in the order of the inputs, on disk, so that memory holds one source's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

from data_prep.ledger import BATCH, index_order, key
from data_prep.request import Caption, ClipRequest, Part, Place

# A plan of before has no numbers by id.
TABLES = """
CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, id BLOB NOT NULL, video TEXT NOT NULL,
    request TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (id BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_video ON requests (video);
INSERT INTO numbers SELECT id, number FROM requests WHERE NOT EXISTS (SELECT * FROM numbers) ORDER BY id;
"""
UPSERT = """
INSERT INTO requests VALUES (?, ?, ?, ?)
    ON CONFLICT (number) DO UPDATE SET request = excluded.request WHERE request != excluded.request;
"""
TODO = """
DROP TABLE IF EXISTS temp.todo;
CREATE TEMP TABLE todo AS SELECT requests.number, video FROM requests LEFT JOIN ledger.ended USING (id) WHERE {wanted};
CREATE INDEX temp.todo_by_video ON todo (video, number);
"""


class Plan:
    """The requests of one work folder, in a file beside its ledger; they are only ever added, or told anew."""

    def __init__(self, path: str | Path, ledger: str | Path) -> None:
        self.base = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.base.executescript(
            f"PRAGMA synchronous = FULL; PRAGMA cache_size = -65536; BEGIN IMMEDIATE; {TABLES} COMMIT;"
        )
        self.base.execute("ATTACH ? AS ledger", (str(ledger),))

    def close(self) -> None:
        self.base.close()

    def __len__(self) -> int:
        return self.base.execute("SELECT count(*) FROM requests").fetchone()[0]

    def add(self, requests: Iterable[ClipRequest], batch: int = BATCH) -> None:
        """Append requests, and take over what has changed of those in the plan: captions, licence, notes."""
        requests = iter(requests)
        while group := list(islice(requests, batch)):
            self.base.execute("BEGIN")
            (first,) = self.base.execute("SELECT ifnull(max(number), 0) + 1 FROM requests").fetchone()
            rows = [(n, key(item.id), video_of(item), to_json(item)) for n, item in self._numbered(group, first)]
            self.base.executemany(UPSERT, rows)
            self.base.execute("COMMIT")

    def _numbered(self, group: Sequence[ClipRequest], first: int) -> list[tuple[int, ClipRequest]]:
        """Return requests with their numbers, in the order of these: `first` and more for those that are new."""
        found = []
        for place in index_order([request.id for request in group]):
            number, id = first + place, key(group[place].id)
            if not self.base.execute("INSERT OR IGNORE INTO numbers VALUES (?, ?)", (id, number)).rowcount:
                (number,) = self.base.execute("SELECT number FROM numbers WHERE id = ?", (id,)).fetchone()
            found.append((number, place))
        return [(number, group[place]) for number, place in sorted(found)]

    def made(self) -> Iterator[ClipRequest]:
        """Yield the requests that ended as ok, in order."""
        rows = self.base.execute(
            "SELECT request FROM requests JOIN ledger.ended USING (id) WHERE status = 'ok' ORDER BY requests.number"
        )
        return (from_json(text) for (text,) in rows)

    def origins(self) -> set[str]:
        """Return who wrote the captions of the requests."""
        rows = self.base.execute("SELECT DISTINCT value ->> 1 FROM requests, json_each(request, '$.captions')")
        return {origin for (origin,) in rows}

    def find(self, id: str) -> ClipRequest:
        """Return the request of this id."""
        asked = "SELECT request FROM requests JOIN numbers USING (number) WHERE numbers.id = ?"
        rows = self.base.execute(asked, (key(id),))
        return from_json(rows.fetchone()[0])

    def sources(self, retry: bool = False) -> Sources:
        """Return the requests that have not ended, or with `retry` those that failed and may be tried again."""
        self.base.executescript(TODO.format(wanted="retryable = 1" if retry else "status IS NULL"))
        return Sources(self.base)


class Sources(Sequence):
    """A sequence of lists: the requests of one video each, as two processes must not fetch one video at once."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self.base = base
        rows = base.execute("SELECT min(number) FROM temp.todo GROUP BY video ORDER BY 1")
        self.firsts = [first for (first,) in rows]
        (self.requests,) = base.execute("SELECT count(*) FROM temp.todo").fetchone()

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, index: int) -> list[ClipRequest]:
        rows = self.base.execute(
            "SELECT request FROM temp.todo JOIN requests USING (number) WHERE todo.video = "
            "(SELECT video FROM requests WHERE number = ?) ORDER BY number",
            (self.firsts[index],),
        )
        return [from_json(text) for (text,) in rows.fetchall()]

    def only(self, wanted: Callable[[ClipRequest], bool]) -> Iterator[ClipRequest]:
        """Yield the requests that are wanted."""
        return (request for requests in self for request in requests if wanted(request))


def video_of(request: ClipRequest) -> str:
    """Return what is fetched as one: a source, or a member of an archive."""
    return json.dumps([request.source, request.part and request.part.name])


def to_json(request: ClipRequest) -> str:
    """Return a request as text: JSON, also for SQLite, so that notes that are no numbers become null."""
    span = request.span and list(map(str, request.span))
    text = json.dumps({**vars(request), "span": span, "id": None})
    strange = "NaN" in text or "Infinity" in text
    return json.dumps(json.loads(text, parse_constant=lambda _: None)) if strange else text


def from_json(text: str) -> ClipRequest:
    """Return the request that `to_json` made this of."""
    fields = {name: value for name, value in json.loads(text).items() if name != "id"}
    fields["place"] = Place(*fields["place"])
    fields["span"] = fields["span"] and tuple(map(Fraction, fields["span"]))
    fields["captions"] = tuple(Caption(*caption) for caption in fields["captions"])
    fields["part"] = fields["part"] and Part(*fields["part"])
    return ClipRequest(**fields)
