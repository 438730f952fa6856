"""Checks before the first step: captions that the encoder refuses, and a disk cache that is too small."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from videodiff.data.loader.captions import CaptionMix
from videodiff.data.loader.clips import Clips
from videodiff.data.loader.wording import check_captions
from videodiff.data.samples.manifest import Manifest
from videodiff.data.storage.cache import CachedFolder
from videodiff.words import count_text


def check_texts(roots: Sequence[str], training: Sequence[Clips], mix: CaptionMix, text: nn.Module | None) -> list[str]:
    """Raise if training may draw a caption that the encoder refuses; return remarks for the user.

    `roots`: the root of each dataset, by index; `text`: None if captions come encoded.
    """
    said: list[str] = []
    for index, root in enumerate(roots):
        own = [clips for clips in training if clips.dataset == index]
        said += dict.fromkeys(f"{root}: {line}" for clips in own for line in clips.said)
        if own and text is not None:
            said += check_captions(own, mix, text)
    return said


def check_room(manifest: Manifest, shards: int) -> None:
    """Raise if the disk cache of a remote dataset cannot hold so many shards: they would evict one another."""
    if isinstance(manifest.root, CachedFolder):
        sizes = sorted((shard["bytes"] for shard in manifest.shards), reverse=True)
        room, needed = manifest.root.cache.bytes, sum(sizes[:shards])
        if needed > room:
            raise ValueError(
                f"disk_cache_gib: found {room / 2**30:.3g}, expected at least {needed / 2**30:.3g} for "
                f"{count_text(shards, 'shard')} of {manifest.root} that are read at once, or a smaller data.window"
            )
