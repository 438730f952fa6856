"""Prep: from metadata or footage to shards, with every input accounted for.

Four phases meet in the work folder `<out>/.work`. The first (see `produce`) makes clips, scores and hashes, a video a
task, in worker processes that may hang or crash, here or on a cluster (`engine`); the ledger says what is on disk.
Where asked for, the second (see `rate`) has those clips rated by models that meet the other limits, and the third (see
`caption`) has captions written for those that would be kept. The fourth (see `curate`) chooses among the clips and
writes the shards. Each may be killed at any moment and run again, with the same shards in the end.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.books.ledger import Ledger, Outcome
from data_prep.books.plan import Plan, Told
from data_prep.books.private import from_environment, private_folder, without_values
from data_prep.caption.asking import CaptionPolicy, Captions, caption_all
from data_prep.choose.curate import Rules, curate, is_taken
from data_prep.cut.encode import EncodePolicy
from data_prep.engine.local import Engine, Local
from data_prep.engine.pool import Answers, Lost
from data_prep.engine.stopwatch import Spent, clock, total
from data_prep.fetch.acquire import Acquirer
from data_prep.produce import CLIPS, LEDGER, VIDEOS, WORKERS, CutPolicy, Making, Stop, produce
from data_prep.report.progress import Progress, Step, silent, told
from data_prep.score.rate import RATED, RATINGS, Models, Ratings, find_models, rate
from data_prep.sources import READERS, CaptionIndex
from data_prep.sources.metadata.rows import name_of
from videodiff.data.order.curriculum import read_buckets
from videodiff.data.storage.address import bare_url, printable
from videodiff.data.storage.files import owning, remove_abandoned, write_whole
from videodiff.data.storage.listing import Passed

WORK, PLAN, SETTINGS, TAKEN, SUMMARY = ".work", "plan.sqlite", "settings.json", "takedown.txt", "summary.json"
OVERRIDES, PASSED, READING = "overrides.yaml", "passed_over.json", "reading.json"
# The kinds of source of which files are listed.
LISTED = ("folder", "webdataset")
NO_SPACE = f"{os.strerror(errno.ENOSPC)}; the same command goes on from here"
LOCAL = Local()


def prep(
    out: str | Path,
    source: str | Path | None = None,
    kind: str = "folder",
    root: str | Path | None = None,
    reader: Mapping[str, Any] | None = None,
    acquire: Mapping[str, Any] | None = None,
    cut: Mapping[str, Any] | None = None,
    encode: Mapping[str, Any] | None = None,
    caption: Mapping[str, Any] | None = None,
    crop: bool = True,
    score: bool = True,
    filter: Mapping[str, Mapping[str, float]] | None = None,
    near: int | None = None,
    licences: Sequence[str] | None = None,
    require_caption: bool = False,
    models: Mapping[str, Any] | None = None,
    takedown: str | Path | None = None,
    retry: str | None = None,
    audio: str = "drop",
    buckets: Sequence[Mapping[str, Any]] | None = None,
    shard_bytes: int = 256 * 2**20,
    workers: int | None = None,
    timeout: float = 3600.0,
    engine: Engine = LOCAL,
    progress: Progress = silent,
    overrides: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Turn the inputs of `source` into the dataset `out` and return what `summary.json` there says.

    kind, reader: one of `sources.READERS` and its further arguments; root: folder or URL below which the videos lie
    (None: that of the source); acquire: arguments of `Acquirer`; cut, encode, caption: those of `CutPolicy`,
    `EncodePolicy`, `CaptionPolicy`; filter, near, licences, require_caption: see `curate.Rules`; models: see
    `rate.find_models`, and `gpus` of each process that runs them; takedown: a file of ids, names and sources, a line
    each, that are left out of this dataset from now on; retry: `failed` makes and asks only for those again that failed
    and may be tried again; audio: `keep` has the sound of each clip beside it, as m4a; buckets: those of training's
    `data.buckets`, see `curate`; workers: processes, None for one a core; timeout: seconds that one video may take;
    engine: where the processes run, which changes no byte; overrides: what the work folder is to remember of this call,
    `OVERRIDES`. Without `source` nothing is read, fetched or decoded but
    clips that a model has not rated or captioned yet: the shards are written anew from what is there.

    In the summary `inputs` is the sum of `ok`, `filtered`, `failed` and `open` (not worked on yet; 0 unless stopped).
    An input is a request of the source: one span, or one whole video; `repeated` counts the rows beyond the first of an
    input, `updated` the inputs of an earlier call of which the source now says something else, `notes_left_out` what
    was no number. Where scenes are looked for it gives any number of clips: it is ok if one of them is kept, else
    filtered for the reason of its first clip. `clips` counts the clips themselves, `captions` those that were to be
    captioned. Where who writes captions gives no answer, `stopped` in it says why, and the shards have those that were
    written before. A full disk is an OSError; what was done is kept.
    """
    out = Path(out).absolute()
    work = out / WORK
    acquire = from_environment(acquire or {}, "acquire")
    if (workers is not None and workers < 1) or timeout <= 0 or shard_bytes < 1 or retry not in (None, "failed"):
        raise ValueError(
            f"prep: found workers={workers} timeout={timeout} shard_bytes={shard_bytes} retry={retry}, expected at "
            "least 1, above 0, at least 1, failed or null"
        )
    begun = read_settings(work / SETTINGS)
    if source is None and not begun:
        raise ValueError(f"source: found none, and no {work} of an earlier call; expected source=<path>")
    taken = frozenset() if takedown is None else read_lines(takedown)
    # A clip is rated by models only where it meets the other limits.
    filter = dict(sorted((filter or {}).items(), key=lambda limits: limits[0] in RATED))
    Rules(filter, near, licences, require_caption)
    models = dict(models or {})
    gpus = models.pop("gpus", 0.0)
    found = find_models(models, filter)
    name = begun["source"] if source is None else full_name(source)
    root = place_of_videos(name) if root is None else full_name(root)
    if "=..." in root:
        raise ValueError(f"root: found {root}, a URL whose secrets were not kept, expected root= with them once more")
    making = Making(work, root, CutPolicy(**cut or {}), EncodePolicy(**encode or {}), crop, score, acquire, audio)
    shapes = read_buckets("buckets", buckets, stride=1)[0] if buckets else []
    policy = CaptionPolicy(**caption or {})
    if policy.by != "none":
        policy.captioner(work, timeout)  # a mistake in its settings ends here
    with disk_errors(work):
        passed = None if source is None or retry else Passed()
        items = None if passed is None else open_source(source, kind, reader or {}, work, passed)
    makes = source is not None or retry is not None
    private_folder(work)
    with locked(work), books(work) as (plan, ledger):
        if makes:
            check_settings(work / SETTINGS, {"source": bare_url(name), **making.parameters})
        if overrides is not None:
            write_whole(work / OVERRIDES, json.dumps(without_values(overrides)).encode())
        taken |= remember(work / TAKEN, taken)
        if items is not None:
            (work / READING).unlink(missing_ok=True)
            said = read_counts(plan.add(ledger.admit(told(items, progress, "read", "inputs"))))
            write_whole(work / READING, json.dumps(said).encode())
            write_whole(work / PASSED, json.dumps(dict(passed.most_common())).encode())
        if makes:
            run = partial(engine.run, folders=[work, root], workers=workers, timeout=timeout)
            make_all(plan, ledger, making, taken, retry is not None, run, progress)
        ratings = None if found == Models() else Ratings(work / RATINGS, found)
        rules = Rules(filter, near, licences, require_caption, taken, ratings)
        if ratings is not None:
            rate(plan, ratings, work, rules, engine, workers, timeout, gpus, progress)
        written = {}
        if policy.by != "none":
            written = {"captions": caption_all(plan, work, rules, policy, retry is not None, timeout, progress)}
        with clock("pack"), closing(Captions(work, policy, plan.origins() if policy.use else ())) as captions:
            note = partial(remember, work / TAKEN)
            curated = curate(plan, work, out, rules, shard_bytes, captions, shapes, progress, note)
        clock.count("pack", curated["clips"]["kept"], curated["shards"]["bytes"])
        ledger.spend({"pack": clock.take()["pack"]}, anew=True)
        reading = read_settings(work / READING)
        if items is None:
            reading.pop("updated", None)  # by an earlier call
        summary = account(ledger.summary(), curated) | reading | written
        summary |= {"passed_over": read_settings(work / PASSED)}
        write_whole(out / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    private_folder(work)
    return summary


def open_source(source: str | Path, kind: str, reader: Mapping[str, Any], work: Path, passed: Passed) -> Iterator[Any]:
    """Return the items of a source, of which the first is read at once: a mistyped path leaves nothing behind.

    What a listing of files passes over is counted in `passed` while they are read.
    """
    if kind not in READERS:
        raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(READERS)}")
    options = {name: value for name, value in reader.items() if value}
    if "captions" in options and kind == "hdvila":
        private_folder(work)
        table = options["captions"]
        options["captions"] = CaptionIndex(table, work / "captions.sqlite", name_of(table))
    try:
        items = READERS[kind](source, **options, **({"passed": passed} if kind in LISTED else {}))
    except TypeError as error:
        raise ValueError(f"reader: found {', '.join(options) or 'nothing'} for kind={kind}: {error}") from error
    if Path(source).is_dir() and Path(source).resolve() in work.resolve().parents:
        raise ValueError(f"out: found {work.parent} in the source {source}, where its clips would be taken for footage")
    first = next(items, None)
    if first is None and not (work / SETTINGS).is_file():
        beside = f"; there are {passed}" if passed else ""
        raise ValueError(f"source: found no inputs in {source}, expected at least one{beside}")
    return items if first is None else chain([first], items)


