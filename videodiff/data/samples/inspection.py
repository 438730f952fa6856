"""Summarize a dataset in numbers that a person reads at a glance: one pass over its manifest, by row group."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from videodiff.data.order.buckets import Bucket, kinds_of, misfits
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.samples.shards import texts_of
from videodiff.data.storage.address import printable
from videodiff.words import count_text, split_words

COLUMNS = ("frames", "height", "width", "fps", "duration", "captions", "source", "licence")
# At most so many different values of a column are counted; beyond that the rarest are dropped.
VALUES = 100_000
# Characters of a caption that are shown.
LINE = 200
# Captions are read from few shards, because reading one row reads its whole row group.
SHARDS_READ, THREADS = 32, 8


@dataclass
class Survey:
    """The result of one pass over the rows of a dataset.

    `kinds` are the kinds of sample, as `data.order` takes them, and `counts` the number of samples by shard and kind.
    `misfits` counts the samples that fit no bucket, by reason; `sources` and `licences` count the samples that fit.
    `frames`, `sizes` and `fps` count all samples. `longest`: the number of words of the longest caption, 0 where the
    manifest does not say.
    """

    samples: int = 0
    hours: float = 0.0
    captions: int = 0
    without_caption: int = 0
    longest: int = 0
    frames: Counter[int] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    fps: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    misfits: Counter[str] = field(default_factory=Counter)
    fitting: list[int] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    kinds: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def survey(manifest: Manifest, buckets: Sequence[Bucket] = (), any_size: bool = False) -> Survey:
    """Return what a dataset holds and which of its samples fit which bucket; one row group is in memory at a time.

    With `any_size` only the number of frames decides what fits, as in `Clips`.
    """
    found, kept, fitting = Survey(), [], np.zeros(len(buckets), dtype=np.int64)
    for start, table in row_groups(manifest):
        frames, height, width, fps, duration, captions = (table.column(name).to_numpy() for name in COLUMNS[:6])
        found.samples += len(table)
        found.hours += float(duration.sum()) / 3600
        found.captions += int(captions.sum())
        found.without_caption += int((captions == 0).sum())
        if manifest.counts_words:
            found.longest = max(found.longest, pc.max(table.column("words")).as_py() or 0)
        add(found.frames, frames)
        add(found.fps, fps, lambda rate: f"{rate:.4g}")
        add(found.sizes, width.astype(np.int64) << 32 | height, lambda size: f"{size >> 32}x{size & 0xFFFFFFFF}")
        shape = (frames,) if any_size else (frames, height, width)
        kinds = kinds_of(buckets, *shape) if buckets else np.ones(len(table), dtype=np.int64)
        fitting += np.array([np.count_nonzero(kinds >> bit & 1) for bit in range(len(buckets))], dtype=np.int64)
        used = table.filter(pa.array(kinds > 0))
        add(found.sources, sites(used.column("source")))
        add(found.licences, used.column("licence"))
        none = kinds == 0
        found.misfits.update(misfits(buckets, *(column[none] for column in shape)))
        # A shard may span row groups: count its samples of each kind in this row group.
        shard = np.searchsorted(manifest.starts, start + np.arange(len(table)), side="right") - 1
        pairs, count = np.unique(np.stack([shard, kinds])[:, ~none], axis=1, return_counts=True)
        kept.append(np.concatenate([pairs, count[None]]))
    shard, kinds, count = np.concatenate(kept, axis=1)
    found.kinds, column = np.unique(kinds, return_inverse=True)
    found.counts = np.zeros((len(manifest.counts), len(found.kinds)), dtype=np.int64)
    np.add.at(found.counts, (shard, column), count)
    found.fitting = fitting.tolist()
    return found


def row_groups(manifest: Manifest) -> Iterator[tuple[int, pa.Table]]:
    """Yield the index of the first row of each row group, and its columns."""
    for group, start in enumerate(manifest.groups[:-1].tolist()):
        yield start, manifest.read_groups([group], [*COLUMNS, *(["words"] if manifest.counts_words else [])])


def add(counter: Counter[Any], values: Any, name: Any = lambda value: value) -> None:
    """Count values under their names; beyond `VALUES` different ones the rarer half is dropped."""
    if isinstance(values, np.ndarray):
        pairs = zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True)
    else:
        pairs = ((pair["values"], pair["counts"]) for pair in pc.value_counts(values).to_pylist())
    for value, count in pairs:
        counter[name(value)] += count
    if len(counter) > VALUES:
        for value, _ in counter.most_common()[VALUES // 2 :]:
            del counter[value]


def sites(sources: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the site of each source: the host of a URL, the first folder of a path, else the whole text."""
    hosts = pc.replace_substring_regex(sources, r"(?s)^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?([^/?#]*).*$", r"\1")
    return pc.replace_substring_regex(hosts, r"^([^/]+)/.*$", r"\1/")


