"""From configuration to objects: the one place where `conf/` meets the classes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from videodiff.data.loader.datamodule import ClipDataModule
from videodiff.data.loader.wording import MOST_WORDS, dataset_words, longest_caption
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import WORDS
from videodiff.diffusion.objective import Objective
from videodiff.generation.settings import SETTINGS, Generation
from videodiff.planning.cost import Cost
from videodiff.planning.flops import Network, forward, network_of
from videodiff.training.limits import half_type
from videodiff.training.run.attempts import check_links
from videodiff.training.state.checkpoint import AVERAGE, find_checkpoint, latest_checkpoint, load_average, whole
from videodiff.verbs.config.checking import shown
from videodiff.verbs.config.schema import faults
from videodiff.verbs.config.stored import no_run, read_config
from videodiff.words import count_text


class Model(NamedTuple):
    """The parts of a run that training and sampling share."""

    denoiser: nn.Module
    objective: Objective
    codec: Any
    text: nn.Module


def build_model(cfg: DictConfig, born: Callable[[Callable[[], nn.Module]], nn.Module] = lambda make: make()) -> Model:
    """Instantiate codec, text encoder, a denoiser that fits both, and objective; first weights follow from cfg.seed.

    `born` makes the denoiser, by default whole.
    """
    torch.manual_seed(cfg.seed)
    codec, text = instantiate(cfg.codec), instantiate(cfg.text)
    check_patch(cfg, codec)
    objective = instantiate(cfg.objective)
    check_network(cfg, objective)
    denoiser = born(lambda: instantiate(cfg.model, channels=codec.channels, text_width=text.width))
    return Model(denoiser, objective, codec, text)


def build_generation(cfg: DictConfig, run_cfg: DictConfig) -> Generation:
    """Return the sampler of the verb, or else of the run, with the settings that the verb overrides."""
    chosen = {key: cfg[key] for key in SETTINGS if cfg.get(key) is not None}
    sampler = cfg.get("sampler") or run_cfg.sampler
    check_network({"model": run_cfg.model, "sampler": sampler})
    return instantiate(sampler, **chosen)


def instantiate_partial(name: str, part: DictConfig) -> Callable[..., Any]:
    """Return the class or function that a group names, to be called later; an unknown key is an error now."""
    made = instantiate(part)
    taken = [key for key, value in inspect.signature(made.func).parameters.items() if value.default is not value.empty]
    for key, value in made.keywords.items():
        if key not in taken:
            raise ValueError(
                f"{name}.{key}: found {value!r}, expected one of {', '.join(taken)} for {part._target_} "
                f"(~{name}.{key} removes it)"
            )
    return made


def check_network(cfg: Mapping[str, Any], objective: Any = None) -> None:
    """Raise where an objective or a sampler asks of the network what it cannot do.

    It has to have weights for steps where it is told where a step ends, and to take the frames that lead as a clip.
    """
    lead, patch = cfg["sampler"].get("lead", 0), cfg["model"]["patch"][0]
    if cfg["sampler"].get("apart", False) and lead % patch:
        raise ValueError(
            f"sampler.lead: found {lead} with sampler.apart=true, expected a multiple of model.patch[0] = {patch}: "
            "these frames are a clip of their own"
        )
    if cfg["model"].get("step_rank", 0):
        return
    told = {
        "objective": getattr(objective, "takes_steps", False),
        "sampler": str(OmegaConf.select(cfg["sampler"], "sampler.path")).endswith(".flow_map"),
    }
    for name in [name for name, needed in told.items() if needed]:
        raise ValueError(
            f"model.step_rank: found 0, expected a rank such as 16 for {name}=flow_map; a trained network takes it up "
            "by train model.step_rank=16 start_from=<run> 'fresh=[denoiser.*step.*]'"
        )


def check_patch(cfg: DictConfig, codec: Any) -> None:
    """Raise if a shape of the data is not a multiple of the codec's compression times the model's patch."""
    for where, shape in shapes(cfg.data):
        check_shape(f"{where}.", (shape.frames, shape.height, shape.width), cfg.model.patch, codec)


def check_shape(where: str, shape: Sequence[int], patch: Sequence[int], codec: Any) -> None:
    """Raise if a shape `t h w` is not a multiple of the codec's compression times the model's patch."""
    (frames, *sides), (pt, *patch), units = shape, patch, codec.compression[1:]
    for name, side, unit, p in zip(("height", "width"), sides, units, patch, strict=True):
        if side < 1 or side % (unit * p):
            valid = max(round(side / (unit * p)), 1) * unit * p
            raise ValueError(
                f"{where}{name}: found {side}, expected a multiple of {unit * p} "
                f"(codec {unit} x model.patch {p}; nearest: {valid})"
            )
    if frames < 1:
        raise ValueError(f"{where}frames: found {frames}, expected at least 1")
    latent_frames = codec.latent_frames(frames)
    if latent_frames % pt:
        raise ValueError(
            f"{where}frames: found {frames}, {latent_frames} after the codec, expected a multiple of model.patch[0] = "
            f"{pt}"
        )


def fill_text(cfg: DictConfig, before: DictConfig | None = None) -> None:
    """Fill in text settings that depend on the datasets: all their words, and room for their longest caption.

    Values that a resumed run had `before` are kept.
    """
    open_ = [name for name in ("vocabulary", "max_words") if name in cfg.text and cfg.text[name] is None]
    if before is not None:
        for name in [name for name in open_ if before.text.get(name) is not None]:
            cfg.text[name] = before.text[name]
            open_.remove(name)
    if not open_:
        return
    if cfg.data.get("urls") is not None:
        fill_text_of_stream(cfg, open_)
        return
    roots = [cfg.data.root, *(other["root"] for other in cfg.data.get("more") or [])]
    manifests = [Manifest.load(root) for root in roots]
    if "vocabulary" in open_:
        words = [dataset_words(manifest) for manifest in manifests]
        if None in words:
            raise FileNotFoundError(
                f"text.vocabulary: found no {manifests[words.index(None)].path.parent / WORDS}, expected one word a "
                f"line, as `videodiff pack` and `videodiff index` write it"
            )
        cfg.text.vocabulary = list(dict.fromkeys(word for own in words for word in own))
    if "max_words" in open_:
        cfg.text.max_words = max(1, *map(longest_caption, manifests)) + 1


def fill_text_of_stream(cfg: DictConfig, open_: Sequence[str]) -> None:
    """Fill in text settings for tars without a manifest: words must be given, the longest captions are allowed."""
    if "vocabulary" in open_:
        raise ValueError(
            f"text.vocabulary: found null, expected a list or a file with one word a line, as {WORDS}: streamed tars "
            f"have no list of words (`videodiff index` lists them; text=t5 needs none)"
        )
    cfg.text.max_words = MOST_WORDS + 1


def shapes(data: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield each shape in a configuration of data, with its place."""
    yield "data", data
    lists = {"data.buckets": data.get("buckets")}
    lists |= {f"data.stages[{i}].buckets": stage.get("buckets") for i, stage in enumerate(data.get("stages") or [])}
    for where, buckets in lists.items():
        yield from ((f"{where}[{i}]", bucket) for i, bucket in enumerate(buckets or []))


