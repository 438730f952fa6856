"""What is in a dataset, in numbers a person can read at a glance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from videodiff.data.manifest import Manifest
from videodiff.data.shards import read_captions, read_sample
from videodiff.text.words import split_words


def describe_dataset(root: str | Path, captions_read: int = 2000) -> dict[str, Any]:
    """Return counts, sizes and captions of a dataset; captions are read from at most `captions_read` samples.

    `caption_words` is (fewest, median, most) words a caption, `top_words` the most frequent words and the share of
    captions that have them; both are of the captions read, spread evenly over the dataset.
    """
    manifest = Manifest.load(root)
    chosen = np.unique(np.linspace(0, len(manifest) - 1, min(captions_read, len(manifest))).astype(int))
    captions = [caption for index in chosen for caption in captions_of(manifest, int(index))]
    words = [split_words(caption) for caption in captions]
    lengths = [len(w) for w in words] or [0]
    share = Counter(word for w in words for word in set(w))
    return {
        "root": str(root),
        "samples": len(manifest),
        "shards": len(manifest.shards),
        "bytes": sum(shard["bytes"] for shard in manifest.shards),
        "hours": float(manifest.column("duration").sum()) / 3600,
        "sizes": counts(f"{w}x{h}" for w, h in zip(manifest.column("width"), manifest.column("height"), strict=True)),
        "fps": counts(f"{fps:.4g}" for fps in manifest.column("fps")),
        "frames": counts(manifest.column("frames").tolist()),
        "sources": counts(manifest.column("source").tolist()),
        "licences": counts(manifest.column("licence").tolist()),
        "captions": int(manifest.column("captions").sum()),
        "without_caption": int((manifest.column("captions") == 0).sum()),
        "caption_words": (min(lengths), float(np.median(lengths)), max(lengths)),
        "top_words": {word: n / len(captions) for word, n in share.most_common(12)},
        "first_captions": captions[:3],
        "fingerprint": manifest.fingerprint,
    }


def captions_of(manifest: Manifest, index: int) -> list[str]:
    """Return the captions of one sample."""
    return read_captions(read_sample(manifest.root, manifest.row(index), {"txt", "json"}))


def counts(values: Any) -> dict[Any, int]:
    """Return how often each value comes, the most frequent first."""
    return dict(Counter(values).most_common())


def format_description(description: dict[str, Any]) -> str:
    """Return the description as aligned lines."""
    d = description
    fewest, median, most = d["caption_words"]
    lines = [
        ("dataset", d["root"]),
        ("clips", f"{d['samples']:,} in {d['shards']} shards, {d['bytes'] / 2**20:,.1f} MiB, {length(d['hours'])}"),
        ("pixels", some(d["sizes"])),
        ("fps", some(d["fps"])),
        ("frames", some(d["frames"])),
        ("source", some(d["sources"])),
        ("licence", some(d["licences"])),
        (
            "captions",
            f"{d['captions']:,} of {fewest} to {most} words (median {median:g}); {d['without_caption']} missing",
        ),
        ("words", ", ".join(f"{word} {share:.0%}" for word, share in d["top_words"].items())),
        *(("", f'"{caption}"') for caption in d["first_captions"]),
        ("fingerprint", d["fingerprint"][:12]),
    ]
    return "\n".join(f"{name:<12}{text}".rstrip() for name, text in lines)


def length(hours: float) -> str:
    """Return a duration in the unit that fits it."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def some(found: dict[Any, int], limit: int = 4) -> str:
    """Return the most frequent values and how many more there are."""
    if set(found) <= {""}:
        return "not stated"
    shown = [f"{value if value != '' else 'not stated'} ({n:,})" for value, n in list(found.items())[:limit]]
    return ", ".join(shown) + (f" and {len(found) - limit} more" if len(found) > limit else "")