def damaged_shards(manifest: Manifest) -> list[str]:
    """Read every shard as a whole; return one line for each whose sha256 is wrong or that cannot be read."""

    def problem(shard: dict[str, Any]) -> str | None:
        try:
            with (manifest.root / shard["name"]).open("rb") as file:
                found = hashlib.sha256()
                while block := file.read(2**20):
                    found.update(block)
        except (OSError, ManifestError) as error:
            return f"{shard['name']}: {error}"
        same = found.hexdigest() == shard["sha256"]
        return None if same else f"{shard['name']}: sha256 {found.hexdigest()[:12]}, expected {shard['sha256'][:12]}"

    with ThreadPoolExecutor(THREADS) as pool:
        return list(filter(None, pool.map(problem, manifest.shards)))


def some_captions(manifest: Manifest, most: int) -> list[str]:
    """Return the captions of up to `most` samples, spread evenly over up to `SHARDS_READ` shards."""
    shards = np.unique(np.linspace(0, len(manifest.counts) - 1, min(SHARDS_READ, len(manifest.counts))).astype(int))
    chosen = [index for n in shards for index in range(manifest.starts[n], manifest.starts[n + 1])]
    places = np.unique(np.linspace(0, len(chosen) - 1, min(most, len(chosen))).astype(int))
    rows = [manifest.row(chosen[place]) for place in places]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda row: texts_of(manifest.root, row), rows)
        return [caption.text for captions in found for caption in captions]


def describe_dataset(manifest: Manifest, found: Survey, captions_read: int = 1000) -> dict[str, Any]:
    """Return counts, sizes and captions of a dataset; captions are read from at most `captions_read` samples.

    `caption_words` is the (fewest, median, most) words per caption. `top_words` are the most frequent words and the
    share of captions with each. Both describe the captions that were read.
    """
    captions = some_captions(manifest, captions_read)
    words = [split_words(caption) for caption in captions]
    lengths = [len(w) for w in words] or [0]
    share = Counter(word for w in words for word in set(w))
    return {
        "root": str(manifest.path.parent),
        "samples": found.samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard["bytes"] for shard in manifest.shards),
        "hours": found.hours,
        "sizes": dict(found.sizes.most_common()),
        "fps": dict(found.fps.most_common()),
        "frames": dict(found.frames.most_common()),
        "sources": dict(found.sources.most_common()),
        "licences": dict(found.licences.most_common()),
        "captions": found.captions,
        "without_caption": found.without_caption,
        "captions_read": len(captions),
        "caption_words": (min(lengths), float(np.median(lengths)), max(*lengths, found.longest)),
        "top_words": {word: n / len(captions) for word, n in share.most_common(12)},
        "first_captions": captions[:3],
        "encoded": {
            what: encoding_of(manifest.encoded[what]) for what in ("latent", "text") if what in manifest.encoded
        },
        "fingerprint": manifest.fingerprint,
    }


def shorten(caption: str) -> str:
    """Return the beginning of a caption that is too long for a line."""
    return caption if len(caption) <= LINE else f"{caption[:LINE]}..."


