"""Prep: from metadata or footage to shards, with every input accounted for.

All phases share the work folder `<out>/.work`. `admit` enters the inputs into plan and ledger. `make` makes clips,
scores and hashes, one task for each video, in workers that may hang or crash, here or on a cluster. `rate` lets models
rate the clips that meet all other limits. `caption` asks for captions of the clips that the rules keep. `curate`
chooses the clips and writes the shards. Each phase may be killed at any moment and run again; the shards come out the
same. A new phase is one file with such a function, and one name in `PHASES`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.admit import admit, open_inputs
from data_prep.books.begun import check_settings
from data_prep.books.clip_index import ClipIndex
from data_prep.books.ledger import Ledger
from data_prep.books.plan import Plan
from data_prep.books.private import private_folder, without_values
from data_prep.books.work_folder import CLIPS, LEDGER, OVERRIDES, PLAN, RATINGS, SETTINGS, WORK, read_json
from data_prep.caption.asking import caption
from data_prep.choose.curate import curate
from data_prep.choose.rules import Rules
from data_prep.choose.takedown import remember
from data_prep.cut.policy import MakePolicy
from data_prep.engine.lock import WORKERS
from data_prep.make import make
from data_prep.preparation import Phase, Preparation
from data_prep.rate.model_score import rated_numbers
from data_prep.rate.models import Models
from data_prep.rate.rating import rate
from data_prep.rate.ratings import Ratings
from data_prep.report.progress import Progress, silent
from data_prep.report.summary import Summary
from data_prep.settings import Settings, Source
from videodiff.data.samples.shards import check_free
from videodiff.data.storage.address import bare_url
from videodiff.data.storage.files import owning, remove_abandoned, write_whole

NO_SPACE = f"{os.strerror(errno.ENOSPC)}; run the same command again to continue"
PHASES: tuple[Phase, ...] = (admit, make, rate, caption, curate)


def prep(settings: Settings, progress: Progress = silent) -> Summary:
    """Turn the inputs of the source into a dataset and return what its `summary.json` says.

    Without a source the shards are written again from the work folder; only clips that a model still has to rate or to
    caption are read. If the captioner does not answer, `captions.stopped` says why, and the shards have the captions
    that were written before. A full disk is an OSError; finished work is kept.
    """
    out = Path(settings.output.folder).absolute()
    work = out / WORK
    before = read_json(work / SETTINGS)
    if settings.source.path is None and not before:
        raise ValueError(f"source: found none, and no {work} of an earlier call; expected source=<path>")
    if not before:
        check_free(out)
    name = before["source"] if settings.source.path is None else full_name(settings.source.path)
    root = videos_root(settings.source, name)
    reads = settings.source.path is not None and settings.retry is None
    with disk_errors(work):
        inputs = open_inputs(settings.source, work) if reads else None
    private_folder(work)
    with locked(work), opened(settings, work, root) as preparation:
        preparation.inputs, preparation.progress = inputs, progress
        if preparation.makes:
            wanted = {"source": bare_url(name), **settings.make.to_json()}
            check_settings(work / SETTINGS, wanted, MakePolicy().to_json())
        if settings.overrides is not None:
            write_whole(work / OVERRIDES, json.dumps(without_values(settings.overrides)).encode())
        preparation.rules = rules_now(settings, work)
        for phase in PHASES:
            phase(preparation)
        preparation.summary.write(out)
    private_folder(work)
    return preparation.summary


def full_name(source: str | Path) -> str:
    """Return the absolute path or URL of a source."""
    return str(source) if "://" in str(source) else str(Path(source).resolve())


def videos_root(source: Source, name: str) -> str:
    """Return the folder or URL below which the videos lie; name: the absolute path or URL of the source."""
    if source.root is not None:
        root = full_name(source.root)
    elif "://" in name:
        root = name.partition("?")[0].rpartition("/")[0]
    else:
        root = name if Path(name).is_dir() else name.rpartition("/")[0]
    if "=..." in root:
        raise ValueError(f"root: found {root}, a URL whose secrets are not stored, expected root= with them again")
    return root


def rules_now(settings: Settings, work: Path) -> Rules:
    """Return the rules with everything that was ever taken down; the limits on scores by models come last.

    They come last because models rate only the clips that meet all other limits, and the first limit that a clip does
    not meet is its reason.
    """
    rated = rated_numbers()
    limits = sorted(settings.rules.filter.items(), key=lambda limits: limits[0] in rated)
    return replace(settings.rules, filter=dict(limits), taken=remember(work, settings.rules.taken))


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Lock a work folder against other runs and against workers that a killed run has left."""
    with owning(work.parent, "prep"), (work / WORKERS).open("w") as workers:
        seize(workers, f"{work}: found a running worker of an earlier run, expected none", 30)
        fcntl.flock(workers, fcntl.LOCK_UN)
        remove_unfinished(work)
        try:
            yield
        except BaseException:
            # Workers were stopped while they wrote.
            remove_unfinished(work)
            raise


def remove_unfinished(work: Path) -> None:
    """Remove the unfinished files of a work folder that no process writes."""
    for folder in (work, *(work / CLIPS).glob("*/")):
        remove_abandoned(folder)


@contextmanager
def opened(settings: Settings, work: Path, root: str) -> Iterator[Preparation]:
    """Open the records of a work folder about its inputs and clips."""
    with disk_errors(work), ExitStack() as open_now:
        ledger = open_now.enter_context(closing(Ledger(work / LEDGER)))
        plan = open_now.enter_context(closing(Plan(work / PLAN, work / LEDGER)))
        models, ratings = settings.rate.models, None
        if models != Models():
            ratings = open_now.enter_context(closing(Ratings(work / RATINGS, models)))
        yield Preparation(settings, work, root, settings.rules, plan, ledger, ClipIndex(plan, work), ratings)


@contextmanager
def disk_errors(work: Path) -> Iterator[None]:
    """Turn disk errors of SQLite, and damaged files, into OSError; for a full disk the message says how to go on."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Its other subclasses are no fault of the disk.
        if type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
            raise
        # On a full disk SQLite may report only that a write failed.
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL or shutil.disk_usage(work).free < 2**16
        raise OSError(*((errno.ENOSPC, NO_SPACE) if full else (errno.EIO, str(error))), str(work)) from error


def seize(file: Any, complaint: str, seconds: float = 0.0) -> None:
    """Lock a file, or raise after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise ValueError(complaint) from None
        time.sleep(0.05)
