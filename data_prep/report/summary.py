"""The summary of a preparation: what became of every input, as `summary.json` holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_prep.books.ledger import Ends
from data_prep.books.reading import Reading
from videodiff.data.storage.address import printable
from videodiff.data.storage.files import write_whole
from videodiff.data.storage.listing import Passed
from videodiff.words import count_text

SUMMARY = "summary.json"


@dataclass
class ClipCounts:
    """Clips made and kept, those left out by reason, spans that gave no clip, kept clips without a caption."""

    made: int = 0
    kept: int = 0
    filtered: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    without_caption: int = 0


@dataclass
class ShardCounts:
    """How many shards there are, and their bytes."""

    count: int = 0
    bytes: int = 0


@dataclass
class CaptionCounts:
    """The clips that were to be captioned: `clips` is the sum of captioned, refused, failed and open.

    captioner: what the captions follow from; stopped: why captioning ended early, empty where it did not.
    """

    origin: str
    clips: int
    captioned: int
    refused: dict[str, int]
    failed: dict[str, dict[str, int]]
    open: int
    captioner: dict[str, Any]
    stopped: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the counts; `stopped` is there only where it says something."""
        fields = asdict(self)
        return fields if self.stopped else {name: value for name, value in fields.items() if name != "stopped"}


@dataclass
class Summary:
    """What a preparation tells at its end; each phase puts its own counts here.

    An input is a request of the source: one span, or one whole video. Where scenes are looked for it gives any number
    of clips: it is ok if one of them is kept, else filtered for the reason of its first clip. passed_over: files of the
    source that are no inputs, by kind; more: what phases add that are not known here.
    """

    ends: Ends = field(default_factory=Ends)
    clips: ClipCounts = field(default_factory=ClipCounts)
    shards: ShardCounts = field(default_factory=ShardCounts)
    reading: Reading = field(default_factory=Reading)
    captions: CaptionCounts | None = None
    passed_over: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON can hold it."""
        captions = {} if self.captions is None else {"captions": self.captions.to_json()}
        counts = {"clips": asdict(self.clips), "shards": asdict(self.shards)}
        counts |= self.reading.to_json() | captions | {"passed_over": self.passed_over}
        return asdict(self.ends) | counts | self.more

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Summary:
        """Return the summary that `to_json` gave, in this version or an earlier one."""
        captions = CaptionCounts(**said["captions"]) if "captions" in said else None
        known = ("clips", "shards", "captions", "passed_over", *Reading.KEYS)
        ends = ("inputs", "ok", "filtered", "failed", "open")
        return cls(
            Ends(**{name: said[name] for name in ends}),
            ClipCounts(**said["clips"]),
            ShardCounts(**said["shards"]),
            Reading.from_json(said),
            captions,
            dict(said.get("passed_over", {})),
            {name: value for name, value in said.items() if name not in (*known, *ends)},
        )

    def write(self, out: Path) -> None:
        """Write `summary.json` into the folder of a dataset."""
        write_whole(out / SUMMARY, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @classmethod
    def read(cls, out: Path) -> Summary:
        """Return the summary of a dataset."""
        return cls.from_json(json.loads((out / SUMMARY).read_bytes()))


def format_summary(
    summary: Summary, out: str | Path, examples: Mapping[tuple[str, str], str] = MappingProxyType({})
) -> str:
    """Return a summary as lines; examples: an input that failed, by class and kind, and why."""
    ends, clips, shards, reading = summary.ends, summary.clips, summary.shards, summary.reading
    lines = [
        f"{ends.ok:,} of {count_text(ends.inputs, 'input')} ok: {clips.kept:,} of {count_text(clips.made, 'clip')} in "
        f"{count_text(shards.count, 'shard')}, {shards.bytes / 2**20:.1f} MiB, in {out}"
    ]
    if reading.repeated:
        lines.append(
            f"{count_text(reading.repeated, 'row repeats', 'rows repeat')} the input of another row: captions were "
            "joined"
        )
    if reading.updated:
        lines.append(f"{count_text(reading.updated, 'input')} updated: metadata in the source has changed")
    if reading.changed:
        names = ", ".join(reading.changed_files) + ", ..." * (reading.changed > len(reading.changed_files))
        lines.append(
            f"{count_text(reading.changed, 'file')} with another size or time than when worked on: {names}; what was "
            "made stays, for new content choose another out"
        )
    lines += [f"{count_text(count, 'note')} left out: {name}" for name, count in reading.omitted.items()]
    lines += [f"{count:,} filtered: {reason}" for reason, count in ends.filtered.items()]
    for reason, kind, count in failures(ends.failed):
        example = examples.get((reason, kind))
        lines.append(f"{count:,} failed: {reason} ({kind})" + (f"; the first one: {example}" if example else ""))
    lines += [f"{ends.open:,} not worked on yet"] * bool(ends.open)
    lines += [f"{count_text(clips.without_caption, 'clip has', 'clips have')} no caption"] * bool(clips.without_caption)
    lines += [f"passed over: {Passed(summary.passed_over)}"] * bool(summary.passed_over)
    lines += format_captions(summary.captions) if summary.captions else []
    return "\n".join(map(printable, lines))


def nothing_kept(summary: Summary, out: str | Path) -> str:
    """Return a line on why there is no dataset and what may help; empty where a clip is kept."""
    ends, clips = summary.ends, summary.clips
    if clips.kept:
        return ""
    failed = failures(ends.failed)
    counts = {
        "filtered": sum(ends.filtered.values()),
        "failed": sum(count for *_, count in failed),
        "not worked on yet": ends.open,
    }
    told = ", ".join(f"{count:,} {how}" for how, count in counts.items() if count)
    advice = {
        "other limits (prep.filter), or prep=all, keep more": clips.made,
        "retry=failed works again on what may succeed now": any(kind == "retryable" for _, kind, _ in failed),
        "retry=all works again on inputs that you have mended": any(kind == "permanent" for _, kind, _ in failed),
    }
    help = "".join(f"; {line}" for line, holds in advice.items() if holds)
    found = count_text(ends.inputs, "input") + f" ({told})" * bool(told)
    return f"no clip is kept of {found}, so {out} is no dataset{help}"


def format_captions(found: CaptionCounts) -> list[str]:
    """Return the lines of a summary about captions."""
    lines = [f"{found.captioned:,} of {count_text(found.clips, 'clip')} captioned by {found.origin}"]
    lines += [f"{count_text(count, 'caption')} refused: {reason}" for reason, count in found.refused.items()]
    lines += [
        f"{count_text(count, 'caption')} failed: {reason} ({kind})" for reason, kind, count in failures(found.failed)
    ]
    return lines + [f"{count_text(found.open, 'caption')} not asked for yet"] * bool(found.open)


def failures(failed: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, int]]:
    """Return class, kind (retryable, permanent) and count of what failed."""
    return [(reason, kind, count) for reason, kinds in failed.items() for kind, count in kinds.items()]