def encoding_of(record: Mapping[str, Any]) -> str:
    """Return which model made cached latents or text, and of which clips: in one line, whatever the manifest says."""
    asked = {name: record.get(name) for name in ("sizes", "stride", "frames")}
    of = [f"{name} {value}" for name, value in asked.items() if value is not None]
    return " ".join(f"by {record.get('of')}{''.join(f', {part}' for part in of)}".split())


def format_description(description: dict[str, Any]) -> str:
    """Return the description as aligned lines."""
    d = description
    fewest, median, most = d["caption_words"]
    lines = [
        ("dataset", d["root"]),
        ("clips", f"{d['samples']:,} in {count_text(d['shards'], 'shard')}, {size(d['bytes'])}, {length(d['hours'])}"),
        ("pixels", some(d["sizes"])),
        ("fps", some(d["fps"])),
        ("frames", some(d["frames"])),
        ("source", some(d["sources"])),
        ("licence", some(d["licences"])),
        (
            "captions",
            f"{d['captions']:,} of {fewest} to {most} words (median {median:g}, {d['captions_read']:,} read); "
            f"{count_text(d['without_caption'], 'clip has', 'clips have')} none",
        ),
        ("words", ", ".join(f"{word} {share:.0%}" for word, share in d["top_words"].items())),
        *(("", f'"{shorten(caption)}"') for caption in d["first_captions"]),
        *((what, text) for what, text in d["encoded"].items()),
        ("fingerprint", d["fingerprint"][:12]),
    ]
    return "\n".join(f"{name:<12}{text}".rstrip() for name, text in lines)


def format_fits(first: int, buckets: Sequence[Bucket], found: Sequence[Survey]) -> str:
    """Return one line: how many clips of a stage's datasets fit each bucket, how many fit none, and why."""
    total, counted = sum(s.samples for s in found), sum(int(s.counts.sum()) for s in found)
    fits = [f"{sum(s.fitting[n] for s in found):,} fit {bucket}" for n, bucket in enumerate(buckets)]
    reasons = sum((s.misfits for s in found), Counter())
    none = f"{total - counted:,} of {total:,} fit none" + (f": {some(dict(reasons.most_common()))}" if reasons else "")
    return f"{f'step {first:,} on':<12}{', '.join(fits)}; {none}"


def format_shares(names: Sequence[str], often: Sequence[Fraction], found: Sequence[Survey]) -> str:
    """Return the shares of datasets, sources and licences among drawn samples; `often` repeats each dataset."""
    drawn = [float(times * int(s.counts.sum())) for times, s in zip(often, found, strict=True)]
    lines = [("drawn from", dict(zip(names, drawn, strict=True)))]
    for label, column in (("  source", "sources"), ("  licence", "licences")):
        shares: Counter[str] = Counter()
        for times, one in zip(often, found, strict=True):
            shares.update({name: float(times * n) for name, n in getattr(one, column).items()})
        lines.append((label, dict(shares.most_common())))
    return "\n".join(f"{label:<12}{percent(shares, sum(drawn))}" for label, shares in lines)


def percent(found: dict[str, float], total: float, limit: int = 6) -> str:
    """Return the largest shares of a total as text."""
    largest = list(found.items())[:limit]
    shown = [f"{printable(name) or 'not stated'} {amount / max(total, 1):.1%}" for name, amount in largest]
    return ", ".join(shown) + (f" and {len(found) - limit} more" if len(found) > limit else "")


def size(count: int) -> str:
    """Return a number of bytes as text, in a fitting unit."""
    return next(f"{count / unit:,.1f} {name}" for name, unit in UNITS.items() if count >= unit or name == "MiB")


UNITS = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20}


def length(hours: float) -> str:
    """Return a duration as text, in hours or minutes."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def some(found: dict[Any, int], limit: int = 4) -> str:
    """Return the first values with their counts, and how many more there are."""
    if set(found) <= {""}:
        return "not stated"
    shown = [f"{printable(str(value)) or 'not stated'} ({n:,})" for value, n in list(found.items())[:limit]]
    return ", ".join(shown) + (f" and {len(found) - limit} more" if len(found) > limit else "")
