"""videodiff inspect: what is in a dataset, a run or a checkpoint, and what training would use of a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from videodiff.data.loader.datamodule import ClipDataModule
from videodiff.data.loader.stream import GlobalBatches, Loader
from videodiff.data.order.arithmetic import divisors
from videodiff.data.order.curriculum import order_of
from videodiff.data.samples.inspection import (
    damaged_shards,
    describe_dataset,
    format_description,
    format_fits,
    format_shares,
    survey,
)
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.tars.datamodule import TarDataModule
from videodiff.planning.steps import format_plan, plan
from videodiff.planning.throughput import measure
from videodiff.printing import say_lines
from videodiff.report.batches import Shown, Step, write_batches
from videodiff.training.run.attempts import check_links
from videodiff.training.state.checkpoint import CheckpointError, checkpoints, read_average, read_record, whole
from videodiff.verbs.config.build import build_data, clip_cost, fill_text, read_run
from videodiff.words import count_text

SHOWN = 5


def run(cfg: DictConfig) -> None:
    """Describe a dataset, a run or a checkpoint, recognised by its files; without a folder, describe the data."""
    for text in describe(cfg):
        say_lines(text)


def describe(cfg: DictConfig) -> Iterator[str]:
    """Yield the description in parts."""
    path = Path(cfg.folder or ".")
    if cfg.folder is None:
        yield from describe_data(cfg)
    elif "://" not in cfg.folder and not path.is_dir():
        raise FileNotFoundError(f"folder: found no folder {path}, expected a dataset, a run or a checkpoint")
    elif (path / "checkpoint.json").exists():
        yield describe_checkpoint(path)
    elif (path / "config.yaml").exists():
        yield describe_run(path, cfg.trust)
    else:
        manifest = Manifest.load(cfg.folder)
        yield format_description(describe_dataset(manifest, survey(manifest), cfg.captions))
        if cfg.verify:
            yield verify(manifest)


def verify(manifest: Manifest) -> str:
    """Return a line if all shards agree with the manifest; damaged shards are an error that names them."""
    if damaged := damaged_shards(manifest):
        more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise ManifestError(
            f"{manifest.path}: found {count_text(len(damaged), 'damaged shard')}: {'; '.join(damaged[:SHOWN])}{more}"
        )
    return f"{'verified':<12}{count_text(len(manifest.shards), 'shard has', 'shards have')} the sha256 of the manifest"


def describe_data(cfg: DictConfig) -> Iterator[str]:
    """Yield the contents of the datasets, their shares of the buckets, step and epoch, and what else was asked for."""
    if cfg.data.get("batch"):
        fill_text(cfg)
    cost = clip_cost(cfg) if cfg.data.get("batch") else None
    if cfg.throughput and "cache_gib" in cfg.data:
        # Clips that stay decoded in memory would falsify the throughput.
        cfg.data.cache_gib = 0.0
    cfg.data.quarantine = None  # that file belongs to a training
    data = build_data(cfg)
    if not isinstance(data, ClipDataModule):
        yield from describe_stream(cfg, data)
        return
    names = [root for root, _ in data.roots]
    surveys = [
        [survey(data.manifests[n], stage.buckets, data.shapes.any_size) for n in stage.datasets]
        for stage in data.stages
    ]
    seen = dict(
        pair for stage, own in zip(data.stages, surveys, strict=True) for pair in zip(stage.datasets, own, strict=True)
    )
    for number, found in sorted(seen.items()):
        yield format_description(describe_dataset(data.manifests[number], found, cfg.captions)) + "\n"
    for stage, own in zip(data.stages, surveys, strict=True):
        yield format_fits(stage.first, stage.buckets, own)
    counts = [(found.counts, found.kinds) for own in surveys for found in own]
    order = order_of(data.stages, counts, [repeat for _, repeat in data.roots], data.batches.window)
    for stage, mixture, own in zip(data.stages, order.stages, surveys, strict=True):
        yield "" if len(order.stages) == 1 else f"\nfrom step {stage.first:,}"
        yield format_shares([names[n] for n in stage.datasets], [d.repeat for d in mixture.datasets], own)
        yield f"{'an epoch':<12}{float(mixture.epoch_steps):,.1f} steps"
    world, accumulate = cfg.world_size, data.accumulate(cfg.world_size)
    shares = data.mesh(world).data_world
    yield f"\n{format_plan(plan(data.stages, order, accumulate, shares, cost))}"
    valid = divisors(data.batches.count or math.gcd(*data.batch_sizes))
    micro = count_text(accumulate, "micro-batch")
    yield f"{'processes':<12}{world}, each with {micro} a step; valid numbers of them: {valid}"
    yield from (f"{'training':<12}{line}" for line in said_of(cfg, data))
    if cfg.strips or cfg.throughput:
        batches = GlobalBatches(data.order, data.training, accumulate, data.mesh(world))
        if cfg.strips:
            steps = [show(data, batches, s.first + n, cfg.clips) for s in data.stages for n in range(cfg.batches)]
            yield f"{'strips':<12}{write_batches(cfg.strips, ', '.join(names), steps)}"
        if cfg.throughput:
            yield throughput(data, batches, cfg.seconds)


def describe_stream(cfg: DictConfig, data: TarDataModule) -> Iterator[str]:
    """Yield what is known of tars without a manifest, from some examined samples."""
    if cfg.strips or cfg.throughput:
        raise ValueError("strips, throughput: found one with data=webdataset, expected data=folder")
    data.check(cfg.world_size)
    yield f"{'tars':<12}{len(data.tars):,}, without a manifest; by {count_text(len(data.looks), 'examined sample')}:"
    for one in data.trained:
        rates = ", ".join(f"{rate:g} fps {share:.0%}" for rate, share in list(one.rates.items())[:SHOWN])
        yield f"{one.bucket!s:<16}{one.share:.0%} of the clips; {rates}"
    accumulate = data.accumulate(cfg.world_size)
    yield f"{'processes':<12}{cfg.world_size}, each with {count_text(accumulate, 'micro-batch')} a step"


def said_of(cfg: DictConfig, data: ClipDataModule) -> list[str]:
    """Return training's remarks on clips and captions before its first step, or why it would stop there.

    Only learned words are checked: a pretrained encoder takes minutes to load.
    """
    if "vocabulary" not in cfg.text:
        return []
    try:
        fill_text(cfg)
        return data.check_captions(instantiate(cfg.text))
    except InstantiationException as error:
        return [f"stops: {error.__cause__}"]
    except (ValueError, OSError) as error:
        return [f"stops: {error}"]


def describe_run(run: Path, trust: Sequence[str]) -> str:
    """Return the recipe of a run in a few lines, and its checkpoints."""
    cfg = read_run(run, trust)
    check_links(run)
    lines = [f"run         {run}", f"command     {(run / 'command.txt').read_text().strip()}"]
    lines += [f"{key:<12}{cfg[key]._target_}" for key in ("model", "path", "objective", "codec", "text", "optimizer")]
    place = cfg.data.get("root") or cfg.data.get("urls")
    lines += [f"data        {place}: {count_text(cfg.data.frames, 'frame')} of {cfg.data.height} x {cfg.data.width}"]
    return "\n".join([*lines, *(describe_any(found) for found in checkpoints(run))])


def describe_checkpoint(checkpoint: Path) -> str:
    """Return the step, size and parameters of a checkpoint; it is an error if it is not whole."""
    record = read_record(whole(checkpoint))
    count = sum(value.numel() for value in read_average(checkpoint).values())
    size = sum(file.bytes for file in record["files"].values())
    parameters = count_text(count, "parameter")
    return f"checkpoint  {checkpoint}: step {record['step']}, {parameters}, {size / 2**20:.1f} MiB, whole"


def describe_any(checkpoint: Path) -> str:
    """Return the description of a checkpoint; for a damaged one, what is wrong with it."""
    try:
        return describe_checkpoint(checkpoint)
    except CheckpointError as error:
        return f"checkpoint  {checkpoint}: not usable: {error}"


def show(data: ClipDataModule, batches: GlobalBatches, step: int, clips: int) -> Step:
    """Return the first clips of a step as training would use them."""
    shown, items = [], batches.batch(step, 0)
    for item in items[:clips]:
        source = data.training[item.dataset]
        task = source.task(item.row, item.bucket, item.epoch)
        where = f"{source.manifest.root / task.row['shard']}: {task.row['key']}"
        try:
            sample = data.reader.alone(task)
            first, last, stride = task.numbers[0], task.numbers[-1], task.numbers.step
            frames = f"frame {first}" if first == last else f"frames {first} to {last}"
            frames += f" of {task.row['frames']}" + f", one in {stride}" * (stride > 1)
            note = f"{where}, {frames}, {sample['fps']:.4g} fps"
            shown.append(Shown(sample["caption"], note, sample.get("video")))
        # Training replaces such a clip, whatever of it cannot be read.
        except ValueError as error:
            shown.append(Shown("", f"cannot be read: {error}", None))
    bucket = data.training[items[0].dataset].buckets[items[0].bucket]
    return Step(
        f"step {step:,}: {bucket}, epoch {items[0].epoch}, the first {len(shown)} of {count_text(len(items), 'clip')}",
        shown,
    )


def throughput(data: ClipDataModule, batches: GlobalBatches, seconds: float) -> str:
    """Measure the loader of one process against the decode ceiling."""
    loader = Loader(batches, data.reader, data.quarantine, (lambda: data.workers) if data.reading.num_workers else None)
    items = [item for batch in islice(batches, 16) for item in batch]
    tasks = [data.training[item.dataset].task(item.row, item.bucket, item.epoch) for item in items]
    try:
        found = measure(loader, data.reader, tasks, data.reading.num_workers, seconds)
    finally:
        data.teardown("fit")
    return (
        f"{'throughput':<12}{found.loader:,.1f} clips a second by the loader with "
        f"{count_text(data.reading.num_workers, 'worker')}, {found.loader / found.ceiling:.0%} of the "
        f"{found.ceiling:,.1f} of bare decoding"
    )
