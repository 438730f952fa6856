"""The replies of captioners, one row for each clip and captioner: no clip is asked about twice, even after a kill."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.books.ledger import key
from data_prep.books.private import private_file
from data_prep.caption.reply import Judged

TABLES = """
CREATE TABLE IF NOT EXISTS captioners (number INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL,
    origin TEXT NOT NULL, settings TEXT NOT NULL, used INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS replies (
    clip BLOB NOT NULL, captioner INTEGER NOT NULL REFERENCES captioners, status TEXT NOT NULL, reason TEXT NOT NULL,
    retryable INTEGER NOT NULL, text TEXT NOT NULL, detail TEXT NOT NULL,
    UNIQUE (clip, captioner) ON CONFLICT REPLACE,
    CHECK (status IN ('captioned', 'refused', 'failed')), CHECK ((status = 'captioned') = (reason = '')),
    CHECK (status = 'failed' OR NOT retryable)
);
"""
# Batches are formed from all wanted clips, not from the clips still to do. The answers of a model may depend on which
# clips share a batch, so a run that was killed must form the same batches again.
TODO = """
CREATE TEMP TABLE wanted (place INTEGER PRIMARY KEY, clip BLOB NOT NULL);
CREATE TEMP TABLE todo (number INTEGER PRIMARY KEY, batch INTEGER NOT NULL, clip BLOB NOT NULL);
"""


class ReplyCounts(NamedTuple):
    """How clips ended: `clips` is the sum of the others; refused: by reason; failed: by class; open: not asked yet."""

    clips: int
    captioned: int
    refused: dict[str, int]
    failed: dict[str, dict[str, int]]
    open: int


class Replies:
    """The answers in one work folder, in a file beside its ledger; one process writes."""

    def __init__(self, path: str | Path) -> None:
        self.base = sqlite3.connect(private_file(path), timeout=60, isolation_level=None)
        # A power cut may lose the last answers, a kill loses none: an fsync for every answer is not worth its time.
        self.base.execute("PRAGMA journal_mode = WAL")
        self.base.execute("PRAGMA synchronous = NORMAL")
        self.base.execute("PRAGMA secure_delete = ON")
        self.base.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")

    def close(self) -> None:
        self.base.close()

    def captioner(self, fingerprint: str, origin: str, settings: Mapping[str, Any]) -> int:
        """Return the number of a captioner; from now on its captions are the ones used for its origin."""
        with self.base:
            self.base.execute("BEGIN IMMEDIATE")
            (used,) = self.base.execute("SELECT coalesce(max(used), 0) + 1 FROM captioners").fetchone()
            self.base.execute(
                "INSERT INTO captioners (fingerprint, origin, settings, used) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (fingerprint) DO UPDATE SET origin = excluded.origin, used = excluded.used",
                (fingerprint, origin, json.dumps(settings), used),
            )
        return self.base.execute("SELECT number FROM captioners WHERE fingerprint = ?", (fingerprint,)).fetchone()[0]

    def origins(self) -> dict[int, tuple[str, str]]:
        """Return origin and fingerprint by number of the captioners whose captions count, in their order."""
        rows = self.base.execute("SELECT number, origin, fingerprint FROM captioners ORDER BY used").fetchall()
        last = {origin: number for number, origin, _ in rows}
        return {number: (origin, mark) for number, origin, mark in sorted(rows) if last[origin] == number}

    def texts(self, clip: str) -> dict[int, str]:
        """Return the captions of a clip by number of their captioner."""
        return dict(
            self.base.execute(
                "SELECT captioner, text FROM replies WHERE clip = ? AND status = 'captioned'", (key(clip),)
            )
        )

    def record(self, captioner: int, ends: Iterable[tuple[str, Judged]]) -> None:
        """Note how clips ended, all or none of them; an earlier end with this captioner is replaced."""
        rows = [
            (key(clip), captioner, end.status, end.reason, end.retryable, end.text, end.detail) for clip, end in ends
        ]
        with self.base:
            self.base.execute("BEGIN IMMEDIATE")
            self.base.executemany("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, clip: str) -> None:
        """Remove all that was answered about a clip."""
        self.base.execute("DELETE FROM replies WHERE clip = ?", (key(clip),))

    def todo(self, captioner: int, clips: Iterable[str], batch: int, retry: bool) -> Todo:
        """Return which of the clips are to be asked about, in batches: with `retry` also failures that may pass."""
        self.base.executescript(f"DROP TABLE IF EXISTS temp.wanted; DROP TABLE IF EXISTS temp.todo; {TODO}")
        rows = enumerate(map(key, clips))
        while group := list(islice(rows, 10_000)):
            with self.base:
                self.base.execute("BEGIN")
                self.base.executemany("INSERT INTO temp.wanted VALUES (?, ?)", group)
        self.base.execute(
            "INSERT INTO temp.todo (batch, clip) SELECT dense_rank() OVER (ORDER BY place / ?) - 1, wanted.clip "
            "FROM temp.wanted LEFT JOIN replies ON replies.clip = wanted.clip AND captioner = ? "
            "WHERE status IS NULL OR (? AND retryable) ORDER BY place",
            (batch, captioner, retry),
        )
        self.base.execute("CREATE INDEX temp.by_batch ON todo (batch)")
        return Todo(self.base)

    def counts(self, captioner: int) -> ReplyCounts:
        """Return how the clips of the last `todo` ended."""
        rows = self.base.execute(
            "SELECT coalesce(status, 'open'), reason, retryable, count(*) FROM temp.wanted LEFT JOIN replies "
            "ON replies.clip = wanted.clip AND captioner = ? GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
            (captioner,),
        ).fetchall()
        failed: dict[str, dict[str, int]] = {}
        for status, reason, retryable, count in rows:
            if status == "failed":
                failed.setdefault(reason, {})["retryable" if retryable else "permanent"] = count
        return ReplyCounts(
            clips=sum(count for *_, count in rows),
            captioned=sum(count for status, *_, count in rows if status == "captioned"),
            refused={reason: count for status, reason, _, count in rows if status == "refused"},
            failed=failed,
            open=sum(count for status, *_, count in rows if status == "open"),
        )


class Todo(Sequence):
    """Batches of the ids of clips to ask about."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self.base = base
        self.batches, self.clips = base.execute(
            "SELECT coalesce(max(batch) + 1, 0), count(*) FROM temp.todo"
        ).fetchone()

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> list[str]:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        rows = self.base.execute("SELECT clip FROM temp.todo WHERE batch = ? ORDER BY number", (index,))
        return [str(uuid.UUID(bytes=clip)) for (clip,) in rows.fetchall()]
