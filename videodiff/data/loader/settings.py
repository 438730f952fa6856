"""What the data of a run is made of: five records, whose fields are the keys of `conf/data/folder.yaml`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """Where clips lie: the folder or URL `root`, and `more`, each a mapping of root and how often an epoch has its
    samples (`repeat`); `weights` are their shares of the samples drawn, instead.

    Shards of a root that is a URL are kept in the folder `disk_cache`, at most `disk_cache_gib` of them (None: every
    clip is read from there).
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
            raise ValueError("data.weights: found a repeat in more beside it, expected one of the two")

    @property
    def roots(self) -> list[tuple[str, Fraction]]:
        """The roots of all datasets, and how often an epoch has the samples of each."""
        others = [(other["root"], Fraction(str(other.get("repeat", 1)))) for other in self.more]
        return [(self.root, Fraction(1)), *others]

    @cached_property
    def cache(self) -> Cache | None:
        """The disk cache, None without one."""
        return None if self.disk_cache is None else Cache(self.disk_cache, self.disk_cache_gib)


@dataclass(frozen=True)
class Shapes:
    """What is cut from clips: `frames` frames, one in `stride`, of height x width.

    `buckets`, mappings of `Bucket`'s arguments and `global_batch`, replace the one shape; `stages`, each with buckets
    of its own, follow one another by step: `read_stages`. Clips that fit no shape are an error unless `skip_short`.
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
            raise ValueError("data.buckets: found some beside data.stages, expected them in the stages")

    @property
    def first(self) -> Bucket:
        """The one shape."""
        return Bucket(self.frames, self.height, self.width, strides=(self.stride,))

    @property
    def any_size(self) -> bool:
        """Whether the number of frames alone decides which clips are taken."""
        return self.buckets is None and self.stages is None

    @property
    def rules(self) -> list[Mapping[str, Any]]:
        """The stages; what has none is one stage."""
        one = [{"frames": self.frames, "height": self.height, "width": self.width}]
        return [{"buckets": one if self.buckets is None else self.buckets}] if self.stages is None else [*self.stages]


@dataclass(frozen=True)
class Batches:
    """How many clips a step takes, over all processes, and how many a process takes at once (None: its whole share).

    `batch`, a mapping of `micro_batches` and `tokens`, gives each bucket the global batch that makes its step as long
    as the others by the `cost` of a clip: `Budget`. `seed` and `window`, the shards that are shuffled together (None:
    all), decide which clips these are.
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
        if self.micro_batch is not None or self.cost is None:
            raise ValueError(
                f"data.batch: found beside micro_batch={self.micro_batch} with cost={self.cost}, expected a cost only"
            )

    @property
    def budget(self) -> Budget | None:
        """What a step may take, None where the global batch is given."""
        return None if self.batch is None else Budget(**self.batch, cost=self.cost)

    def planned(self, datasets: Datasets, shapes: Shapes) -> tuple[list[Stage], int, int | None]:
        """Return the stages of a run, and its global batch and micro-batch of the one shape."""
        budget, whole, micro = self.budget, self.global_batch, self.micro_batch
        if budget is not None:
            (whole,) = budget.sizes([shapes.first])
            micro = whole // budget.micro_batches
        rules = [{"weights": datasets.weights, **stage} for stage in shapes.rules]
        sizes = budget.sizes if budget else lambda buckets: [whole] * len(buckets)
        stages = read_stages(rules, len(datasets.roots), self.seed, shapes.stride, sizes)
        found = {size for stage in stages for size in stage.batch_sizes}
        return stages, whole if budget is not None or whole in found else math.gcd(*found), micro


@dataclass(frozen=True)
class Reading:
    """How clips are read, and what of them is delivered: video, latent, text.

    `num_workers` processes read ahead, each clip within `timeout` seconds; with none this process reads, and a decoder
    that hangs hangs the run. `decoder`: see `decoders.DECODERS`. More than `budget` clips that a process cannot read
    end the run; `quarantine` is the file that names them. `cache_gib`: memory for clips that stay decoded.
    With `fixed`, each clip is trained on with its first window and caption only; else `captions`, arguments of
    `CaptionMix`, say which captions are taken how often.
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
        """Which captions are taken how often."""
        rules = (self.captions or {}).items()
        return CaptionMix(**{name: dict(rule) if isinstance(rule, Mapping) else rule for name, rule in rules})


@dataclass(frozen=True)
class Held:
    """The first `validation_clips` of `validation_root` (None: no validation), in order, each with its first window and
    caption, in the shape that clips are sampled in: see `usual`.
    """

    validation_root: str | None = None
    validation_clips: int = 64

    def __post_init__(self) -> None:
        if self.validation_clips < 1:
            raise ValueError(f"data.validation_clips: found {self.validation_clips}, expected at least 1")
