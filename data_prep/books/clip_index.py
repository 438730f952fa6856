"""The index of clips: what the rules ask of every clip, one row a clip in the file of the plan.

The JSON file of a request is read once for it, in whichever call first needs it; a request that has ended as ok never
changes. The index may be deleted at any time: the next call reads the files anew.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.books.candidate import Candidate
from data_prep.books.ledger import key
from data_prep.books.made import Made
from data_prep.books.plan import Plan
from data_prep.books.request import ClipRequest
from data_prep.books.work_folder import CLIPS

TABLE = """
CREATE TABLE IF NOT EXISTS clips (number INTEGER NOT NULL, place INTEGER NOT NULL, id BLOB NOT NULL,
    start REAL NOT NULL, end REAL NOT NULL, frames INTEGER NOT NULL, sha256 BLOB NOT NULL, perceptual BLOB NOT NULL,
    lost INTEGER NOT NULL, scores TEXT NOT NULL, PRIMARY KEY (number, place)) WITHOUT ROWID;
"""
# Requests have records, clips have files; both have the name of their id.
KNOWN = """
DROP TABLE IF EXISTS temp.known;
CREATE TEMP TABLE known (id TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO known SELECT hex(id) FROM clips UNION SELECT hex(requests.id) FROM clips JOIN requests USING (number);
"""
COLUMNS = "id, start, end, frames, sha256, perceptual, lost, scores"
# Rows that are entered at once.
BATCH = 1000


class ClipIndex:
    """All clips in one work folder, in the order of the inputs."""

    def __init__(self, plan: Plan, work: Path) -> None:
        self.plan, self.base, self.work = plan, plan.base, work
        self.base.executescript(TABLE)

    def __iter__(self) -> Iterator[Candidate]:
        fresh: list[tuple[Any, ...]] = []
        for number, request in self.plan.made():
            rows = self.base.execute(f"SELECT {COLUMNS} FROM clips WHERE number = ? ORDER BY place", (number,))
            if not (found := rows.fetchall()):
                found = list(rows_of(Made.read(self.work, request.id)))
                fresh += [(number, place, *row) for place, row in enumerate(found)]
            for row in found:
                yield candidate(request, row)
            if len(fresh) >= BATCH:
                self._add(fresh)
        self._add(fresh)

    def unknown(self) -> Iterator[Path]:
        """Yield the files of clips that belong to no clip here: killed or failed work has left them.

        All clips must have been iterated over before, and no worker may be at work.
        """
        self.base.executescript(KNOWN)
        for folder in sorted((self.work / CLIPS).glob("*/")):
            for entry in os.scandir(folder):
                id = entry.name.partition(".")[0].replace("-", "").upper()
                if not self.base.execute("SELECT 1 FROM known WHERE id = ?", (id,)).fetchone():
                    yield folder / entry.name

    def _add(self, rows: list[tuple[Any, ...]]) -> None:
        """Enter rows and empty the list."""
        if not rows:
            return
        self.base.execute("BEGIN")
        self.base.executemany(f"INSERT INTO clips (number, place, {COLUMNS}) VALUES ({', '.join('?' * 10)})", rows)
        self.base.execute("COMMIT")
        rows.clear()


def rows_of(made: Made) -> Iterator[tuple[Any, ...]]:
    """Yield the row of each clip, in the order of `COLUMNS`."""
    for clip in made.clips:
        start, end = clip.span
        hashes = bytes.fromhex(clip.sha256), clip.perceptual
        yield key(clip.id), start, end, clip.info.frames, *hashes, len(made.lost), json.dumps(clip.scores)


def candidate(request: ClipRequest, row: tuple[Any, ...]) -> Candidate:
    """Return what a row says of a clip of a request."""
    id, start, end, frames, sha256, perceptual, lost, scores = row
    name, found = str(uuid.UUID(bytes=id)), json.loads(scores)
    return Candidate(request, name, (start, end), frames, sha256, perceptual, lost, found, request.captions)
