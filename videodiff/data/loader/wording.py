"""Check before the first step whether the captions of a dataset fit the text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from videodiff.data.loader.captions import CaptionMix
from videodiff.data.loader.clips import Clips
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import WORDS, Text, texts_of
from videodiff.text.protocol import CaptionFault, TextEncoder, TokenEncoder, WordEncoder
from videodiff.words import count_text, parse_words, split_words

# Captions are read from at most READ samples on disk or READ_REMOTE at a URL, AT_ONCE at a time; messages name NAMED.
READ, READ_REMOTE, AT_ONCE, THREADS, NAMED = 10_000, 200, 256, 8, 3
# The largest max_words that a dataset can choose by itself; it decides the memory of every caption.
MOST_WORDS = 255


def check_captions(clips: Sequence[Clips], mix: CaptionMix, text: TextEncoder) -> list[str]:
    """Raise if training may draw a caption that the encoder refuses; return remarks for the user.

    `clips`: the clips of one dataset in all stages.
    """
    return check_words(clips, mix, text) if text.unit == "words" else count_cut(clips, mix, text)


def check_words(clips: Sequence[Clips], mix: CaptionMix, text: WordEncoder) -> list[str]:
    """Check the captions of one dataset for unknown words and length; raise if one is refused, return remarks."""
    manifest, most = clips[0].manifest, text.max_words - 1
    known = dataset_words(manifest)
    # If all words of the dataset are known, only long captions are suspect; else every caption is.
    suspects = rows_of(clips, -1 if known is None or text.strange(known) else most)
    read, faults = suspects[: readable(manifest)], {}
    long = strange = 0
    for key, captions in read_captions_of(manifest, read):
        drawn = drawable(captions, mix, clips[0].fixed)
        if fault := next(filter(None, map(text.fault, drawn)), None):
            faults[key] = fault
        if len(faults) == NAMED:
            break
        words = [split_words(caption) for caption in drawn]
        long += any(len(own) > most for own in words)
        strange += any(text.strange(own) for own in words)
    if faults:
        raise ValueError(refusal(manifest, faults))
    said = []
    if len(suspects) > len(read):
        # Otherwise training would end at the first step with such a caption.
        text.accept_all()
        unread = len(suspects) - len(read)
        said.append(
            f"{count_text(unread, 'clip')} with captions that were not read: words beyond {most} and unknown ones are "
            "lost"
        )
    if long:
        said.append(f"{count_text(long, 'clip has', 'clips have')} a caption of more than {most} words, which is cut")
    if strange:
        having = count_text(strange, "clip has", "clips have")
        said.append(f"{having} a caption with words that the encoder does not know and drops")
    return [f"{manifest.root}: {line}" for line in said]


def refusal(manifest: Manifest, faults: dict[str, CaptionFault]) -> str:
    """Return the error message: the clips with refused captions, the first reason, and the key that allows it."""
    (key, fault), *others = faults.items()
    also = f"; {', '.join(name for name, _ in others)} too" if others else ""
    remedy = "text.max_words=null takes the longest caption, text.long=cut cuts it"
    if fault.kind == "unknown":
        remedy = "text.vocabulary=null takes all words of the datasets, text.unknown=drop leaves this one out"
    return f"{manifest.root}: {key}: {fault.reason}{also} ({remedy})"


def count_cut(clips: Sequence[Clips], mix: CaptionMix, text: TokenEncoder) -> list[str]:
    """Read some captions of a dataset; return a remark on how many of them a frozen encoder cuts."""
    manifest, rows = clips[0].manifest, rows_of(clips, -1)
    rows = rows[:: max(len(rows) // AT_ONCE, 1)][:AT_ONCE]
    found = [drawable(captions, mix, clips[0].fixed) for _, captions in read_captions_of(manifest, rows)]
    lengths = text.tokens([caption for captions in found for caption in captions] or [""])
    long = [length for length in lengths if length > text.max_length]
    if not long:
        return []
    return [
        f"{manifest.root}: {len(long):,} of {len(lengths):,} captions read have more than text.max_length = "
        f"{text.max_length} tokens (the longest {max(long):,}) and are cut"
    ]


def fit_captions(captions: Sequence[str], text: TextEncoder) -> tuple[list[str], str]:
    """Return captions for measurement, without what the encoder does not take, and a remark on what is left out."""
    if text.unit != "words":
        return list(captions), ""
    fitted = [text.fit(caption) for caption in captions]
    changed = sum(one != other for one, other in zip(fitted, captions, strict=True))
    if not changed:
        return fitted, ""
    unknown = text.strange(word for caption in captions for word in split_words(caption))
    named = f" ({', '.join(unknown[:NAMED])}{', ...' if len(unknown) > NAMED else ''})" if unknown else ""
    return fitted, (
        f"{changed:,} of {len(captions):,} captions are longer than {text.max_words - 1} words or have words that "
        f"training does not know{named}, left out"
    )


def rows_of(clips: Sequence[Clips], most: int) -> list[int]:
    """Return the rows of a dataset that a stage may draw and that may have a caption of more than `most` words."""
    return sorted({row for own in clips for row in own.worded(most)})


def readable(manifest: Manifest) -> int:
    """Return the number of samples whose captions are read."""
    return READ if isinstance(manifest.root, Path) else READ_REMOTE


def drawable(captions: Sequence[Text], mix: CaptionMix, fixed: bool) -> list[str]:
    """Return the captions of a sample that training may take."""
    return [caption.text for caption in (captions[:1] if fixed else captions) if fixed or mix.weigh(caption)]


def read_captions_of(manifest: Manifest, rows: Iterable[int]) -> Iterator[tuple[str, list[Text]]]:
    """Yield the key and the captions of each of these rows."""

    def read(row: dict[str, Any]) -> tuple[str, list[Text]]:
        return row["key"], texts_of(manifest.root, row)

    rows = iter(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(rows, AT_ONCE)):
            yield from pool.map(read, [manifest.row(row) for row in some])


def dataset_words(manifest: Manifest) -> list[str] | None:
    """Return the words of all captions of a dataset, None if it does not list them."""
    path = manifest.path.parent / WORDS
    try:
        with path.open("rb") as file:
            return parse_words(file.read(), str(path))
    except FileNotFoundError:
        return None


def longest_caption(manifest: Manifest) -> int:
    """Return the number of words of the longest caption of a dataset, at most `MOST_WORDS`."""
    if manifest.counts_words and not np.isnan(words := manifest.column("words")).any():
        return min(int(words.max()), MOST_WORDS)
    if len(manifest) > readable(manifest):
        return MOST_WORDS
    read = (caption.text for _, captions in read_captions_of(manifest, range(len(manifest))) for caption in captions)
    return min(max((len(split_words(text)) for text in read), default=0), MOST_WORDS)
