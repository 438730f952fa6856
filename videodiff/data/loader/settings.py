"""The settings of a run's data: five records; their fields are the keys of `conf/data/folder.yaml`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

from videodiff.data.loader.captions import CaptionMix
from videodiff.data.order.buckets import Bucket
from videodiff.data.order.curriculum import Stage, check_keys, read_stages
from videodiff.data.storage.cache import Cache
from videodiff.data.video.decoders import decoder_named
from videodiff.planning.cost import Budget, Cost

BATCH_KEYS = ("micro_batches", "tokens")


@dataclass(frozen=True)
class Datasets:
    """The datasets: the folder or URL `root`, and `more`, a list of mappings with `root` and `repeat`.

    `repeat`: how often each sample of that dataset comes in an epoch. `weights` state shares of the drawn samples
    instead. Shards at a URL are cached in the folder `disk_cache`, up to `disk_cache_gib` GiB (None: no cache, each
    clip is read from the URL).
    """

    root: str
    more: Sequence[Mapping[str, Any]] = ()
    weights: Sequence[float] | None = None
    disk_cache: str | None = None
    disk_cache_gib: float = 64.0

    def __post_init__(self) -> None:
        for number, other in enumerate(self.more):
            check_keys(f"data.more[{number}]", other, ("root", "repeat"), needed=("root",))
        if self.weights is not None and any("repeat" in other for other in self.more):
            raise ValueError("data.weights: found a repeat in data.more too, expected weights or repeats")

    @property
    def roots(self) -> list[tuple[str, Fraction]]:
        """The root of each dataset, and how often its samples come in an epoch."""
        others = [(other["root"], Fraction(str(other.get("repeat", 1)))) for other in self.more]
        return [(self.root, Fraction(1)), *others]

    @cached_property
    def cache(self) -> Cache | None:
        """The disk cache, None without one."""
        return None if self.disk_cache is None else Cache(self.disk_cache, self.disk_cache_gib)


@dataclass(frozen=True)
class Shapes:
    """The shapes of training: `frames` frames, every `stride`-th one, of height x width.

    `buckets` replace this single shape: mappings with the arguments of `Bucket` and `global_batch`. `stages` follow one
    another by step, each with its own buckets, see `read_stages`. Clips that fit no shape are an error unless
    `skip_short`.
    """

    frames: int
    height: int
    width: int
    stride: int = 1
    buckets: Sequence[Mapping[str, Any]] | None = None
    stages: Sequence[Mapping[str, Any]] | None = None
    skip_short: bool = False

    def __post_init__(self) -> None:
        if self.stages is not None and self.buckets is not None:
            raise ValueError("data.buckets: found both buckets and data.stages, expected the buckets in the stages")

    @property
    def first(self) -> Bucket:
        """The single shape."""
        return Bucket(self.frames, self.height, self.width, strides=(self.stride,))

    @property
    def any_size(self) -> bool:
        """Whether only the number of frames decides which clips fit."""
        return self.buckets is None and self.stages is None

    @property
    def rules(self) -> list[Mapping[str, Any]]:
        """The stages; without `stages` there is one."""
        one = [{"frames": self.frames, "height": self.height, "width": self.width}]
        return [{"buckets": one if self.buckets is None else self.buckets}] if self.stages is None else [*self.stages]


@dataclass(frozen=True)
class Batches:
    """Batch sizes and order: `global_batch` clips per step over all processes, at most `micro_batch` at once in each.

    `micro_batch` None: the whole share of a process, see `micro_batches`. `batch`, a mapping with `micro_batches`
    and `tokens`, chooses the global batch of each bucket so that all steps take equal time by the `cost` of a clip, see
    `Budget`. `seed` and `window` determine the order; `window` is the number of shards that are shuffled together
    (None: all).
    """

    global_batch: int = 16
    micro_batch: int | None = None
    batch: Mapping[str, int] | None = None
    cost: Callable[[Bucket], Cost] | None = None
    seed: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        if self.batch is None:
            return
        check_keys("data.batch", self.batch, BATCH_KEYS, needed=BATCH_KEYS)
        if self.micro_batch is not None:
            raise ValueError(
                f"data.batch: found beside data.micro_batch={self.micro_batch}, expected data.micro_batch=null, as the "
                "batch decides what a process takes at once"
            )
        if self.cost is None:
            raise ValueError("data.batch: found no cost of a clip, expected one to plan the batches by")

    @property
    def budget(self) -> Budget | None:
        """The budget of a step, None if the global batch is given."""
        return None if self.batch is None else Budget(**self.batch, cost=self.cost)

    @property
    def count(self) -> int | None:
        """The micro-batches of a step over all processes, None if the limit `micro_batch` decides."""
        return None if self.batch is None else self.batch["micro_batches"]

    def planned(self, datasets: Datasets, shapes: Shapes) -> list[Stage]:
        """Return the stages of a run."""
        budget = self.budget
        rules = [{"weights": datasets.weights, **stage} for stage in shapes.rules]
        sizes = budget.sizes if budget else lambda buckets: [self.global_batch] * len(buckets)
        return read_stages(rules, len(datasets.roots), self.seed, shapes.stride, sizes)


@dataclass(frozen=True)
class Reading:
    """How clips are read, and what is delivered: video, latent, text.

    `num_workers` processes read ahead, with `timeout` seconds per clip. With 0 workers this process reads, and a
    hanging decoder hangs the run. `decoder`: see `decoders.DECODERS`. The run ends if one process cannot read more than
    `budget` clips; the file `quarantine` lists them. `cache_gib`: memory for decoded clips. With `fixed`, each clip
    always gives its first window and caption; else `captions`, arguments of `CaptionMix`, weigh the captions.
    """

    deliver: Sequence[str] = ("video",)
    decoder: str = "pyav"
    num_workers: int = 0
    timeout: float = 60.0
    budget: int = 100
    quarantine: str | None = None
    cache_gib: float = 0.0
    fixed: bool = False
    captions: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers: found {self.num_workers}, expected at least 0")
        decoder_named(self.decoder)

    @cached_property
    def mix(self) -> CaptionMix:
        """The weights of captions."""
        rules = (self.captions or {}).items()
        return CaptionMix(**{name: dict(rule) if isinstance(rule, Mapping) else rule for name, rule in rules})


@dataclass(frozen=True)
class Held:
    """Validation: the first `validation_clips` clips of `validation_root` (None: no validation).

    Each is used with its first window and caption, in the shape in which clips are sampled: see `usual`.
    """

    validation_root: str | None = None
    validation_clips: int = 64

    def __post_init__(self) -> None:
        if self.validation_clips < 1:
            raise ValueError(f"data.validation_clips: found {self.validation_clips}, expected at least 1")


def keys_of(records: Sequence[type], without: Collection[str]) -> list[Field]:
    """Return the fields of these records that configuration may set."""
    return [field for record in records for field in fields(record) if field.name not in without]


def built(records: Sequence[type], settings: Mapping[str, Any], without: Collection[str] = ()) -> list[Any]:
    """Return the records for these settings; a setting that is no field of theirs, or is in `without`, is an error."""
    known = {field.name for field in keys_of(records, without)}
    if strange := sorted(settings.keys() - known):
        raise TypeError(f"data.{strange[0]}: found no such key, expected some of {', '.join(sorted(known))}")
    parts = [{f.name: settings[f.name] for f in fields(record) if f.name in settings} for record in records]
    return [record(**part) for record, part in zip(records, parts, strict=True)]


def signature_of(records: Sequence[type], without: Collection[str] = ()) -> inspect.Signature:
    """Return the parameters behind `**settings`, for the schema of the configuration and for help()."""
    return inspect.Signature([parameter(field) for field in keys_of(records, without)])


def parameter(field: Field) -> inspect.Parameter:
    """Return a field of a record as a parameter."""
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
