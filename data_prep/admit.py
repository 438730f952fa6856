"""Admit: enter the inputs of the source into plan and ledger, and bad inputs with their fault."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.books.reading import Reading
from data_prep.books.request import ClipRequest
from data_prep.books.work_folder import PASSED, READING, SETTINGS, read_json
from data_prep.choose.rules import is_taken
from data_prep.fetch.acquire import near_file, stamp_of
from data_prep.preparation import Inputs, Preparation
from data_prep.report.progress import counted
from data_prep.settings import Source
from data_prep.sources.reader import open_source
from videodiff.data.storage.files import write_whole
from videodiff.data.storage.listing import Passed

# Changed files that are named.
SHOWN = 3


def admit(preparation: Preparation) -> None:
    """Enter the inputs of the source, if one is given; put the counts of the last reading into the summary."""
    work, inputs = preparation.work, preparation.inputs
    if inputs is not None:
        (work / READING).unlink(missing_ok=True)
        items = counted(inputs.items, preparation.progress, "read", "inputs")
        changed: set[str] = set()
        reading = preparation.plan.add(watched(preparation.ledger.admit(items), preparation, changed))
        reading.changed, reading.changed_files = len(changed), nsmallest(SHOWN, changed)
        write_whole(work / READING, json.dumps(reading.to_json()).encode())
        write_whole(work / PASSED, json.dumps(dict(inputs.passed.most_common())).encode())
    reading = Reading.from_json(read_json(work / READING))
    if inputs is None:
        reading.updated = 0  # by an earlier call
    preparation.summary.reading = reading
    preparation.summary.passed_over = read_json(work / PASSED)


def watched(requests: Iterable[ClipRequest], preparation: Preparation, changed: set[str]) -> Iterator[ClipRequest]:
    """Yield requests; add to `changed` the local files that have another size or time than when they were worked on."""
    root, fetch, ledger = preparation.root, preparation.settings.fetch, preparation.ledger
    for request in requests:
        near = near_file(request, root, fetch)
        if near is not None and (before := ledger.stamp(request.id)) is not None:
            # A file that is gone has nothing new.
            with suppress(OSError):
                if stamp_of(near.path) != before and not is_taken(request, preparation.rules.taken):
                    changed.add(request.source)
        yield request


def open_inputs(source: Source, work: Path) -> Inputs:
    """Return the inputs of a source. The first one is read at once, so that a mistyped path leaves nothing behind."""
    path, passed = source.path, Passed()
    items = open_source(source.reader, path, source.options, passed, work)
    if Path(path).is_dir() and Path(path).resolve() in work.resolve().parents:
        raise ValueError(
            f"out: found {work.parent} in the source {path}, expected one outside: its clips would be read as footage"
        )
    return Inputs(begun(items, path, passed, work), passed)


def begun(items: Iterator[Any], path: str | Path, passed: Passed, work: Path) -> Iterator[Any]:
    """Read the first item at once and return all items; ValueError if a new work folder would have none."""
    first = next(items, None)
    if first is None and not (work / SETTINGS).is_file():
        beside = f"; there are {passed}" if passed else ""
        raise ValueError(
            f"source: found no inputs in {path}, expected videos for format=folder, lines of metadata for "
            f"others{beside}"
        )
    return items if first is None else chain([first], items)
