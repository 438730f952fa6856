"""The data of a run for Lightning: an endless training stream and a fixed validation set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property, partial
from itertools import islice
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from videodiff.data.loader.captions import CaptionMix, check_origins
from videodiff.data.loader.clips import Clips, Reader, Task
from videodiff.data.loader.quarantine import Quarantine
from videodiff.data.loader.stream import GlobalBatches, Loader, collate
from videodiff.data.loader.trained import Trained, trained_shapes, usual
from videodiff.data.loader.wording import check_captions, fit_captions, read_captions_of
from videodiff.data.loader.workers import LIFE, Read, Workers, read_here
from videodiff.data.order.arithmetic import Mesh, micro_batches, resume
from videodiff.data.order.buckets import Bucket, Cost
from videodiff.data.order.curriculum import Budget, check_keys, order_of, read_stages
from videodiff.data.order.mixture import Curriculum
from videodiff.data.samples.manifest import Manifest
from videodiff.data.storage.cache import Cache, CachedFolder


class ClipDataModule(lightning.LightningDataModule):
    """Deliver batches of clips; see `Reader` for the cache and what may be delivered, `Mixture` for the order.

    The state is the optimizer step, and the samples that could not be read: it fits any number of processes,
    micro-batches and workers, as long as seed, batches and datasets are the same. `micro_batch` None is the whole share
    of a process. `more` datasets, each a mapping of root and how often an epoch has its samples (`repeat`), join
    `root`; `weights` are their shares of the samples drawn, instead. `buckets`, mappings of `Bucket`'s arguments and
    `global_batch`, replace the one shape; `stages`, each with buckets of its own, follow one another by step:
    `read_stages`. `batch`, a mapping of `micro_batches` and `tokens`, gives each bucket the global batch that makes its
    step as long as the others by the `cost` of a clip: `Budget`. `window` shards are shuffled together (None: all).
    With `fixed`, each clip is trained on with its first window and caption only; else `captions`, arguments of
    `CaptionMix`, say which captions are taken how often. Validation takes the first `validation_clips` of
    `validation_root` (None: no validation), in order, with their first window and caption, in the shape that clips are
    sampled in: see `usual`.

    `num_workers` processes read ahead, each clip within `timeout` seconds; with none this process reads, and a decoder
    that hangs hangs the run. More than `budget` clips that a process cannot read end it; `quarantine` is the file that
    names them. Shards of a root that is a URL are kept in the folder `disk_cache`, at most `disk_cache_gib` of them
    (None: every clip is read from there).
    """

    def __init__(
        self,
        root: str,
        frames: int,
        height: int,
        width: int,
        stride: int = 1,
        global_batch: int = 16,
        micro_batch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_gib: float = 0.0,
        validation_root: str | None = None,
        validation_clips: int = 64,
        deliver: Sequence[str] = ("video",),
        skip_short: bool = False,
        fixed: bool = False,
        more: Sequence[Mapping[str, Any]] = (),
        buckets: Sequence[Mapping[str, Any]] | None = None,
        window: int | None = None,
        timeout: float = 60.0,
        budget: int = 100,
        quarantine: str | None = None,
        disk_cache: str | None = None,
        disk_cache_gib: float = 64.0,
        captions: Mapping[str, Any] | None = None,
        weights: Sequence[float] | None = None,
        stages: Sequence[Mapping[str, Any]] | None = None,
        batch: Mapping[str, int] | None = None,
        cost: Callable[[Bucket], Cost] | None = None,
    ) -> None:
        super().__init__()
        if num_workers < 0 or validation_clips < 1:
            raise ValueError(
                f"found num_workers={num_workers} validation_clips={validation_clips}, expected >= 0, >= 1"
            )
        self.root, self.validation_root, self.validation_clips = root, validation_root, validation_clips
        self.global_batch, self.micro_batch, self.num_workers = global_batch, micro_batch, num_workers
        self.seed, self.cache_gib, self.fixed, self.loaded_step = seed, cache_gib, fixed, 0
        self.deliver, self.skip_short, self.window = tuple(deliver), skip_short, window
        self.timeout, self.quarantine = timeout, Quarantine(quarantine, budget)
        plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in (captions or {}).items()}
        self.captions = CaptionMix(**plain)
        self.disk_cache = None if disk_cache is None else Cache(disk_cache, disk_cache_gib)
        for number, other in enumerate(more):
            check_keys(f"data.more[{number}]", other, ("root", "repeat"), needed=("root",))
        self.roots = [(root, Fraction(1)), *((other["root"], Fraction(str(other.get("repeat", 1)))) for other in more)]
        self.shape, self.fit_text = Bucket(frames, height, width, strides=(stride,)), None
        self.any_size = buckets is None and stages is None
        budget = None
        if batch is not None:
            check_keys("data.batch", batch, ("micro_batches", "tokens"), needed=("micro_batches", "tokens"))
            if micro_batch is not None or cost is None:
                raise ValueError(
                    f"data.batch: found beside micro_batch={micro_batch} with cost={cost}, expected a cost only"
                )
            budget = Budget(**batch, cost=cost)
            (self.global_batch,) = budget.sizes([self.shape])
            self.micro_batch = self.global_batch // budget.micro_batches
        if stages is not None and buckets is not None:
            raise ValueError("data.buckets: found some beside data.stages, expected them in the stages")
        if weights is not None and any("repeat" in other for other in more):
            raise ValueError("data.weights: found a repeat in more beside it, expected one of the two")
        one = [{"frames": frames, "height": height, "width": width}] if buckets is None else buckets
        stages = [{"buckets": one}] if stages is None else stages
        stages = [{"weights": weights, **stage} for stage in stages]
        self.stages = read_stages(stages, len(self.roots), seed, stride, self.global_batch, budget)
        sizes = {size for stage in self.stages for size in stage.batch_sizes}
        if budget is None and self.global_batch not in sizes:
            self.global_batch = math.gcd(*sizes)

    @cached_property
    def manifests(self) -> list[Manifest]:
        """The manifests of the training datasets, opened at first use."""
        return [Manifest.load(root, self.disk_cache) for root, _ in self.roots]

    @cached_property
    def training(self) -> list[Clips]:
        """The training clips of each dataset of the first stage, then of the next; each draws by a seed of its own."""
        how = {"fixed": self.fixed, "skip": self.skip_short, "any_size": self.any_size, "deliver": self.deliver}
        check_origins(self.captions, [manifest.caption_origins for manifest in self.manifests])
        return [
            Clips(self.manifests[number], stage.buckets, stage.seed + number, number, **how)
            for stage in self.stages
            for number in stage.datasets
        ]

    @cached_property
    def order(self) -> Curriculum:
        """The order of the training clips."""
        counts, often = [(clips.counts, clips.kinds) for clips in self.training], [repeat for _, repeat in self.roots]
        order = order_of(self.stages, counts, often, self.window)
        if any(isinstance(manifest.root, CachedFolder) for manifest in self.manifests):
            for clips, shards in zip(self.training, order.open_shards(), strict=True):
                check_room(clips.manifest, shards)
        return order

    @cached_property
    def reader(self) -> Reader:
        """What reads the training clips, here or in a worker."""
        roots = [manifest.root for manifest in self.manifests]
        return Reader(roots, self.deliver, self.cache_gib / max(self.num_workers, 1), self.captions)

    @cached_property
    def workers(self) -> Workers:
        """The processes that read the training clips, started at first use."""
        batches = self._batches(self._mesh())
        shares = batches.accumulate * batches.mesh.data_world
        sizes = [pair for stage in self.stages for pair in zip(stage.batch_sizes, stage.buckets, strict=True)]
        largest = max(size // shares * shape.frames * shape.height * shape.width * 3 for size, shape in sizes)
        stand_in = Loader(batches, self.reader, self.quarantine).stand_in
        # A new process would begin with an empty cache.
        life = LIFE if not self.cache_gib else math.inf
        return Workers(self.reader, self.num_workers, largest, stand_in, self.quarantine, self.timeout, life=life)

    @cached_property
    def validation(self) -> Clips | None:
        """The validation clips."""
        if self.validation_root is None:
            return None
        manifest = Manifest.load(self.validation_root, self.disk_cache)
        how = {"skip": self.skip_short, "any_size": True, "deliver": self.deliver}
        try:
            return Clips(manifest, [usual(self.trained).bucket], fixed=True, **how)
        except ValueError as error:
            raise ValueError(f"data.validation_root: {error}") from error

    @cached_property
    def trained(self) -> list[Trained]:
        """The shapes and frame rates that training takes."""
        return trained_shapes(self.stages, self.order, [clips.rates for clips in self.training])

    @property
    def step(self) -> int:
        """The optimizer step that comes next: what training has consumed, not what workers have read ahead."""
        return self.loaded_step if self.trainer is None else self.trainer.global_step

    def check(self, world: int = 1) -> None:
        """Raise one clear line where a dataset cannot be read or a batch does not divide over `world` processes.

        Workers find by themselves what cannot be decoded, and survive it.
        """
        self._batches(Mesh(0, world)), self.reader
        for clips in [*self.training, self.validation]:
            if clips is not None and not self.num_workers:
                reader_of(clips, self.deliver).alone(clips.first())

    def accumulate(self, world: int) -> int:
        """Return how many micro-batches each of `world` processes takes a step; an error where they do not divide."""
        return micro_batches(self.global_batch, self.micro_batch, world)

    def check_encoders(self, codec: nn.Module, text: nn.Module) -> None:
        """Raise where a dataset holds latents or text of another codec or another text encoder than these."""
        for clips in [*self.training, self.validation]:
            if clips is not None:
                clips.check_encoders(codec, text)

    def check_captions(self, text: nn.Module) -> list[str]:
        """Raise where training may draw a caption that the encoder refuses; return what else is to be said of clips.

        Of validation nothing is refused: what the encoder does not take of its captions is left out.
        """
        said = []
        for number, (root, _) in enumerate(self.roots):
            own = [clips for clips in self.training if clips.number == number]
            said += dict.fromkeys(f"{root}: {line}" for clips in own for line in clips.said)
            if own and "text" not in self.deliver:
                said += check_captions(own, self.captions, text)
        if self.validation is None:
            return said
        said += [f"{self.validation_root}: {line}" for line in self.validation.said]
        if "text" not in self.deliver:
            self.fit_text = partial(fit_captions, text=text)
            rows = list(islice(self.validation.fitting(), self.validation_clips))
            found = read_captions_of(self.validation.manifest, rows)
            _, left_out = fit_captions([captions[0].text if captions else "" for _, captions in found], text)
            said += [f"{self.validation_root}: {left_out}"] if left_out else []
        return said

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Return the first clips of the validation set, or without one of the training set, in the usual shape.

        Each has its first window and caption; the same ones on every rank. A clip that cannot be read is passed over.
        """
        clips = self.validation
        if clips is None:
            shape, how = usual(self.trained), {"skip": True, "any_size": self.any_size, "deliver": self.deliver}
            last, mine = self.training[-len(self.stages[-1].datasets) :], self.stages[-1].buckets
            number = next(n for n, b in enumerate(mine) if (b.frames, b.height, b.width, b.strides) == shape[1:5])
            source = next(clips for clips in last if clips.rates[number])
            clips = Clips(source.manifest, [shape.bucket], fixed=True, **how)
        rows = clips.fitting()
        reader, taken = reader_of(clips, self.deliver), islice(rows, count)
        tasks = [clips.task(row, order=(0, place)) for place, row in enumerate(taken)]

        def stand_in(asked: Task, attempt: int) -> Task:
            if (row := next(rows, None)) is None:
                raise ValueError(f"{clips.manifest.root}: found too few clips that can be read, expected {count}")
            return clips.task(row, order=asked.order)

        found = []
        for read in self._read_once(reader, [tasks], stand_in):
            for frames, sample in zip(read.frames, read.rest, strict=True):
                found.append({**sample, "video": frames.copy()} if frames.size else sample)
        if self.fit_text is not None:
            captions, _ = self.fit_text([sample["caption"] for sample in found])
            found = [{**sample, "caption": caption} for sample, caption in zip(found, captions, strict=True)]
        return found

    def train_dataloader(self) -> Loader:
        """Return this rank's endless stream of micro-batches from `step` on."""
        batches = self._batches(self._mesh())
        if self.trainer is not None and self.trainer.accumulate_grad_batches != batches.accumulate:
            raise ValueError(
                f"trainer.accumulate_grad_batches: found {self.trainer.accumulate_grad_batches}, expected "
                f"{batches.accumulate} = global_batch {self.global_batch} / ({self._micro_batch(batches.mesh.world)} x "
                f"{batches.mesh.world} processes)"
            )
        return Loader(batches, self.reader, self.quarantine, (lambda: self.workers) if self.num_workers else None)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Return the fixed clips: each rank its share where they divide over the ranks, else each rank all of them."""
        return DataLoader(self.validation_batches, batch_size=None) if self.validation_batches else []

    @cached_property
    def validation_batches(self) -> list[dict[str, Any]]:
        """The validation clips, which are few and always the same, so they stay decoded; one that fails is an error."""
        if self.validation is None:
            return []
        mesh = self._mesh()
        rows = list(islice(self.validation.fitting(), self.validation_clips))
        share = range(len(rows))
        if len(rows) % mesh.world == 0:
            share = share[mesh.rank * len(rows) // mesh.world : (mesh.rank + 1) * len(rows) // mesh.world]
        tasks = [self.validation.task(rows[place], order=(0, place)) for place in share]
        reader, size = reader_of(self.validation, self.deliver), self._micro_batch(mesh.world)
        asked = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        return [self._fitted(collate(read)) for read in self._read_once(reader, asked)]

    def _fitted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Leave out of the captions of a validation batch what the text encoder does not know."""
        return batch if self.fit_text is None else batch | {"caption": self.fit_text(batch["caption"])[0]}

    def _read_once(
        self, reader: Reader, asked: Sequence[Sequence[Task]], stand_in: Callable[[Task, int], Task] | None = None
    ) -> Iterator[Read]:
        """Read a few batches; a clip that fails is an error unless others may stand in."""
        lost = Quarantine(budget=0 if stand_in is None else math.inf)
        if not self.num_workers:
            yield from read_here(reader, asked, stand_in or no_stand_in, lost)
            return
        largest = max(len(asked[0]) * math.prod(asked[0][0].shape), 1)
        workers = min(self.num_workers, len(asked[0]))
        with Workers(reader, workers, largest, stand_in or no_stand_in, lost, self.timeout) as pool:
            yield from pool.batches(asked)

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, index: int) -> dict[str, Any]:
        """Bring a batch to the device but for its positions: the host draws by them and would wait for them."""
        rest = {name: value for name, value in batch.items() if name != "position"}
        return super().transfer_batch_to_device(rest, device, index) | {"position": batch["position"]}

    def teardown(self, stage: str) -> None:
        """End the workers."""
        if "workers" in vars(self):
            self.workers.close()
            del self.workers

    def _batches(self, mesh: Mesh) -> GlobalBatches:
        return GlobalBatches(self.order, self.training, self.accumulate(mesh.world), mesh, start=lambda: self.step)

    def _mesh(self) -> Mesh:
        return Mesh() if self.trainer is None else Mesh(self.trainer.global_rank, self.trainer.world_size)

    def _micro_batch(self, world: int) -> int:
        return self.micro_batch or max(self.global_batch // world, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the step, what must be the same for it to mean the same place, and what all ranks could not read."""
        losses = [self.quarantine.state_dict()]
        if torch.distributed.is_initialized():
            losses *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(losses, self.quarantine.state_dict())
        lost = Quarantine()
        for rank in losses:
            lost.load_state_dict(rank)
        return {"step": self.step, "quarantine": lost.state_dict(), **self._identity(self.step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of a checkpoint; another dataset, seed, bucket or batch before it is an error."""
        for clips, before in zip(self.training, state.get("datasets", ()), strict=False):
            if (found := clips.manifest.fingerprint) != before:
                raise ValueError(
                    f"{clips.manifest.path}: found the manifest {found[:12]}, expected {before[:12]} as in the "
                    f"checkpoint: another dataset, or one that was changed"
                )
        self.loaded_step = resume(state, self._identity(state["step"]))
        self.quarantine.load_state_dict(state["quarantine"])

    def _identity(self, step: int) -> dict[str, Any]:
        begun = self.training[: self.order.before[self.order.begun(step)]]
        return self.order.identity(step) | {"datasets": [clips.manifest.fingerprint for clips in begun]}


def reader_of(clips: Clips, deliver: Sequence[str]) -> Reader:
    """Return a reader of the clips of one dataset."""
    return Reader({clips.number: clips.manifest.root}, deliver)


def no_stand_in(asked: Task, attempt: int) -> Task:
    """Refuse: what the same clips shall measure at all times must all be there."""
    raise ValueError(f"{asked.sample.shard}: {asked.sample.key}: cannot be read, expected every validation clip")


def check_room(manifest: Manifest, shards: int) -> None:
    """Raise where the disk cache of a remote dataset cannot hold so many shards: each would push another out."""
    if isinstance(manifest.root, CachedFolder):
        sizes = sorted((shard["bytes"] for shard in manifest.shards), reverse=True)
        room, needed = manifest.root.cache.bytes, sum(sizes[:shards])
        if needed > room:
            raise ValueError(
                f"disk_cache_gib: found {room / 2**30:.3g}, expected at least {needed / 2**30:.3g} for {shards} shards "
                f"of {manifest.root} that are read at once, or a smaller window"
            )
