"""Curate: which of the clips in a work folder become shards; nothing is decoded, so it may run again at any time.

The shards follow from the work folder and these rules alone: not from workers, restarts or the time of day.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.books.plan import Plan
from data_prep.books.request import ClipRequest
from data_prep.choose.filter import check_thresholds, filtered
from data_prep.produce import place_of
from data_prep.report.progress import Progress, silent, told
from data_prep.score.duplicate import BITS, near_duplicates
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.shards import ShardWriter, clip_sample, remove_shards
from videodiff.data.storage.files import replacing
from videodiff.data.video.info import VideoInfo

if TYPE_CHECKING:
    from data_prep.caption.asking import Captions
    from data_prep.score.rate import Ratings

SCORES = "scores.parquet"
Note = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """Which clips are kept.

    filter: see `stages.filter`; near: bits of 256 in which the hashes of near duplicates differ at most, None to keep
    them; licences: those allowed, None for any; taken: ids, names and sources that are taken down; ratings: the scores
    by models, which clips have that meet the other limits.
    """

    filter: dict[str, dict[str, float]] = field(default_factory=dict)
    near: int | None = None
    licences: Sequence[str] | None = None
    require_caption: bool = False
    taken: frozenset[str] = frozenset()
    ratings: Ratings | None = None

    def __post_init__(self) -> None:
        check_thresholds(self.filter)
        if self.near is not None and not 0 <= self.near <= BITS:
            raise ValueError(f"duplicates.near: found {self.near}, expected 0 to {BITS} or null")


def curate(
    plan: Plan,
    work: Path,
    out: Path,
    rules: Rules,
    shard_bytes: int,
    captions: Captions,
    buckets: Sequence[Bucket] = (),
    progress: Progress = silent,
    note_gone: Callable[[frozenset[str]], object] = lambda ids: None,
) -> dict[str, Any]:
    """Write shards, manifest and scores of the kept clips; return the counts of inputs and of clips.

    With `buckets` the clips of each lie in shards of their own: one shard of a bucket at most is not full. Where no
    clip is kept the dataset is removed: what is left out must not stay in old shards. `note_gone` is told the ids of
    clips that are taken down before their files are removed: another name or source of theirs brings none back.
    """
    reasons, counts = decide(plan, work, rules, captions, progress)
    kept, gone = counts["clips"]["kept"], []
    with scores_table(out / SCORES) as score, ShardWriter(out, shard_bytes) if kept else nullcontext() as shards:
        clips = told(clips_of(plan, work), progress, "pack", "clips", len(reasons))
        for (request, notes, clip), reason in zip(clips, reasons, strict=True):
            clip = rated(request, clip, rules)
            score(request, clip, reason)
            if not reason:
                add(shards, work, request, notes, clip, captions, buckets)
            elif reason == "takedown":
                gone.append(clip["id"])
    if not kept:
        remove_shards(out)
    # A scene in the spans of two inputs is one clip, and one of them may still have it.
    used = shards.keys if kept else set()
    gone = [id for id in gone if id not in used]
    note_gone(frozenset(gone))
    for id in gone:
        for ending in ("mp4", "m4a"):
            place_of(work, id, ending).unlink(missing_ok=True)
        captions.forget(id)
    counts["clips"]["without_caption"] = shards.without_caption if kept else 0
    written = shards.shards if kept else []
    counts["shards"] = {"count": len(written), "bytes": sum(shard["bytes"] for shard in written)}
    return counts


def clips_of(plan: Plan, work: Path) -> Iterator[tuple[ClipRequest, Note, Note]]:
    """Yield every clip in the work folder in the order of the inputs: its request, that one's notes, its own notes."""
    for request in plan.made():
        notes = json.loads(place_of(work, request.id, "json").read_bytes())
        for clip in notes["clips"]:
            yield request, notes, clip


