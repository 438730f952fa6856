"""Figures: what the report of a preparation shows, gathered from its folder in memory that does not grow with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.books.begun import flat
from data_prep.books.ledger import Ledger
from data_prep.books.plan import Plan
from data_prep.books.work_folder import LEDGER, PLAN, SETTINGS, WORK, clip_file, read_json
from data_prep.choose.curate import SCORES
from data_prep.engine.stopwatch import Spent
from data_prep.report.summary import Summary
from videodiff.data.storage.address import without_secrets

BATCH, BINS = 65_536, 40
# Clips that are shown, kept and for each reason; reasons; rows of a table.
KEPT, LEFT, REASONS, ROWS = 12, 4, 16, 20
# Characters of an example of a failure, in the output of the call.
LINE = 200
# The range of a histogram follows from the first rows of so many row groups; this share of them is beyond an end.
GROUPS, HEAD, TAIL = 64, 4096, 0.005


class Histogram(NamedTuple):
    """How a score is spread: counts of kept and of left-out clips in equal bins from `low` to `high`.

    With `log` the bins are equal in the logarithm. What lies beyond an end is in the last bin there; `beyond` are those
    above; `least` and `most` are the extreme values; clips without the score are `missing`. limits: `min` and `max`
    where there are any.
    """

    name: str
    low: float
    high: float
    log: bool
    kept: np.ndarray
    left: np.ndarray
    limits: dict[str, float]
    beyond: int = 0
    missing: int = 0
    least: float = math.inf
    most: float = -math.inf

    @property
    def edges(self) -> np.ndarray:
        """The ends of the bins."""
        return (np.geomspace if self.log else np.linspace)(self.low, self.high, len(self.kept) + 1)


class Example(NamedTuple):
    """A clip to be shown: its mp4 and what is known of it."""

    path: Path
    id: str
    caption: str
    source: str
    span: tuple[float, float]
    scores: dict[str, float]


class Failure(NamedTuple):
    """Inputs of one host that failed for one reason, and what was found of the first of them."""

    reason: str
    retryable: bool
    host: str
    count: int
    detail: str
    place: str


class Machine(NamedTuple):
    """A machine: how many inputs ended there, and how many of them failed."""

    name: str
    ended: int
    failed: int


class Seconds(NamedTuple):
    """Seconds of video that were made and that are kept."""

    made: float
    kept: float


@dataclass(frozen=True)
class Figures:
    """What there is to show of a prepared dataset.

    unmade: inputs that were filtered before a clip was made, by reason; histograms: those with limits first; wall:
    clips by reason, kept ones under the empty reason; failures: most first; machines: most failures first; operations:
    the time of each operation; settings: dotted name to value.
    """

    summary: Summary
    unmade: dict[str, int]
    seconds: Seconds
    histograms: list[Histogram]
    wall: dict[str, list[Example]]
    failures: list[Failure]
    machines: list[Machine]
    operations: dict[str, Spent]
    settings: dict[str, Any]


def figures(out: str | Path, limits: Mapping[str, Mapping[str, float]]) -> Figures:
    """Return what there is to show of the dataset that `prep` made in `out` with these limits."""
    out = Path(out)
    work = out / WORK
    with (
        closing(Plan(work / PLAN, work / LEDGER)) as plan,
        closing(Ledger(work / LEDGER)) as ledger,
        pq.ParquetFile(out / SCORES, pre_buffer=False) as scores,
    ):
        return Figures(
            summary=Summary.read(out),
            unmade=ledger.ends().filtered,
            seconds=seconds(scores),
            histograms=histograms(scores, limits),
            wall=wall(scores, plan, work),
            failures=failures(plan),
            machines=machines(plan),
            operations=ledger.spent(),
            settings=flat(read_json(work / SETTINGS)),
        )


def score_names(scores: pq.ParquetFile) -> list[str]:
    """Return the columns that are scores."""
    return [name for name in scores.schema_arrow.names if name.startswith("score_")]


def seconds(scores: pq.ParquetFile) -> Seconds:
    """Return how much video was made and is kept."""
    made = kept = 0.0
    columns = ["reason", "score_duration"]
    for batch in scores.iter_batches(BATCH, columns=columns) if columns[1] in score_names(scores) else ():
        lengths = batch[columns[1]].to_numpy(zero_copy_only=False)
        made += np.nansum(lengths)
        kept += np.nansum(lengths[is_kept(batch)])
    return Seconds(float(made), float(kept))


def is_kept(batch: pa.RecordBatch) -> np.ndarray:
    """Return which rows have no reason to be left out."""
    return pc.equal(batch["reason"], "").to_numpy(zero_copy_only=False)


def histograms(scores: pq.ParquetFile, limits: Mapping[str, Mapping[str, float]], bins: int = BINS) -> list[Histogram]:
    """Return the histogram of every score: one look at a sample for the ranges, then one pass over all rows."""
    names = score_names(scores)
    sample = first_rows(scores, names)
    found = []
    for name in names:
        plain = name.removeprefix("score_")
        bounds = dict(limits.get(plain, {}))
        low, high, log = view(sample[name], list(bounds.values()))
        found.append(Histogram(plain, low, high, log, *np.zeros((2, bins), np.int64), bounds))
    for batch in scores.iter_batches(BATCH, columns=["reason", *names]) if names else ():
        kept = is_kept(batch)
        for number, histogram in enumerate(found):
            values = batch[f"score_{histogram.name}"].to_numpy(zero_copy_only=False)
            found[number] = add(histogram, values, kept)
    return sorted(found, key=lambda histogram: not histogram.limits)


def first_rows(scores: pq.ParquetFile, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the finite values in some rows from all over the file."""
    groups = np.unique(np.linspace(0, scores.num_row_groups - 1, min(GROUPS, scores.num_row_groups)).astype(int))
    heads = [next(scores.iter_batches(HEAD, row_groups=[int(group)], columns=names), None) for group in groups]
    found = {}
    for name in names:
        parts = [head[name].to_numpy(zero_copy_only=False) for head in heads if head is not None]
        values = np.concatenate([np.empty(0), *parts])
        found[name] = values[np.isfinite(values)]
    return found


