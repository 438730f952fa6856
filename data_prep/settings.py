"""The settings of a preparation, one record a subject; each is checked where it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.caption.policy import CaptionPolicy
from data_prep.choose.rules import Rules
from data_prep.cut.policy import MakePolicy
from data_prep.engine.local import Engine, Local
from data_prep.fetch.policy import FetchPolicy
from data_prep.rate.models import Models
from data_prep.sources.folder import read_folder
from data_prep.sources.reader import Reader
from videodiff.data.order.buckets import Bucket


@dataclass(frozen=True)
class Source:
    """What to read: a folder, or a file (or URL) of metadata.

    path: None reads nothing and writes the dataset again from the work folder; reader, options: the reader and its
    further arguments; root: folder or URL below which the videos lie, None for the folder of the source.
    """

    path: str | Path | None = None
    reader: Reader = read_folder
    root: str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RatePolicy:
    """The models that rate clips; gpus: of each process that runs them, 0 for one core each."""

    models: Models = field(default_factory=Models)
    gpus: float = 0.0


@dataclass(frozen=True)
class Output:
    """The dataset folder; buckets: the clips of each have shards of their own."""

    folder: Path
    shard_bytes: int = 256 * 2**20
    buckets: tuple[Bucket, ...] = ()

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes: found {self.shard_bytes}, expected at least 1")


@dataclass(frozen=True)
class Processes:
    """Where the work is done; this changes no byte of the result.

    workers: processes, None for one a core; timeout: seconds for one video.
    """

    engine: Engine = field(default_factory=Local)
    workers: int | None = None
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.timeout <= 0:
            raise ValueError(
                f"prep: found workers={self.workers} timeout={self.timeout}, expected at least 1 or null, above 0"
            )


@dataclass(frozen=True)
class Settings:
    """All settings of one preparation.

    retry: `failed` works only on requests and captions that failed and may be tried again, `all` also on the requests
    that failed for good; overrides: the overrides that the work folder stores for this call, None for none.
    """

    output: Output
    source: Source = field(default_factory=Source)
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    make: MakePolicy = field(default_factory=MakePolicy)
    rate: RatePolicy = field(default_factory=RatePolicy)
    caption: CaptionPolicy = field(default_factory=CaptionPolicy)
    rules: Rules = field(default_factory=Rules)
    processes: Processes = field(default_factory=Processes)
    retry: str | None = None
    overrides: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.retry not in (None, "failed", "all"):
            raise ValueError(f"prep: found retry={self.retry}, expected failed, all or null")