def full_name(source: str | Path) -> str:
    """Return a source as it is called from anywhere."""
    return str(source) if "://" in str(source) else str(Path(source).resolve())


def place_of_videos(source: str) -> str:
    """Return the folder of a source, itself if it is one."""
    if "://" in source:
        return source.partition("?")[0].rpartition("/")[0]
    return source if Path(source).is_dir() else source.rpartition("/")[0]


def read_lines(path: str | Path) -> frozenset[str]:
    """Return the lines of a file; empty ones and those that begin with # are none."""
    try:
        lines = {line.strip() for line in Path(path).read_text("utf-8-sig").splitlines()}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"takedown: {path} cannot be read: {error}") from error
    # Sources are known without their secrets.
    return frozenset(bare_url(line) for line in lines if line and not line.startswith("#"))


def remember(path: Path, taken: frozenset[str]) -> frozenset[str]:
    """Add to the list of what is taken down, which is never shortened, and return it."""
    before = read_lines(path) if path.is_file() else frozenset()
    if not taken <= before:
        write_whole(path, "".join(f"{line}\n" for line in sorted(taken | before)).encode())
    return taken | before


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Be alone in a work folder: no other run, and no worker that a killed one left."""
    with owning(work.parent, "prep"), (work / WORKERS).open("w") as workers:
        seize(workers, f"{work}: found a worker of an earlier run that does not end, expected none", 30)
        fcntl.flock(workers, fcntl.LOCK_UN)
        for folder in (work, *(work / CLIPS).glob("*/")):
            remove_abandoned(folder)
        yield


@contextmanager
def books(work: Path) -> Iterator[tuple[Plan, Ledger]]:
    """Open what a work folder knows of its inputs."""
    with disk_errors(work), closing(Ledger(work / LEDGER)) as ledger, closing(Plan(work / PLAN, work / LEDGER)) as plan:
        yield plan, ledger


@contextmanager
def disk_errors(work: Path) -> Iterator[None]:
    """Raise as an OSError what SQLite says of a disk; of a full one it tells how to go on."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # Of a full disk SQLite may know no more than that writing failed.
        full = "full" in str(error) or shutil.disk_usage(work).free < 2**16
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


