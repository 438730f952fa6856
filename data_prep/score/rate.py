"""Rate: scores by models that the user gives, once for each clip that meets the limits which need no model.

The clips are read from the work folder, a few frames each. A score is noted under the id of the clip and what it
follows from: the weights and, for text-video similarity, the captions. Other limits need no second look.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_prep.books.ledger import key
from data_prep.books.plan import Plan
from data_prep.choose.curate import Rules, captions_of, clips_of, refused
from data_prep.engine.local import Engine, Node
from data_prep.engine.pool import Lost
from data_prep.produce import WORKERS, join_run, place_of
from data_prep.report.progress import Progress, Step, silent
from videodiff.data.video.decode import decode

RATINGS = "ratings.sqlite"
# What each kind of model gives; the aesthetic head works on the features of the CLIP.
SCORES = {"clip": ("clip_similarity",), "aesthetic": ("aesthetic",), "nsfw": ("nsfw",)}
RATED = frozenset(name for names in SCORES.values() for name in names)
# Of a repository on a hub: weights without pickles, and what says how to use them.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
CHUNK = 16
TABLE = "CREATE TABLE IF NOT EXISTS ratings (id BLOB, model BLOB, scores TEXT, PRIMARY KEY (id, model)) WITHOUT ROWID"
TODO = "CREATE TEMP TABLE todo (number INTEGER PRIMARY KEY, id TEXT, frames INTEGER, captions TEXT, wanted TEXT)"


class Models(NamedTuple):
    """Models on this disk: folders of a whole CLIP and of an image classifier, the file of a head; None for none."""

    clip: Path | None = None
    aesthetic: Path | None = None
    nsfw: Path | None = None

    def names(self) -> list[str]:
        """Return the scores that there will be."""
        return [name for kind in self._fields if getattr(self, kind) for name in SCORES[kind]]

    def identities(self) -> dict[str, str]:
        """Return for each run of a model over a clip what its scores follow from."""
        found = {}
        if self.clip:
            found["clip"] = hash_files(self.clip) + (hash_files(self.aesthetic) if self.aesthetic else "")
        return found | ({"nsfw": hash_files(self.nsfw)} if self.nsfw else {})


def find_models(models: Mapping[str, str | None], limits: Iterable[str] = ()) -> Models:
    """Return the models of these folders, files or hub names; one that is missing, or has no model, is an error.

    limits: names of the scores that a filter asks for.
    """
    if unknown := models.keys() - SCORES.keys():
        raise ValueError(f"models: found {min(unknown)!r}, expected some of {', '.join(SCORES)}")
    given = {kind: str(name) for kind, name in models.items() if name}
    for kind, scores in SCORES.items():
        if kind not in given and (asked := set(scores) & set(limits)):
            raise ValueError(f"filter.{min(asked)}: found no model for it, expected models.{kind}=<path>")
    if "aesthetic" in given:
        if "clip" not in given:
            raise ValueError("models.aesthetic: found no models.clip, expected the CLIP whose features the head rates")
        if not Path(given["aesthetic"]).is_file():
            raise ValueError(f"models.aesthetic: found no file {given['aesthetic']!r}, expected a .safetensors file")
    folders = {kind: find_folder(kind, name) for kind, name in given.items() if kind != "aesthetic"}
    return Models(**folders, **({"aesthetic": Path(given["aesthetic"]).resolve()} if "aesthetic" in given else {}))


def find_folder(kind: str, name: str) -> Path:
    """Return the folder of a model, brought from the hub where it is a name there."""
    if Path(name).is_dir():
        if not Path(name, "config.json").is_file():
            raise ValueError(f"models.{kind}: found no config.json in {name!r}, expected the folder of a model")
        return Path(name).resolve()
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"models.{kind}: found no folder {name!r}, expected one, or a name on the Hugging Face hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"models.{kind}: found neither a folder nor a readable model of the Hugging Face hub named {name!r} "
            f"({type(error).__name__})"
        ) from error


def hash_files(path: Path) -> str:
    """Return a sha-256 over the files of a model, wherever it lies."""
    files = [path] if path.is_file() else sorted({file for pattern in FILES for file in path.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            digest.update(f"{file.name} {hashlib.file_digest(data, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


class Ratings:
    """The scores by these models that are on disk."""

    def __init__(self, path: str | Path, models: Models) -> None:
        self.base = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.base.executescript(f"PRAGMA synchronous = FULL; {TABLE}; {TODO};")
        self.models, self.identities, self.empty = models, models.identities(), dict.fromkeys(models.names())

    def close(self) -> None:
        self.base.close()

    def keys(self, captions: Sequence[str]) -> dict[str, bytes]:
        """Return what the scores of a clip with these captions are noted under, for each model."""
        return {
            kind: hashlib.sha256(json.dumps([identity, *(captions if kind == "clip" else ())]).encode()).digest()
            for kind, identity in self.identities.items()
        }

    def of(self, id: str, captions: Sequence[str]) -> dict[str, float | None]:
        """Return every score of a clip by the models, None for one that it does not have."""
        found = self.found(id, captions).values()
        return self.empty | {name: value for scores in found for name, value in scores.items()}

    def found(self, id: str, captions: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return what each model that has rated a clip gave."""
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


