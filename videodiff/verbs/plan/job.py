"""Turn a configuration into a `Job` for the planner: trace its network, load and build nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from videodiff.data.loader.datamodule import ClipDataModule
from videodiff.data.loader.settings import Batches, Datasets, Shapes, built, keys_of
from videodiff.data.order.arithmetic import usual_batch
from videodiff.data.order.buckets import Bucket
from videodiff.data.order.curriculum import Stage
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.denoiser.target import targeting
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.planning.cost import Cost
from videodiff.planning.flops import Network
from videodiff.planning.forecast.choice import Choice, Encoding, Job, Shape
from videodiff.planning.forecast.encoders import UNKNOWN, Encoder, known
from videodiff.planning.forecast.grown import Grown, traced
from videodiff.planning.forecast.memory import SPLIT
from videodiff.planning.forecast.trace import halve, norms_by_one_kernel
from videodiff.planning.remedies import machine, remedies
from videodiff.planning.steps import plan
from videodiff.pretrained import DTYPES
from videodiff.training.limits import half_type
from videodiff.training.start import matches, parts_of
from videodiff.verbs.config.build import build_data, check_patch, costs, fill_text, network_of_run, shape_of
from videodiff.verbs.config.groups import conf_dir
from videodiff.words import count_text

# Words of the longest caption if neither settings nor a dataset tell.
WORDS = 64
# What was traced in this process: another batch, cluster or data set has the same operations.
TRACED: dict[tuple[Any, ...], Grown] = {}


class Compression(NamedTuple):
    """How many times fewer frames, rows and columns latents have; a codec of video encodes the first frame alone."""

    compression: tuple[int, int, int]

    def latent_frames(self, t: int) -> int:
        """Return the number of latent frames of a clip of t frames; ValueError if t does not fit."""
        ft = self.compression[0]
        k, rest = divmod(t - 1, ft)
        if rest:
            raise ValueError(
                f"codec: found {count_text(t, 'frame')}, expected 1 + {ft} k (nearest: {k * ft + 1} or "
                f"{k * ft + ft + 1})"
            )
        return k + 1


class Batch(NamedTuple):
    """A bucket as far as it decides the cost of a step, and its global batch size."""

    bucket: Bucket
    size: int

    @classmethod
    def of(cls, bucket: Bucket, size: int) -> Batch:
        """Return the batch of any bucket of this shape."""
        return cls(Bucket(bucket.frames, bucket.height, bucket.width), size)


class Precision(NamedTuple):
    """The precision of numbers: `half`, products of 16 bits; `halved`, weights of 16 bits too (ZeRO)."""

    half: bool
    halved: bool


def job_of(cfg: DictConfig, cpu: bool) -> Job:
    """Return the training that a configuration describes, on GPUs or on CPUs."""
    for name in [name for name in ("root", "urls") if OmegaConf.is_missing(cfg.data, name)]:
        # A dataset without a name is out of reach like one that is not here.
        cfg.data[name] = "no dataset"
    fill(cfg)
    codec, text = (encoder(name, cfg[name]) for name in ("codec", "text"))
    check_patch(cfg, Compression(codec.shape[1]))
    objective = instantiate(cfg.objective)
    words = cfg.text.get("max_words") or cfg.text.get("max_length")
    network = network_of_run(cfg, objective, codec.shape[0], (words, text.shape))
    unit = [size * patch for size, patch in zip(codec.shape[1], cfg.model.patch, strict=True)]
    # As in training, whose batches do not depend on the objective.
    cost = costs(network._replace(step_rank=0), unit)
    batches = steps_of(cfg, stages_of(cfg, cost), unit, cost)
    half = half_type(str(cfg.trainer.precision)) is not None

    def shape(bucket: Bucket, size: int, steps: float) -> Shape:
        # Pictures that lie and that stand have the same operations, which are traced once.
        frames, *sides = latent_size(bucket, codec.shape[1])
        latent = (codec.shape[0], frames, *sorted(sides))
        return Shape(
            str(bucket),
            *bucket.tokens(unit),
            bucket.frames * bucket.height * bucket.width,
            size,
            # Every choice asks for it, and the key of `trace` is made of the text of the configuration.
            trace=cache(partial(trace, cfg, latent, network, half, cpu)),
            stored=clip_bytes(cfg, bucket, latent, network),
            encoding=encoding(cfg, codec, text, bucket, words),
            steps=steps,
        )

    return Job(
        network,
        [shape(*batch, steps) for batch, steps in batches.items()],
        half=half,
        muon=cfg.optimizer._target_.endswith("Muon"),
        compiled=bool(cfg.get("compile")),
        latents="latent" in delivered(cfg),
        teacher=objective.taught,
        stated=usual_batch(cfg.data.global_batch, [batch.size for batch in batches]),
        micro_batches=cfg.data.batch.micro_batches if cfg.data.get("batch") else None,
        refused=refused(cfg),
    )


def trace(
    cfg: DictConfig, latent: tuple[int, ...], network: Network, half: bool, cpu: bool, level: str, halved: bool
) -> Grown:
    """Return the operations of the passes of latents `c t h w`, traced once in a process."""
    parts = [OmegaConf.to_yaml(cfg[part], resolve=False) for part in ("model", "objective") if cfg.get(part)]
    key = (*parts, *cfg.freeze, network, every_of(cfg), cycle_of(cfg), latent, level, half, halved, cpu)
    if key not in TRACED:
        make = maker(cfg, level, latent, network, Precision(half, halved))
        with targeting("cpu" if cpu else "cuda"), nullcontext() if cpu else norms_by_one_kernel():
            TRACED[key] = traced(make, cycle_of(cfg), cfg.model.depth, unlike_of(cfg))
    return TRACED[key]


def refused(cfg: DictConfig) -> tuple[str, ...]:
    """Return the strategies that training refuses with compiler, optimizer or precision of a configuration."""
    fused = cfg.optimizer._target_.endswith("Muon") and bool(cfg.optimizer.get("fused"))
    scaled = str(cfg.trainer.precision) in ("16-mixed", "16")
    names = [name for name in SPLIT if fused and name.startswith("zero")]
    names += [name for name in SPLIT if cfg.get("compile") and name.startswith("zero3")]
    return tuple(dict.fromkeys(names + ["fsdp2"] * scaled))


def every_of(cfg: DictConfig) -> int:
    """Return which blocks recompute repeats: every k-th one."""
    return cfg.recompute.every if cfg.get("recompute") else 1


def weightless(cfg: DictConfig) -> nn.ModuleDict:
    """Return the parts of a run that may train, without their numbers and with any channels and words."""
    words = {"vocabulary": ["word"], "max_words": 1} if "vocabulary" in cfg.text else {}
    trains = getattr(get_class(cfg.text._target_), "trainable", False)
    with torch.device("meta"):
        denoiser = instantiate(cfg.model, channels=1, text_width=1)
        return parts_of(denoiser, instantiate(cfg.text, **words) if trains else None)


def unlike_of(cfg: DictConfig) -> int:
    """Return the number of first blocks after which `freeze=` names in each block the same as one cycle before."""
    if not cfg.freeze:
        return 0
    frozen = [
        {name for name, _ in block.named_parameters() if matches(f"denoiser.blocks.{number}.{name}", cfg.freeze)}
        for number, block in enumerate(weightless(cfg).denoiser.blocks)
    ]
    pairs = enumerate(zip(frozen, frozen[cycle_of(cfg) :], strict=False), start=1)
    return max((number for number, (one, after) in pairs if one != after), default=0)


def cycle_of(cfg: DictConfig) -> int:
    """Return the number of blocks after which the pattern of axes, of captions and of recompute repeats."""
    return min(math.lcm(len(cfg.model.axes), len(cfg.model.captioned), every_of(cfg)), cfg.model.depth)


def delivered(cfg: DictConfig) -> set[str]:
    """Return the parts of a clip that the dataset holds: video, latent, text."""
    return set(cfg.data.get("deliver") or ["video"])


def fill(cfg: DictConfig) -> None:
    """Fill in the text settings that come from the dataset; if it is out of reach, use common values."""
    if "vocabulary" not in cfg.text:
        return
    try:
        fill_text(cfg)
    except (OSError, ManifestError, ValueError):
        cfg.text.max_words = cfg.text.max_words or WORDS


def encoder(name: str, part: DictConfig) -> Encoder:
    """Return the cost and shape of a codec or text encoder, from the table or from its own class."""
    if "path_or_name" in part and (found := known(str(part.path_or_name), part.get("subfolder"))):
        return found
    shape = shape_of(part)
    if "path_or_name" not in part:
        return Encoder(0.0, 0.0, shape if name == "codec" else shape[1])
    return UNKNOWN[name]._replace(shape=shape if name == "codec" else shape[1])


def stages_of(cfg: DictConfig, cost: Callable[[Bucket], Cost]) -> list[Stage]:
    """Return the stages of a training from its settings alone; raise where training would refuse them."""
    records = (Datasets, Shapes, Batches)
    names = [field.name for field in keys_of(records, ("cost", "root")) if field.name in cfg.data]
    given = {name: cfg.data[name] for name in names}
    settings = {
        name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for name, value in given.items()
    }
    datasets, shapes, batches = built(records, settings | {"root": cfg.data.get("root") or "", "cost": cost})
    return batches.planned(datasets, shapes)


def steps_of(
    cfg: DictConfig, stages: Sequence[Stage], unit: Sequence[int], cost: Callable[[Bucket], Cost]
) -> dict[Batch, float]:
    """Return how many steps of the training each bucket has with each batch size, until its budget is used up."""
    budget, found = cfg.get("clips") or cfg.get("tokens") or cfg.trainer.max_steps, Counter[Batch]()

    def used(batch: Batch) -> float:
        if cfg.get("clips"):
            return batch.size
        return batch.size * math.prod(batch.bucket.tokens(unit)) if cfg.get("tokens") else 1.0

    ends = [*(stage.first for stage in stages[1:]), math.inf]
    for stage, end, shares in zip(stages, ends, shares_of(cfg, stages, cost), strict=True):
        own = [Batch.of(*pair) for pair in zip(stage.buckets, stage.batch_sizes, strict=True)]
        each = sum(share * used(batch) for share, batch in zip(shares, own, strict=True))
        length = min(end - stage.first, budget / each)
        budget -= length * each
        for batch, share in zip(own, shares, strict=True):
            found[batch] += length * share
    return found


def shares_of(cfg: DictConfig, stages: Sequence[Stage], cost: Callable[[Bucket], Cost]) -> list[list[float]]:
    """Return the share of the steps of each bucket of each stage: equal ones if the dataset is out of reach."""
    even = [[1 / len(stage.buckets)] * len(stage.buckets) for stage in stages]
    if max(map(len, even)) == 1:
        return even
    try:
        data = build_data(cfg, cost)
        if not isinstance(data, ClipDataModule):
            return even
        planned = plan(data.stages, data.order, accumulate=1, world=1)
    except (OSError, ManifestError):
        return even
    steps = [[one.steps for one in planned if one.first == stage.first] for stage in stages]
    return [[float(each / sum(own)) for each in own] for own in steps]


def latent_size(bucket: Bucket, compression: tuple[int, int, int]) -> list[int]:
    """Return frames, rows and columns of a clip's latents."""
    frames = Compression(compression).latent_frames(bucket.frames)
    return [frames, bucket.height // compression[1], bucket.width // compression[2]]


def maker(
    cfg: DictConfig, level: str, latent: Sequence[int], network: Network, precision: Precision
) -> Callable[[int], tuple[nn.Module, Callable[[int], Tensor]]]:
    """Return a function that makes the configured network with a given number of blocks, and its loss function."""
    objective, (c, t, h, w) = instantiate(cfg.objective), latent
    recompute = instantiate(cfg.recompute, level=level, offload=False)

    def make(blocks: int) -> tuple[nn.Module, Callable[[int], Tensor]]:
        made = instantiate(cfg.model, channels=c, text_width=network.text_width, depth=blocks)
        for name, weight in parts_of(made, None).named_parameters():
            weight.requires_grad_(not matches(name, cfg.freeze) and objective.learns(name))
        if precision.halved:
            halve(made)
        recompute(made)

        def loss(clips: int) -> Tensor:
            x, eps = torch.empty(2, clips, c, t, h, w).unbind()
            text = torch.empty(clips, network.words, network.text_width, requires_grad=network.trained_text)
            mask = torch.ones(clips, network.words, dtype=torch.bool)
            # `text + 0` is no leaf, so its gradient is freed as in a real run.
            condition = {"text": text + 0, "text_mask": mask, "fps": torch.empty(clips)}
            if objective.takes_steps:
                condition["rho"] = torch.empty(clips, t)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision.half and not precision.halved):
                return objective.error(made, x, eps, torch.empty(clips, t), condition).mean()

        return made, loss

    return make