def check_settings(path: Path, wanted: Mapping[str, Any]) -> None:
    """Raise where a work folder was begun otherwise: clips made in two ways must not meet in one dataset."""
    before = flat(read_settings(path)) or flat(wanted)
    for key, value in flat(wanted).items():
        if before.get(key) != value:
            raise ValueError(f"{key}: found {value}, expected {before.get(key)} as in {path}, or another out")
    if not path.is_file():
        write_whole(path, json.dumps(wanted, indent=1).encode())


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a work folder was begun with, nothing where it was not."""
    return json.loads(path.read_text()) if path.is_file() else {}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def make_all(
    plan: Plan,
    ledger: Ledger,
    making: Making,
    taken: frozenset[str],
    retry: bool,
    run: Callable[[Callable, Sequence], Iterator[Answers]],
    progress: Progress,
) -> None:
    """Make the clips of all requests that have not ended, or with `retry` of those that failed for now."""
    Acquirer(making.folder / VIDEOS, making.root, **making.acquire)  # a mistake in its settings ends here
    if taken:
        down = plan.sources(retry).only(lambda request: is_taken(request, taken))
        ledger.record(Outcome(request.id, "filtered", "takedown") for request in list(down))
    sources, counts = plan.sources(retry), so_far(ledger.summary())
    counts["failed"] -= sources.requests if retry else 0
    inputs = sources.requests + sum(counts.values())
    progress(Step("make", inputs - sources.requests, inputs, counts=shown(counts)))
    with closing(run(partial(produce, making=making), sources)) as batches:
        for answers in batches:
            ended, parts = [], []
            for number, answer in answers:
                if isinstance(answer, Stop):
                    raise OSError(errno.ENOSPC, f"{answer.detail}; the same command goes on from here")
                if isinstance(answer, Lost):
                    reason = answer.reason if answer.reason in ("timeout", "crashed") else "unexpected"
                    # Those of its requests that ended before stay as they are.
                    ended += [Outcome(each.id, "failed", reason, True, answer.detail) for each in sources[number]]
                else:
                    ended.append(answer[0])
                    parts.append(answer[1])
            spent = total(parts)
            counts.update(outcome.status for outcome in ledger.record(ended, spent))
            made, read = spent.get("encode", Spent()), spent.get("fetch", Spent())
            counts.update(clips=made.items, read=read.bytes, written=made.bytes)
            done = sum(counts[status] for status in ("ok", "filtered", "failed"))
            progress(Step("make", done, inputs, counts=shown(counts)))
    shutil.rmtree(making.folder / VIDEOS)


def so_far(ledger: Mapping[str, Any]) -> Counter:
    """Return how many inputs ended in each way."""
    failed = sum(count for kinds in ledger["failed"].values() for count in kinds.values())
    return Counter(ok=ledger["ok"], filtered=sum(ledger["filtered"].values()), failed=failed)


def shown(counts: Counter) -> dict[str, int]:
    """Return counts as progress tells them: what is ok so far is made, and only then held against the rules."""
    names = ("clips", "read", "written", "filtered", "failed")
    return {"made": counts["ok"]} | {name: counts[name] for name in names}


def account(ledger: Mapping[str, Any], curated: dict[str, Any]) -> dict[str, Any]:
    """Return the summary: what the ledger says, with its ok inputs told apart by what the rules keep."""
    inputs = dict(curated.pop("inputs"))
    ok, filtered = inputs.pop("", 0), Counter(ledger["filtered"])
    filtered.update(inputs)
    return {**ledger, "ok": ok, "filtered": dict(sorted(filtered.items())), **curated}


def read_counts(said: Told) -> dict[str, Any]:
    """Return what a summary says of a reading of the source beyond the inputs."""
    counts = {"repeated": said.repeated, "updated": said.updated, "notes_left_out": dict(sorted(said.omitted.items()))}
    return {name: count for name, count in counts.items() if count}


def format_summary(summary: Mapping[str, Any], out: str | Path) -> str:
    """Return a summary as lines."""
    clips, shards = summary["clips"], summary["shards"]
    lines = [
        f"{summary['ok']:,} of {summary['inputs']:,} inputs ok: {clips['kept']:,} of {clips['made']:,} clips in "
        f"{shards['count']:,} shards, {shards['bytes'] / 2**20:.1f} MiB, in {out}"
    ]
    if "repeated" in summary:
        lines.append(f"{summary['repeated']:,} rows of inputs that other rows name too: their captions were joined")
    if "updated" in summary:
        lines.append(f"{summary['updated']:,} inputs updated: the source says something else of them than before")
    lines += [f"{count:,} notes left out: {name}" for name, count in summary.get("notes_left_out", {}).items()]
    lines += [f"{count:,} filtered: {reason}" for reason, count in summary["filtered"].items()]
    for reason, kinds in summary["failed"].items():
        lines += [f"{count:,} failed: {reason} ({kind})" for kind, count in kinds.items()]
    lines += [f"{summary['open']:,} not worked on yet"] * bool(summary["open"])
    lines += [f"{clips['without_caption']:,} clips have no caption"] * bool(clips.get("without_caption"))
    lines += [f"passed over: {Passed(summary['passed_over'])}"] * bool(summary.get("passed_over"))
    if "captions" in summary:
        lines += format_captions(summary["captions"])
    return "\n".join(map(printable, lines))


def format_captions(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of a summary about captions."""
    lines = [f"{found['captioned']:,} of {found['clips']:,} clips captioned by {found['origin']}"]
    lines += [f"{count:,} captions refused: {reason}" for reason, count in found["refused"].items()]
    for reason, kinds in found["failed"].items():
        lines += [f"{count:,} captions failed: {reason} ({kind})" for kind, count in kinds.items()]
    return lines + [f"{found['open']:,} captions not asked for yet"] * bool(found["open"])