def view(values: np.ndarray, limits: Sequence[float]) -> tuple[float, float, bool]:
    """Return the range to be drawn and whether in logarithms, as where a limit or the middle is close to nothing."""
    ends = [*(np.quantile(values, [TAIL, 1 - TAIL]) if len(values) else []), *limits]
    low, high = (float(min(ends)), float(max(ends))) if ends else (0.0, 1.0)
    positive = values[values > 0]
    middle = [float(np.median(positive))] if len(positive) else []
    anchor = min((x for x in [*limits, *middle] if x > 0), default=0.0)
    if low >= 0 and high / 1e9 < anchor < high / 20:
        least = float(np.quantile(positive, TAIL)) if len(positive) else anchor
        return max(min(anchor / 4, least), min(anchor / 4, high / 1e5)), high, True
    room = (high - low) / 40 or max(abs(high), 1) / 2
    return (low if low >= 0 and low - room < 0 else low - room), high + room, False


def add(histogram: Histogram, values: np.ndarray, kept: np.ndarray) -> Histogram:
    """Return a histogram with more values."""
    finite = np.isfinite(values)
    values, kept = (values, kept) if finite.all() else (values[finite], kept[finite])
    ends, bins = np.array([histogram.low, histogram.high]), len(histogram.kept)
    places = np.clip(values, *ends)
    if histogram.log:
        places, ends = np.log(places, out=places), np.log(ends)
    bin = ((places - ends[0]) * (bins / (ends[1] - ends[0]))).astype(np.int64).clip(0, bins - 1)
    left, right = np.bincount(bin + bins * kept, minlength=2 * bins).reshape(2, bins)
    return histogram._replace(
        kept=histogram.kept + right,
        left=histogram.left + left,
        beyond=histogram.beyond + int((values > histogram.high).sum()),
        missing=histogram.missing + len(finite) - len(values),
        least=float(min(histogram.least, values.min(initial=math.inf))),
        most=float(max(histogram.most, values.max(initial=-math.inf))),
    )