def clip_bytes(cfg: DictConfig, bucket: Bucket, latent: Sequence[int], network: Network) -> float:
    """Return the bytes of a clip in storage: 16-bit latents and text, or a video file."""
    if cfg.get("clip_mb") is not None:
        return 1e6 * cfg.clip_mb
    size = 2.0 * network.words * network.text_width if "text" in delivered(cfg) else 0.0
    if "latent" in delivered(cfg):
        return size + 2.0 * math.prod(latent)
    try:
        manifest = Manifest.load(cfg.data.get("root") or ".")
        sizes, pictures = manifest.column("size"), manifest.column("frames") == 1
        # Of a dataset of both, a bucket of pictures holds the pictures, and every other one the videos.
        own = sizes[pictures == (bucket.frames == 1)]
        return size + float((own if len(own) else sizes).mean())
    except (OSError, ManifestError):
        # H.264 at the quality of `videodiff pack` takes about a tenth of a bit for each pixel of the whole span.
        return size + 0.1 / 8 * bucket.span * bucket.height * bucket.width


def encoding(cfg: DictConfig, codec: Encoder, text: Encoder, bucket: Bucket, words: int) -> Encoding:
    """Return the cost of the frozen encoders that run in each step."""
    weights = flops = moment = 0.0
    most, pixels = math.inf, bucket.frames * bucket.height * bucket.width
    if "latent" not in delivered(cfg) and codec.millions:
        weights, flops = 1e6 * number(cfg.codec) * codec.millions, 1e6 * codec.mflop * pixels
        # One tile of all clips is encoded after the other.
        side = cfg.codec.get("tile") or math.inf
        seen = bucket.frames * min(bucket.height, side) * min(bucket.width, side)
        moment = codec.moment * number(cfg.codec) / 2 * seen
        # A codec of video is always given whole clips.
        once = cfg.codec.slice_frames or math.inf
        most = moment * max(once / bucket.frames, float(codec.shape[1][0] > 1))
    if "text" not in delivered(cfg) and text.millions:
        weights, flops = weights + 1e6 * number(cfg.text) * text.millions, flops + 1e6 * text.mflop * words
    return Encoding(weights, flops, moment, most)


def number(part: DictConfig) -> int:
    """Return the bytes of a number of a frozen encoder."""
    return DTYPES[part.dtype].itemsize


def remedies_of(cfg: DictConfig, world: int, now: Choice, card: str, memory: float) -> list[str]:
    """Return overrides for a training that ran out of memory on cards of `memory` bytes, or on a CPU."""
    if get_object(cfg.model._target_) is not SpaceTimeTransformer:
        return []
    cpu, nodes = card == "CPU", cfg.trainer.num_nodes
    like = instantiate(OmegaConf.load(conf_dir() / "cluster" / ("cpux2.yaml" if cpu else "h100x8.yaml")))
    return remedies(job_of(cfg, cpu), machine(like, card, memory, nodes, world // nodes), now)
