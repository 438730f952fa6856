"""The plan: every request that was admitted, in the order of the inputs, on disk, so that memory holds one source's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.books.ledger import BATCH, index_order, key
from data_prep.books.private import private_file
from data_prep.books.reading import Reading
from data_prep.books.request import Caption, ClipRequest, Part, Place

# A plan of before has no numbers by id.
TABLES = """
CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, id BLOB NOT NULL, video TEXT NOT NULL,
    request TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (id BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_video ON requests (video);
INSERT INTO numbers SELECT id, number FROM requests WHERE NOT EXISTS (SELECT * FROM numbers) ORDER BY id;
"""
TODO = """
DROP TABLE IF EXISTS temp.todo;
CREATE TEMP TABLE todo AS SELECT requests.number, video FROM requests LEFT JOIN ledger.ended USING (id) WHERE {wanted};
CREATE INDEX temp.todo_by_video ON todo (video, number);
"""

# Fields that are not written down, and those that are only where there is something in them.
UNSAID, RARE = ("id", "origin", "omitted"), ("address", "mark", "followed")


class Plan:
    """The requests of one work folder, in a file beside its ledger; they are only ever added, or told anew."""

    def __init__(self, path: str | Path, ledger: str | Path) -> None:
        self.base = sqlite3.connect(private_file(path), timeout=60, isolation_level=None)
        self.base.executescript(
            f"PRAGMA synchronous = FULL; PRAGMA cache_size = -65536; BEGIN IMMEDIATE; {TABLES} COMMIT;"
        )
        self.base.execute("ATTACH ? AS ledger", (str(ledger),))

    def close(self) -> None:
        self.base.close()

    def __len__(self) -> int:
        return self.base.execute("SELECT count(*) FROM requests").fetchone()[0]

    def add(self, requests: Iterable[ClipRequest], batch: int = BATCH) -> Reading:
        """Take over what a reading of metadata says: append what is new, and update the rest.

        All rows of an id in one reading speak together, see `joined`; together they update what earlier readings said,
        see `revised`.
        """
        requests, reading, seen = iter(requests), Reading(), NumberSet()
        self.base.executescript("DROP TABLE IF EXISTS temp.before; CREATE TEMP TABLE before (number, request);")
        while group := list(islice(requests, batch)):
            self.base.execute("BEGIN")
            (first,) = self.base.execute("SELECT ifnull(max(number), 0) + 1 FROM requests").fetchone()
            new, changed = {}, {}
            for number, item in self._numbered(group, first):
                if item.omitted:
                    reading.omitted.update(item.omitted)
                again = seen.add(number)
                reading.repeated += again
                text = to_json(item)
                if number >= first and not again:
                    new[number] = number, key(item.id), json.dumps(item.video), text
                elif number in new:
                    *row, before = new[number]
                    new[number] = *row, to_json(joined(from_json(before), item))
                else:
                    before = changed.get(number) or self._text(number)
                    if before != text:
                        merge = joined if again else revised
                        changed[number] = to_json(merge(from_json(before), item))
                        if not again:
                            self.base.execute("INSERT INTO temp.before VALUES (?, ?)", (number, before))
            self.base.executemany("INSERT INTO requests VALUES (?, ?, ?, ?)", new.values())
            rows = [(text, number) for number, text in changed.items()]
            self.base.executemany("UPDATE requests SET request = ? WHERE number = ?", rows)
            self.base.execute("COMMIT")
        rows = self.base.execute(
            "SELECT before.request, now.request FROM temp.before JOIN requests AS now USING (number)"
        )
        reading.updated = sum(contents(from_json(before)) != contents(from_json(after)) for before, after in rows)
        return reading

    def _text(self, number: int) -> str:
        return self.base.execute("SELECT request FROM requests WHERE number = ?", (number,)).fetchone()[0]

    def _numbered(self, group: Sequence[ClipRequest], first: int) -> list[tuple[int, ClipRequest]]:
        """Return requests with their numbers, in the order of these: `first` and more for those that are new."""
        found = []
        for place in index_order([request.id for request in group]):
            number, id = first + place, key(group[place].id)
            if not self.base.execute("INSERT OR IGNORE INTO numbers VALUES (?, ?)", (id, number)).rowcount:
                (number,) = self.base.execute("SELECT number FROM numbers WHERE id = ?", (id,)).fetchone()
            found.append((number, place))
        return [(number, group[place]) for number, place in sorted(found)]

    def made(self) -> Iterator[tuple[int, ClipRequest]]:
        """Yield number and request of those that ended as ok, in order."""
        rows = self.base.execute(
            "SELECT requests.number, request FROM requests JOIN ledger.ended USING (id) WHERE status = 'ok' "
            "ORDER BY requests.number"
        )
        return ((number, from_json(text)) for number, text in rows)

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


class NumberSet:
    """A set of small numbers, one bit each: twelve megabytes for 100 million."""

    def __init__(self) -> None:
        self.bits = bytearray()

    def add(self, number: int) -> bool:
        """Add a number; tell whether it was there before."""
        place, bit = number >> 3, 1 << (number & 7)
        if place >= len(self.bits):
            self.bits.extend(bytes(place + 1 + len(self.bits) // 8 - len(self.bits)))
        found = bool(self.bits[place] & bit)
        self.bits[place] |= bit
        return found


def joined(before: ClipRequest, row: ClipRequest) -> ClipRequest:
    """Return what two rows of one reading say of an id: the captions of both, and of the rest the later row's."""
    return merged(before, row, before.captions, row.licence or before.licence, before.notes | row.notes)


def revised(before: ClipRequest, row: ClipRequest) -> ClipRequest:
    """Return what is known of an id once a new reading speaks of it.

    Captions replace those of the same origin, others stay. What the same file said before of licence and notes is
    forgotten; beside what another file said, the new has precedence.
    """
    spoken = {row.origin, *(caption.origin for caption in row.captions)}
    captions = [caption for caption in before.captions if caption.origin not in spoken]
    if before.place.file == row.place.file:
        return merged(before, row, captions, row.licence, row.notes)
    return merged(before, row, captions, row.licence or before.licence, before.notes | row.notes)


def merged(
    before: ClipRequest, row: ClipRequest, captions: Sequence[Caption], licence: str, notes: dict[str, Any]
) -> ClipRequest:
    """Return a row with its captions among others, each text of an origin once.

    They come behind those of their origin, or where its name has its place: no order of calls shows in them.
    """
    origins = [caption.origin for caption in captions]
    if row.origin in origins:
        place = len(origins) - origins[::-1].index(row.origin)
    else:
        place = next((place for place, origin in enumerate(origins) if origin > row.origin), len(origins))
    together = [*captions[:place], *row.captions, *captions[place:]]
    once = {(caption.origin, caption.text): caption for caption in together}
    names = {"parent": row.parent or before.parent, "name": row.name or before.name}
    names |= {"followed": row.followed or before.followed}
    return replace(row, captions=tuple(once.values()), licence=licence, notes=notes, **names)


def contents(request: ClipRequest) -> tuple[Any, ...]:
    """Return what metadata says of an id, wherever it says so."""
    return request.captions, request.licence, request.notes, request.parent, request.name, request.part


def to_json(request: ClipRequest) -> str:
    """Return a request as text: JSON, also for SQLite, so that notes that are no numbers become null."""
    span = request.span and list(map(str, request.span))
    given = {**vars(request), "span": span}
    for name in UNSAID:
        given.pop(name, None)
    for name in RARE:
        if not given[name]:
            del given[name]
    text = json.dumps(given)
    strange = "NaN" in text or "Infinity" in text
    return json.dumps(json.loads(text, parse_constant=lambda _: None)) if strange else text


def from_json(text: str) -> ClipRequest:
    """Return the request that `to_json` made this of."""
    fields = json.loads(text)
    fields.pop("id", None)  # of a plan of before
    fields["place"] = Place(*fields["place"])
    fields["span"] = fields["span"] and tuple(map(Fraction, fields["span"]))
    fields["captions"] = tuple(Caption(*caption) for caption in fields["captions"])
    fields["part"] = fields["part"] and Part(*fields["part"])
    return ClipRequest(**fields)