def wall(scores: pq.ParquetFile, plan: Plan, work: Path) -> dict[str, list[Example]]:
    """Return clips to be shown by reason, kept ones first, then the most frequent reasons.

    What was taken down is never shown; a clip that is not in the work folder is left out.
    """
    chosen, counts = choose(scores)
    chosen.pop("takedown", None)
    order = sorted(chosen, key=lambda reason: (reason != "", -counts[reason], reason))[:REASONS]
    shown = {}
    for reason in order:
        examples = (example(row, plan, work) for row in rows_at(scores, chosen[reason]))
        shown[reason] = [clip for clip in examples if clip.path.is_file()]
    return {reason: clips for reason, clips in shown.items() if clips}


def choose(scores: pq.ParquetFile) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return for each reason the rows of the clips whose ids come first, and how many clips there are.

    Ids are hashes, so this is a fair choice, and the same however often and wherever it is made.
    """
    first: dict[str, list[tuple[str, int]]] = {}
    counts: dict[str, int] = {}
    start = 0
    for batch in scores.iter_batches(BATCH, columns=["id", "reason"]):
        for reason in pc.unique(batch["reason"]).to_pylist():
            found, most = first.setdefault(reason, []), LEFT if reason else KEPT
            mask = pc.equal(batch["reason"], reason)
            counts[reason] = counts.get(reason, 0) + pc.sum(mask).as_py()
            if len(found) == most:
                mask = pc.and_(mask, pc.less(batch["id"], found[-1][0]))
            rows = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
            ids = batch["id"].take(pa.array(rows)).to_pylist()
            first[reason] = sorted([*found, *zip(ids, (rows + start).tolist(), strict=True)])[:most]
        start += len(batch)
    return {reason: [row for _, row in found] for reason, found in first.items()}, counts


def rows_at(scores: pq.ParquetFile, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the rows at these places."""
    ends = np.cumsum([scores.metadata.row_group(n).num_rows for n in range(scores.num_row_groups)])
    for place in places:
        group = int(np.searchsorted(ends, place, "right"))
        start = int(ends[group - 1]) if group else 0
        yield scores.read_row_group(group).slice(place - start, 1).to_pylist()[0]


def example(row: Mapping[str, Any], plan: Plan, work: Path) -> Example:
    """Return what is to be told of the clip of a row."""
    request = plan.find(row["input"])
    caption = request.captions[0].text if request.captions else ""
    scores = {name.removeprefix("score_"): value for name, value in row.items() if name.startswith("score_")}
    span = row["start"], row["end"]
    return Example(clip_file(work, row["id"], "mp4"), row["id"], caption, without_secrets(row["source"]), span, scores)


def failures(plan: Plan, most: int = ROWS) -> list[Failure]:
    """Return the failed inputs by class and host, most first."""
    plan.base.create_function("host_of", 1, host_of, deterministic=True)
    rows = plan.base.execute(
        "SELECT reason, retryable, host_of(video), count(*) AS inputs, detail, min(place) FROM ledger.ended "
        "JOIN ledger.inputs USING (id) LEFT JOIN numbers USING (id) "
        "LEFT JOIN requests ON requests.number = numbers.number WHERE status = 'failed' "
        "GROUP BY 1, 2, 3 ORDER BY inputs DESC, 1, 3 LIMIT ?",
        (most,),
    )
    return [
        Failure(reason, bool(again), host, count, without_secrets(detail), without_secrets(place))
        for reason, again, host, count, detail, place in rows
    ]


def examples(failed: Sequence[Failure]) -> dict[tuple[str, str], str]:
    """Return place and cause of one failed input for each class and kind, of the host where most failed."""
    found: dict[tuple[str, str], str] = {}
    for one in failed:
        kind = "retryable" if one.retryable else "permanent"
        found.setdefault((one.reason, kind), f"{one.place}: {one.detail}"[:LINE])
    return found


def host_of(video: str | None) -> str:
    """Return where a video of the plan comes from, for a line that never got into it where it stands itself."""
    if video is None:
        return "the metadata"
    source = json.loads(video)[0]
    return (urlsplit(source).hostname or "") if "://" in source else "local files"


def machines(plan: Plan, most: int = ROWS) -> list[Machine]:
    """Return the machines with the inputs that ended there and those that failed, most failures first."""
    rows = plan.base.execute(
        "SELECT host, count(*), sum(status = 'failed') AS failed FROM ledger.ended GROUP BY 1 "
        "ORDER BY failed DESC, 1 LIMIT ?",
        (most,),
    )
    return [Machine(*row) for row in rows]