def build_data(cfg: DictConfig, cost: Callable[[Bucket], Cost] | None = None) -> ClipDataModule:
    """Instantiate the data; if batches are planned by cost, `cost` is that of a clip (None: of `clip_cost`)."""
    data = instantiate(cfg.data, cost=cost or clip_cost(cfg)) if cfg.data.get("batch") else instantiate(cfg.data)
    data.sequence = OmegaConf.select(cfg, "strategy.sequence_parallel") or 1
    check_sequence(cfg, data.sequence)
    return data


def check_sequence(cfg: DictConfig, processes: int) -> None:
    """Raise if more processes share each clip than the longest clip has frames of tokens: some would have none."""
    frames = [shape.frames for _, shape in shapes(cfg.data) if shape.get("frames")]
    if processes == 1 or not frames:
        return
    most = -(-max(frames) // token_unit(cfg)[0])
    if processes > most:
        nearest = max(size for size in range(1, most + 1) if processes % size == 0)
        raise ValueError(
            f"strategy.sequence_parallel: found {processes} for clips of {count_text(max(frames), 'frame')}, {most} in "
            f"the denoiser, expected at most {most} (nearest: {nearest})"
        )


def clip_cost(cfg: DictConfig) -> Callable[[Bucket], Cost]:
    """Return a function that gives the denoiser's cost of a clip of a bucket, from configurations alone."""
    return costs(network_of_run(cfg), token_unit(cfg))


def costs(network: Network, unit: Sequence[int]) -> Callable[[Bucket], Cost]:
    """Return a function that gives the cost of a pass of a clip of a bucket; `unit`: the sizes `t h w` of a token."""

    def cost(bucket: Bucket) -> Cost:
        time, space = bucket.tokens(unit)
        return Cost(forward(time, space, network).total, time * space)

    return cost


def network_of_run(
    cfg: DictConfig,
    objective: Objective | None = None,
    channels: int | None = None,
    text: tuple[int, int] | None = None,
) -> Network:
    """Return what the cost of a pass of the denoiser, or of a training step of an objective, follows from.

    `channels` of a latent, and the words of a caption with their width; None: those of codec and text encoder.
    """
    model, (words, width) = cfg.model, text or shape_of(cfg.text)
    network = network_of(
        model.width,
        model.axes,
        model.depth,
        model.captioned,
        patch=(channels or shape_of(cfg.codec)[0]) * math.prod(model.patch),
        words=words,
        text_width=width,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        trained_text=getattr(get_class(cfg.text._target_), "trainable", False),
    )
    if objective is None:
        return network
    # The weights for steps cost nothing in a training that takes none.
    rank = model.get("step_rank", 0) if objective.takes_steps else 0
    return network._replace(step_rank=rank, forwards=objective.forwards, own=objective.own_steps)


def token_unit(cfg: DictConfig) -> list[int]:
    """Return the frames, rows and columns of pixels that one token stands for."""
    return [size * patch for size, patch in zip(shape_of(cfg.codec)[1], cfg.model.patch, strict=True)]


def shape_of(part: DictConfig) -> tuple[Any, Any]:
    """Return the shape of a codec or a text encoder from its settings, without weights: its `read_shape`."""
    settings = {key: value for key, value in OmegaConf.to_container(part, resolve=True).items() if key[0] != "_"}
    return get_class(part._target_).read_shape(**settings)


def read_run(run: str | Path, trust: Sequence[str] = ()) -> DictConfig:
    """Return the resolved configuration of a run folder; every class in it is checked.

    Its values must have the kinds and ranges of the command line. A missing key, or a key of another version, is no
    error, and nothing is known of the keys of a user's own class.

    `trust`: classes, or modules with classes, that the user trusts.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"run: {no_run(path)}")
    tree = read_config(path, trust)
    for fault in faults("train", tree):
        if not fault.no_key:
            raise ValueError(f"{path}: {fault.place}: found {shown(fault.found)}, expected {fault.expected}")
    cfg = OmegaConf.create(tree)
    if isinstance(OmegaConf.select(cfg, "text.vocabulary"), str):
        raise ValueError(f"{path}: text.vocabulary: found the name of a file, expected the words themselves")
    return cfg


def load_run(
    run: str | Path, checkpoint: str | None = None, trust: Sequence[str] = ()
) -> tuple[DictConfig, Model, Path]:
    """Return the configuration of a run, its model with averaged weights, ready to sample, and the checkpoint used.

    The model computes in the precision of the training.
    """
    cfg, folder = read_run(run, trust), Path(run)
    check_links(folder)
    found = whole(find_checkpoint(folder, checkpoint), AVERAGE) if checkpoint else latest_checkpoint(folder, AVERAGE)
    model = build_model(cfg)
    parts = nn.ModuleDict({"denoiser": model.denoiser})
    if model.text.trainable:
        parts["text"] = model.text
    load_average(found, parts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for part in (model.denoiser, model.codec, model.text):
        part.to(device).eval()
    compute_as_trained(model.denoiser, str(OmegaConf.select(cfg, "trainer.precision")), device)
    return cfg, model, found


def compute_as_trained(denoiser: nn.Module, precision: str, device: str) -> None:
    """Let a network compute in the precision of its training, as it does for the samples of the training."""
    dtype = half_type(precision)
    if dtype is not None:
        denoiser.forward = torch.autocast(device, dtype)(denoiser.forward)
