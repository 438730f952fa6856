"""Ratings: the scores by models on disk, under the id of the clip and the fingerprint of the inputs of the score."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.books.candidate import Candidate
from data_prep.books.ledger import key
from data_prep.rate.model_score import model_scores
from data_prep.rate.models import Models

CHUNK = 16
TABLE = "CREATE TABLE IF NOT EXISTS ratings (id BLOB, model BLOB, scores TEXT, PRIMARY KEY (id, model)) WITHOUT ROWID"
TODO = "CREATE TEMP TABLE todo (number INTEGER PRIMARY KEY, id TEXT, frames INTEGER, captions TEXT, wanted TEXT)"


class Ratings:
    """The scores by these models that are on disk."""

    def __init__(self, path: str | Path, models: Models) -> None:
        self.base = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.base.executescript(f"PRAGMA synchronous = FULL; {TABLE}; {TODO};")
        self.models, self.identities, self.empty = models, models.identities(), dict.fromkeys(models.names())
        self.by_captions = {kind for kind, score in model_scores().items() if score.reads_captions}

    def close(self) -> None:
        self.base.close()

    def keys(self, captions: Sequence[str]) -> dict[str, bytes]:
        """Return, for each model, the key of the scores of a clip with these captions."""
        return {
            kind: hashlib.sha256(json.dumps([model, *(captions if kind in self.by_captions else ())]).encode()).digest()
            for kind, model in self.identities.items()
        }

    def of(self, id: str, captions: Sequence[str]) -> dict[str, float | None]:
        """Return every score of a clip by the models, None for one that it does not have."""
        found = self.found(id, captions).values()
        return self.empty | {name: value for scores in found for name, value in scores.items()}

    def found(self, id: str, captions: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the scores of a clip by each model that has rated it."""
        rows = {}
        for kind, model in self.keys(captions).items():
            query = "SELECT scores FROM ratings WHERE id = ? AND model = ?"
            row = self.base.execute(query, (key(id), model)).fetchone()
            rows |= {kind: json.loads(row[0])} if row else {}
        return rows

    def unrated(self, clips: Iterable[tuple[str, int, Sequence[str]]]) -> Chunks:
        """Return those clips (id, frames, captions) that a model has not rated yet."""
        self.base.execute("BEGIN")
        for id, frames, captions in clips:
            if wanted := sorted(self.identities.keys() - self.found(id, captions)):
                row = id, frames, json.dumps(list(captions)), json.dumps(wanted)
                self.base.execute("INSERT INTO todo (id, frames, captions, wanted) VALUES (?, ?, ?, ?)", row)
        self.base.execute("COMMIT")
        return Chunks(self.base)

    def add(self, chunk: Sequence[Unrated], rated: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
        """Note what the models gave for some clips."""
        self.base.execute("BEGIN")
        for clip, scores in zip(chunk, rated, strict=True):
            keys = self.keys(clip.captions)
            rows = [(key(clip.id), keys[kind], json.dumps(values)) for kind, values in scores.items()]
            self.base.executemany("INSERT OR REPLACE INTO ratings VALUES (?, ?, ?)", rows)
        self.base.execute("COMMIT")


class Unrated(NamedTuple):
    """A clip, how many frames and which captions it has, and which models have not rated it."""

    id: str
    frames: int
    captions: list[str]
    wanted: list[str]


class Chunks(Sequence):
    """The clips to be rated, some at a time, from disk."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self.base = base
        (self.clips,) = base.execute("SELECT count(*) FROM todo").fetchone()

    def __len__(self) -> int:
        return (self.clips + CHUNK - 1) // CHUNK

    def __getitem__(self, index: int) -> list[Unrated]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = self.base.execute(
            "SELECT id, frames, captions, wanted FROM todo WHERE number > ? AND number <= ? ORDER BY number",
            (index * CHUNK, (index + 1) * CHUNK),
        )
        return [Unrated(id, frames, json.loads(captions), json.loads(wanted)) for id, frames, captions, wanted in rows]


def with_ratings(candidates: Iterable[Candidate], ratings: Ratings | None) -> Iterator[Candidate]:
    """Yield clips with the scores by models among their own, None for a score that a clip does not have."""
    if ratings is None:
        yield from candidates
        return
    for candidate in candidates:
        texts = source_captions(candidate)
        yield candidate._replace(scores={**candidate.scores, **ratings.of(candidate.id, texts)})


def source_captions(candidate: Candidate) -> list[str]:
    """Return the captions that the source gives."""
    return [caption.text for caption in candidate.request.captions]
