"""The settings of streamed tars: the records of `data.loader.settings` with what tars need beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videodiff.data.loader.settings import Batches, Held, Reading, Shapes
from videodiff.data.tars.source import find_tars


@dataclass(frozen=True)
class Tars:
    """The tars of training, and how their samples are mixed.

    `urls`: a folder, a pattern (*, {000..123}), a URL, or a list of these; with `pipes` also commands, `pipe:...`. Tars
    are split between ranks, and between the `readers` of a rank; each reader shuffles in a buffer of `shuffle` samples.
    Each tar comes once per epoch, or at random with `resampled`. The run ends if no sample arrives in `wait` seconds.
    """

    urls: str | Sequence[str]
    shuffle: int = 1000
    resampled: bool = False
    readers: int = 1
    wait: float = 300.0
    pipes: bool = False

    def __post_init__(self) -> None:
        if self.readers < 1:
            raise ValueError(f"data.readers: found {self.readers}, expected at least 1")


@dataclass(frozen=True)
class TarHeld(Held):
    """Validation by a dataset with a manifest, as in `Held`, or by the first clips of the tars `validation_urls`."""

    validation_urls: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_urls is not None and self.validation_root is not None:
            raise ValueError("data.validation_urls: found data.validation_root too, expected only one of them")

    def tars(self, pipes: bool) -> list[str] | None:
        """Return the tars for validation, None if there are none."""
        return None if self.validation_urls is None else find_tars(self.validation_urls, pipes, "data.validation_urls")


RECORDS = (Tars, Shapes, Batches, Reading, TarHeld)
# Without an index there are no stages, no batches by cost and no window of shards; tars hold no latents.
NEED_A_MANIFEST = ("stages", "skip_short", "batch", "cost", "window", "deliver", "cache_gib")