def rate(
    plan: Plan,
    ratings: Ratings,
    work: Path,
    rules: Rules,
    engine: Engine,
    workers: int | None,
    timeout: float,
    gpus: float = 0.0,
    progress: Progress = silent,
) -> None:
    """Rate all clips that meet the limits that need no model; timeout: seconds for 16 clips; see `Engine`."""
    limits = {name: sides for name, sides in rules.filter.items() if name not in RATED}
    chunks, done = ratings.unrated(passing(plan, work, replace(rules, filter=limits))), 0
    function = partial(rate_clips, work=work, models=ratings.models, gpu=gpus > 0)
    folders = [work, *(path for path in ratings.models if path is not None)]
    with closing(engine.run(function, chunks, folders, workers, timeout, gpus)) as batches:
        for number, answer in (answer for answers in batches for answer in answers):
            chunk = chunks[number]
            if isinstance(answer, Lost):
                raise ValueError(f"models: {answer.reason} at the clips from {chunk[0].id} on: {answer.detail}")
            ratings.add(chunk, answer)
            done += len(chunk)
            progress(Step("rate", done, chunks.clips, "clips"))


def passing(plan: Plan, work: Path, rules: Rules) -> Iterator[tuple[str, int, list[str]]]:
    """Yield id, frames and captions of the clips that the rules do not refuse."""
    for request, _, clip in clips_of(plan, work):
        if not refused(request, clip, rules):
            yield clip["id"], clip["info"]["frames"], captions_of(request)


def rate_clips(
    chunk: Sequence[Unrated], node: Node, work: Path, models: Models, gpu: bool
) -> list[dict[str, dict[str, Any]]]:
    """Return what each model that is wanted gives for each clip; runs in a worker."""
    from data_prep.score.model import looks

    join_run(node.scratch / WORKERS)
    scorers, found = load(models, gpu), []
    for clip in chunk:
        video = place_of(work, clip.id, "mp4").read_bytes()
        frames = decode(video, looks(clip.frames))
        found.append({kind: scorers[kind](frames, clip.captions) for kind in clip.wanted})
    return found


@cache
def load(models: Models, gpu: bool) -> dict[str, Callable[[Any, Sequence[str]], dict[str, float]]]:
    """Return the models, once a process: on one of the GPUs that it sees, or on one core."""
    # The library takes seconds to import, and only these processes need it.
    from data_prep.score.model import ClipScores, NsfwScores

    torch.set_num_threads(1)
    number, scorers = multiprocessing.current_process().name.rpartition("-")[2], {}
    if gpu and not torch.cuda.is_available():
        raise ValueError("models.gpus: found no GPU, expected one, or models.gpus=0")
    device = f"cuda:{int(number) % torch.cuda.device_count()}" if gpu else "cpu"
    if models.clip:
        scorers["clip"] = ClipScores(models.clip, models.aesthetic, device)
    if models.nsfw:
        nsfw = NsfwScores(models.nsfw, device)
        scorers["nsfw"] = lambda frames, captions: nsfw(frames)
    return scorers