def decide(
    plan: Plan, work: Path, rules: Rules, captions: Captions | None = None, progress: Progress = silent
) -> tuple[list[str], dict[str, Any]]:
    """Return why each clip is left out, empty where it is kept, and the counts; no rule asks for captions without them.

    An input is ok if a clip of it is kept, else it is filtered for the reason of its first clip. Memory: 100 bytes a
    clip, for its hashes.
    """
    reasons, digests, hashes, hashed, firsts, lost, last = [], bytearray(), bytearray(), bytearray(), [], 0, None
    for number, (request, notes, clip) in enumerate(told(clips_of(plan, work), progress, "choose", "clips")):
        if request.id != last:
            firsts.append(number)
            lost, last = lost + len(notes["lost"]), request.id
        clip = rated(request, clip, rules)
        reason = refused(request, clip, rules)
        if not reason and rules.require_caption and captions is not None and not captions.of(request, clip):
            reason = "no caption"
        reasons.append(reason)
        digests += bytes.fromhex(clip["sha256"])[:16]
        hashes += bytes.fromhex(clip["perceptual"] or "00" * (BITS // 8))
        hashed.append(bool(clip["perceptual"]))
    for number in repeated(reasons, digests):
        reasons[number] = "duplicate"
    if rules.near is not None:
        left = np.flatnonzero(left_in(reasons) & np.frombuffer(hashed, bool))
        table = np.frombuffer(hashes, np.uint8).reshape(-1, BITS // 8)[left]
        for number in left[near_duplicates(table, rules.near) >= 0]:
            reasons[number] = "near duplicate"
    inputs = Counter()
    for begin, end in pairwise([*firsts, len(reasons)]):
        inputs["" if "" in reasons[begin:end] else reasons[begin]] += 1
    return reasons, {
        "inputs": dict(sorted(inputs.items())),
        "clips": {
            "made": len(reasons),
            "kept": reasons.count(""),
            "filtered": dict(sorted(Counter(filter(None, reasons)).items())),
            "lost": lost,
        },
    }


def left_in(reasons: Sequence[str]) -> np.ndarray:
    """Return which clips no reason leaves out."""
    return np.fromiter((not reason for reason in reasons), bool, len(reasons))


def repeated(reasons: Sequence[str], digests: bytearray) -> np.ndarray:
    """Return the numbers of the clips that are left in and have the digest, 16 bytes, of an earlier one left in."""
    left = np.flatnonzero(left_in(reasons))
    found = np.frombuffer(digests, "V16")[left]
    return np.delete(left, np.unique(found, return_index=True)[1])


def rated(request: ClipRequest, clip: Note, rules: Rules) -> Note:
    """Return a clip with the scores by models among its own, None for those that it does not have."""
    if rules.ratings is None:
        return clip
    return clip | {"scores": clip["scores"] | rules.ratings.of(clip["id"], captions_of(request))}


def captions_of(request: ClipRequest) -> list[str]:
    """Return the captions that the source gives."""
    return [caption.text for caption in request.captions]


def refused(request: ClipRequest, clip: Note, rules: Rules) -> str:
    """Return why a clip is left out whatever the others are, empty where it is not."""
    if is_taken(request, rules.taken) or clip["id"] in rules.taken:
        return "takedown"
    if rules.licences is not None and request.licence not in rules.licences:
        return "licence"
    try:
        found = filtered(clip["scores"], rules.filter)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    return found.reason if found else ""


def is_taken(request: ClipRequest, taken: frozenset[str]) -> bool:
    """Tell whether a request is taken down: its id, its source, its video's id or its clip's name."""
    return not taken.isdisjoint({request.id, request.source, request.parent, request.name} - {""})


def add(
    writer: ShardWriter,
    work: Path,
    request: ClipRequest,
    notes: Note,
    clip: Note,
    captions: Captions,
    buckets: Sequence[Bucket],
) -> None:
    """Add a clip to the shards, with where it comes from and how it was made."""
    video, info = place_of(work, clip["id"], "mp4").read_bytes(), VideoInfo(**clip["info"])
    texts = captions.of(request, clip)
    told = [caption.text for caption in texts]
    members, row = clip_sample(video, info, told, request.source, request.licence, request.notes.get("truth"))
    provenance = {
        "span": clip["span"],
        "part": request.part and request.part.name,
        "parent": request.parent,
        "name": request.name,
        **captions.provenance(texts),
        "video_sha256": notes["video_sha256"],
        "times": clip["times"],
        "box": clip["box"],
        **clip.get("color", {}),
        "deinterlaced": clip.get("deinterlaced", False),
        # Of `auto` it is told what came of it.
        "parameters": notes["parameters"] | {"encode": notes["parameters"]["encode"] | {"codec": clip["codec"]}},
    }
    if sound := clip.get("audio"):
        provenance["audio"] = sound
        if "lost" not in sound:
            members["m4a"] = place_of(work, clip["id"], "m4a").read_bytes()
    members["json"] = json.dumps(json.loads(members["json"]) | provenance).encode()
    scores = {f"score_{name}": value for name, value in clip["scores"].items()}
    writer.add(clip["id"], members, row | scores, bucket_of(info, buckets))


def bucket_of(info: VideoInfo, buckets: Sequence[Bucket]) -> str:
    """Return the first bucket that a clip fits, as a name; `none` where it fits none, empty where there are none."""
    fitting = (bucket for bucket in buckets if bucket.fits(info.frames, info.height, info.width))
    bucket = next(fitting, None)
    return f"{bucket.frames}x{bucket.height}x{bucket.width}" if bucket else "none" if buckets else ""


@contextmanager
def scores_table(path: Path, batch: int = 10_000) -> Iterator[Callable[[ClipRequest, Note, str], None]]:
    """Open a table of one row a clip, kept or not: ids, source, span, why it is left out, hashes and all scores.

    Gives what appends a clip; all have scores of the same names. The table takes its name at the clean end.
    """
    fixed = {"id": "", "input": "", "source": "", "start": 0.0, "end": 0.0, "reason": "", "sha256": "", "hash": ""}
    rows, table = [], None

    def flush() -> None:
        nonlocal rows, table
        if table is None:
            types = [(n, pa.string() if isinstance(v, str) else pa.float64()) for n, v in fixed.items()]
            scores = sorted(rows[0].keys() - fixed) if rows else []
            table = pq.ParquetWriter(file, pa.schema([*types, *((name, pa.float64()) for name in scores)]))
        table.write_table(pa.Table.from_pylist(rows, schema=table.schema))
        rows = []

    def add(request: ClipRequest, clip: Note, reason: str) -> None:
        values = [clip["id"], request.id, request.source, *clip["span"], reason, clip["sha256"], clip["perceptual"]]
        scores = {f"score_{name}": value for name, value in clip["scores"].items()}
        rows.append(dict(zip(fixed, values, strict=True)) | scores)
        if len(rows) == batch:
            flush()

    with replacing(path) as file:
        try:
            yield add
            flush()
        finally:
            if table is not None:
                table.close()
