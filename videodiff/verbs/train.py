"""videodiff train: compose, build, fit, and leave a run folder with the whole record."""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig, ListConfig, OmegaConf

from videodiff.data.loader.datamodule import BatchModule, ClipDataModule
from videodiff.data.loader.trained import write_trained
from videodiff.data.storage.address import without_secrets
from videodiff.data.storage.files import owning
from videodiff.diffusion.levels import NoiseLevels
from videodiff.generation.known import mixed
from videodiff.generation.sampling import is_no_room, latent_shape
from videodiff.machine import memory
from videodiff.node_copy import NodeCopies
from videodiff.parallel import environment
from videodiff.parallel.compile import check_stage
from videodiff.parallel.engine import engine_of
from videodiff.parallel.fp8 import check_training
from videodiff.parallel.launcher import AGAIN
from videodiff.parallel.node.parent import die_with_parent
from videodiff.parallel.ranks import count_processes, is_first_process, lost_rank
from videodiff.parallel.sequence.switch import share_clips
from videodiff.parallel.strategy import birth_under, for_world
from videodiff.planning.forecast.choice import Choice
from videodiff.planning.steps import format_plan, plan
from videodiff.planning.work import Shapes, work_of
from videodiff.printing import say, say_lines
from videodiff.training.guard import Diverged
from videodiff.training.module import VideoDiffusion
from videodiff.training.rollback import batches_to_leave
from videodiff.training.run.attempts import check_links, set_aside
from videodiff.training.run.logging import check_tables, log_configuration
from videodiff.training.run.record import to_tell, write_record
from videodiff.training.start import freeze, parts_of
from videodiff.training.state.before import is_before_pieces
from videodiff.training.state.checkpoint import checkpoints, choose_checkpoint, leave_behind, step_of
from videodiff.training.state.mirror import bring, place_of
from videodiff.verbs.config.build import (
    Model,
    build_data,
    build_model,
    clip_cost,
    fill_text,
    instantiate_partial,
    network_of_run,
    read_run,
)
from videodiff.verbs.config.checking import touches
from videodiff.verbs.config.expand import AUTO, OVERRIDES
from videodiff.verbs.config.origin import find_start, find_teacher
from videodiff.verbs.config.stored import dotted, is_magic, is_only_here, key_of, leaves, names_command, read_plain
from videodiff.verbs.config.versions import signed
from videodiff.verbs.plan.job import remedies_of
from videodiff.words import count_text

# Keys that may change at a resume: they do not change the weights, or are meant to.
FREE = (
    *("trainer", "strategy", "recompute", "compile", "fp8", "callbacks", "logger", "resume", "checkpoint", "trust"),
    *("run", "name", "hydra", "sampler", "data.num_workers", "optimizer.fused", "text.long", "text.unknown"),
)
FREE_DATA = tuple(
    f"data.{name}"
    for name in (
        *("micro_batch", "cache_gib", "disk_cache", "disk_cache_gib", "validation_root", "validation_clips", "root"),
        *("timeout", "budget", "quarantine"),
        *("urls", "validation_urls", "readers", "wait", "pipes"),
        # The data module refuses changes that concern steps already taken.
        *("stages", "buckets", "weights"),
    )
)


def run(cfg: DictConfig) -> None:
    """Train as configured; the first process owns the run folder for all of them."""
    # Until training begins there is nothing to save, and the launcher that sends this signal queues the run again.
    signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(AGAIN))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    environment.check(os.environ, processes_of_node(cfg), cfg.trainer.num_nodes)
    overrides = [*HydraConfig.get().overrides.task, *name_of_job(cfg)]
    if not is_first_process():
        die_with_parent()
    try:
        with (
            kept_environment(),
            owning(cfg.run, "train") if is_first_process() else nullcontext(),
        ):
            check_links(Path(cfg.run))
            train(cfg, overrides)
    except Diverged as error:
        if error.rollback is None:
            raise
        say(f"videodiff train: {error}")
    else:
        return
    begin_again(cfg.run, overrides)


@contextmanager
def kept_environment() -> Iterator[None]:
    """Undo what a training writes into the environment: the next training would take it for a launcher's variables."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def begin_again(folder: str, overrides: list[str]) -> None:
    """Continue the run in a new process that replaces this one, or leave that to the launcher.

    The new process gets what a run does not store, or what is not taken from its folder: whom to trust, secrets, and
    where anything is written or sent.
    """
    if environment.started_by(os.environ) in (environment.TORCHRUN, environment.SLURM):
        sys.exit(AGAIN)
    kept = [override for override in to_keep(overrides) if not is_only_here(key_of(override))]
    rest = [o for o in overrides if o not in kept and key_of(o) not in ("resume", "checkpoint")]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "videodiff", "train", f"resume={folder}", *rest])


def name_of_job(cfg: DictConfig) -> list[str]:
    """Give each job of a sweep its own name if the command line has none: the jobs must not share a folder."""
    hydra = HydraConfig.get()
    given = [override for override in hydra.overrides.task if override != f"resume={AUTO}"]
    named = any(override.startswith(("name=", "run=", "resume=")) for override in given)
    if hydra.mode != RunMode.MULTIRUN or named:
        return []
    cfg.name = f"{cfg.name}_{hydra.job.num}"
    return [f"name='{cfg.name}'"]


def choose_start(cfg: DictConfig, overrides: list[str], folder: Path) -> Path | None:
    """Return the checkpoint to resume from, None for a new run; a new run over an existing one is an error."""
    first, found = is_first_process(), cfg.resume == AUTO
    if found:
        if mirror := OmegaConf.select(cfg, "callbacks.checkpoints.mirror"):
            bring(place_of(mirror, folder), folder, needed=False)
        cfg.resume = str(folder) if checkpoints(folder) else None
    if cfg.resume is not None:
        if Path(cfg.resume).resolve() != folder.resolve():
            raise ValueError(
                f"run: found {folder} beside resume={cfg.resume}, expected no other folder, as a run goes on in its "
                f"own; start_from={cfg.resume} begins a new run with its weights"
            )
        before = read_run(folder, cfg.trust)
        fill_text(cfg, before)
        for line in keep_defaults(cfg, before, folder, overrides):
            if first:
                say(f"videodiff train: {line}")
        check_same(cfg, before, folder, overrides)
        checkpoint = choose_checkpoint(folder, cfg.checkpoint, hashed=world_size(cfg) == 1)
        is_before_pieces(checkpoint)
        if first and found:
            say(f"videodiff train: goes on from {checkpoint}")
        if first and step_of(checkpoint) >= (last := cfg.trainer.max_steps):
            say(f"videodiff train: takes no step: {checkpoint} has reached trainer.max_steps={last}")
        return checkpoint
    if cfg.checkpoint is not None:
        raise ValueError(f"checkpoint: found {cfg.checkpoint} without resume=, expected the run of this checkpoint")
    if first and checkpoints(folder):
        raise ValueError(f"run: {folder} already holds a run; continue it with resume={folder} or choose another name=")
    return None


def train(cfg: DictConfig, overrides: list[str]) -> None:
    """Build and fit."""
    folder, first = Path(cfg.run), is_first_process()
    checkpoint = choose_start(cfg, overrides, folder)
    start = find_start(cfg) if checkpoint is None else None
    check_kept(cfg)
    place = str(cfg.data.get("root") or cfg.data.get("urls"))
    if cfg.resume is not None and first and "://" in place:
        say(f"videodiff train: reads {without_secrets(place)}, the data of the run")
    quiet_and_quick()
    fill_text(cfg)
    optimizer, schedule = (instantiate_partial(name, cfg[name]) for name in ("optimizer", "schedule"))
    data, world = build_data(cfg), world_size(cfg)
    data.check(world)
    strategy = for_world(instantiate(cfg.strategy), world)
    check_strategy(cfg, strategy)
    with NodeCopies(processes_of_node(cfg)) as copies, naming_remedies(cfg, data, world):
        model = build_model(cfg, birth_under(strategy))
    find_teacher(cfg, model.objective)
    data.check_encoders(model.codec, model.text)
    parts = parts_of(model.denoiser, model.text)
    freeze(parts, cfg.freeze, model.objective.learns)
    if start is not None:
        start.check(parts, latent_shape(model.codec, cfg.data.frames, cfg.data.height, cfg.data.width))
    said = (data.check_captions(model.text), off_the_steps(cfg, model), below_limit(cfg, data, world), never_warm(cfg))
    for line in chain(*said, rarely_begun(cfg, model, data), mixed(levels_apart(model, data), model.denoiser)):
        if first:
            say(f"videodiff train: {line}")
    planned = isinstance(data, ClipDataModule)
    if first and planned and (cfg.data.batch or sum(len(stage.buckets) for stage in data.stages) > 1):
        shares = data.mesh(world).data_world
        say_lines(format_plan(plan(data.stages, data.order, data.accumulate(world), shares, clip_cost(cfg))))
    # The compiler has to see what is recomputed, and both what is computed in FP8.
    for group in ("fp8", "recompute", "compile"):
        if cfg.get(group):
            line = instantiate_partial(group, cfg[group])(model.denoiser)
            if first and line:
                say(f"videodiff train: {group}: {line}")
    trainer = build_trainer(cfg, model, data.accumulate(world), strategy)
    trainer.callbacks.append(LambdaCallback(on_train_start=partial(forget, copies)))
    optimizer = engine_of(trainer.strategy).choose_optimizer(optimizer)
    config = resolved(cfg, model, data.at_once(world))
    if first:
        if checkpoint is None:
            set_aside(folder)
        write_record(folder, signed(config), to_keep(overrides))
        write_trained(folder, data.trained)
    module = VideoDiffusion(*model, optimizer=optimizer, schedule=schedule, seed=cfg.seed)
    module.checkpoint, module.start, module.continues_average = checkpoint, start, cfg.start_from is not None
    if checkpoint is not None:
        go_on_from(folder, data, checkpoint)
        module.fall_back = partial(go_on_from, folder, data) if cfg.checkpoint is None else None
    check_tables(trainer.loggers)
    log_configuration(trainer.loggers, config)
    with naming_remedies(cfg, data, world):
        fit(trainer, module, data)


def go_on_from(folder: Path, data: BatchModule, checkpoint: Path) -> None:
    """Put newer checkpoints aside, and have the data leave out what a rollback to this checkpoint says."""
    first, batches = is_first_process(), batches_to_leave(folder, checkpoint) if data.ordered else 0
    if first:
        leave_behind(folder, checkpoint)
    data.leave_out = batches
    if first and batches:
        say(
            f"videodiff train: leaves out {count_text(batches, 'batch')} after {checkpoint.name}: there training had "
            "diverged"
        )


def forget(copies: NodeCopies, trainer: lightning.Trainer, module: VideoDiffusion) -> None:
    """Remove the copies of encoders that the processes of this node shared: each has loaded its own by now."""
    if trainer.local_rank == 0:
        copies.remove()


def below_limit(cfg: DictConfig, data: BatchModule, world: int) -> Iterator[str]:
    """Yield a line if the processes take fewer clips at once than data.micro_batch allows, as their share is odd."""
    limit, share = cfg.data.micro_batch, data.global_batch // data.mesh(world).data_world
    if limit is not None and (taken := data.at_once(world)) < min(limit, share):
        yield f"data.micro_batch: takes {taken} at once, not {limit}: the {share} clips of a process divide by no more"


@contextmanager
def naming_remedies(cfg: DictConfig, data: BatchModule, world: int) -> Iterator[None]:
    """Turn an error that says that memory is short into one line with overrides that need less."""
    try:
        yield
    except (RuntimeError, MemoryError, InstantiationException) as error:
        # Hydra hides what a class has raised.
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not is_no_room(cause):
            raise
        raise ValueError(out_of_memory(cfg, data, world, cause)) from error


def out_of_memory(cfg: DictConfig, data: BatchModule, world: int, error: Exception) -> str:
    """Return one line that says what did not fit into memory, and which overrides need less by the planner."""
    sequence, accumulate = cfg.strategy.get("sequence_parallel", 1), data.accumulate(world)
    strategy = HydraConfig.get().runtime.choices.get("strategy") or "auto"
    if strategy == "auto":
        strategy = "ddp" if world > 1 else "single"
    now = Choice(strategy, cfg.recompute.level if cfg.get("recompute") else "none", sequence, accumulate)
    tried = remedies_of(cfg, world, now, *card_of())
    told = " ".join(str(error).split(" See documentation")[0].split())
    what = f"try {', or '.join(tried)}" if tried else "it takes more processes, or a smaller network or clip"
    clips = count_text(data.at_once(world), "clip")
    return f"out of memory with {clips} at once on each process: {told[:300].rstrip('.')}; {what}"


def card_of() -> tuple[str, float]:
    """Return the name and the bytes of the device that this process trains on."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        return found.name, float(found.total_memory)
    return "CPU", float(memory())


def fit(trainer: lightning.Trainer, module: VideoDiffusion, data: BatchModule) -> None:
    """Train; a failure of a rank or of the disk becomes one clear line."""
    folder = trainer.default_root_dir
    try:
        trainer.fit(module, datamodule=data)
    except RuntimeError as error:
        if (lost := lost_rank(trainer, error)) is None:
            raise
        raise lost from error
    except OSError as error:
        if error.filename is None and error.errno == errno.ENOSPC:
            raise OSError(error.errno, error.strerror, folder) from error
        raise
    if trainer.is_global_zero:
        say(f"videodiff train: {count_text(trainer.global_step, 'step')} in {folder}")
    if any(getattr(callback, "stopped", False) for callback in trainer.callbacks):
        sys.exit(AGAIN)


def to_keep(overrides: Sequence[str]) -> list[str]:
    """Return the overrides to store for a resume, without trust and secrets: each command line gives these."""
    return [
        override
        for override in overrides
        if key_of(override) not in ("resume", "checkpoint", "trust", "data.pipes")
        and without_secrets(override) == override
        and not names_command(override)
    ]


def check_strategy(cfg: DictConfig, strategy: Strategy | str) -> None:
    """Raise if compiled blocks or products in FP8 are asked for and cannot work here, or gain nothing."""
    stage = getattr(engine_of(strategy), "stage", None) if isinstance(strategy, Strategy) else None
    if cfg.get("compile"):
        check_stage(stage)
    if cfg.fp8.recipe == "none":
        return
    gpu, precision = cfg.trainer.accelerator not in ("cpu", "mps", "tpu"), str(cfg.trainer.precision)
    check_training(cfg.fp8.emulate, bool(cfg.get("compile")), precision, stage, gpu)


def off_the_steps(cfg: DictConfig, model: Model) -> Iterator[str]:
    """Yield a line if an objective that trains the steps of a sampler trains those of another one than the run's."""
    if not model.objective.forwards:
        return
    tokens = math.prod(latent_shape(model.codec, cfg.data.frames, cfg.data.height, cfg.data.width)[1:])
    trained = model.objective.levels.shift(tokens)
    if not math.isclose(trained, cfg.sampler.shift, rel_tol=0.01):
        yield (
            f"sampler.shift: found {cfg.sampler.shift:g}, expected {trained:.3g}, at which objective.levels trains the "
            "steps: samples fall between them"
        )


def rarely_begun(cfg: DictConfig, model: Model, data: BatchModule) -> Iterator[str]:
    """Yield a line for clips no longer than the frames that lead, if they are trained at much lower levels.

    A shift that grows with the number of tokens gives a single frame few high levels. At high levels the network
    decides what is where.
    """
    lead, shift, levels = cfg.sampler.lead, cfg.sampler.shift, noise_levels(model)
    for shape in dict.fromkeys(one.shape for one in data.trained) if lead and levels else ():
        _, t, h, w = latent_shape(model.codec, *shape)
        found = levels.shift(t * h * w)
        if t <= lead and found < shift / 2:
            yield (
                f"objective.levels: found a shift of {found:.3g} for clips of {' x '.join(map(str, shape))}, expected "
                f"about {shift:g}, with which sampler.lead={lead} begins every clip; objective.levels.base_tokens=null "
                "gives all shapes the same shift"
            )


def never_warm(cfg: DictConfig) -> Iterator[str]:
    """Yield a line if a run ends before its learning rate has risen: a short trial then learns next to nothing."""
    warmup, steps = cfg.schedule.get("warmup"), cfg.trainer.max_steps
    if isinstance(warmup, int) and warmup > steps:
        yield (
            f"schedule.warmup: found {warmup} with trainer.max_steps={steps}: the learning rate reaches at most "
            f"{100 * steps // warmup} % of optimizer.lr"
        )


def noise_levels(model: Model) -> NoiseLevels | None:
    """Return the noise levels of the objective, None if a class of the user's draws them in its own way."""
    levels = getattr(model.objective, "levels", None)
    return levels if isinstance(levels, NoiseLevels) else None


def levels_apart(model: Model, data: BatchModule) -> dict[str, Sequence[int]]:
    """Return the latents that a policy gives levels of their own in the longest clips, by its key."""
    levels = noise_levels(model)
    if levels is None:
        return {}
    longest = model.codec.latent_frames(max(shape.frames for shape in data.trained))
    return {f"objective.levels.policies.{name}": at for name, at in levels.apart(longest).items()}


def check_kept(cfg: DictConfig) -> None:
    """Raise if a value cannot be stored, because it would be read as a reference."""
    for place, value in leaves(OmegaConf.to_container(cfg, resolve=True)):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{dotted(place)}: found {value!r}, expected a value without ${{}}: a run cannot keep it")


def resolved(cfg: DictConfig, model: Model, at_once: int) -> dict[str, Any]:
    """Return the configuration for the record: readable without the dataset, and without secrets.

    Instead of a limit of the micro-batch it has the clips that a process takes `at_once`.
    """
    config = to_tell(OmegaConf.to_container(cfg, resolve=True))
    if cfg.data.micro_batch is not None:
        config["data"]["micro_batch"] = at_once
    if hasattr(model.text, "vocabulary"):
        config["text"]["vocabulary"] = list(model.text.vocabulary)
    return config


def build_trainer(
    cfg: DictConfig, model: Model, accumulate: int, strategy: Strategy | str = "auto"
) -> lightning.Trainer:
    """Build Lightning's trainer, with so many micro-batches a step."""
    settings = {**cfg.trainer, "val_check_interval": cfg.trainer.val_check_interval * accumulate}
    if cfg.data.validation_root is None and cfg.data.get("validation_urls") is None:
        settings["limit_val_batches"] = 0
    trainer = instantiate(
        settings,
        strategy=strategy,
        callbacks=build_callbacks(cfg, model),
        logger=[instantiate(logger) for logger in (cfg.get("logger") or {}).values()],
        accumulate_grad_batches=accumulate,
        check_val_every_n_epoch=None,
        max_epochs=-1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=cfg.run,
    )
    # Lightning's own signal handlers would communicate with other ranks at arbitrary moments; see StopGently. Without
    # them Lightning still asks the first rank before each micro-batch, and the host waits for the device.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    # Lightning would round frame rates and cached latents to the type of the weights; each layer chooses for itself.
    trainer.precision_plugin.convert_input = lambda batch: batch
    share_clips(model.denoiser, trainer.strategy)
    return trainer


def build_callbacks(cfg: DictConfig, model: Model) -> list[Any]:
    """Build the callbacks; the progress line needs to know what a clip takes."""
    again = {key: cfg.recompute[key] for key in ("level", "every")} if cfg.get("recompute") else {}
    shapes = Shapes(model.codec.latent_frames, model.codec.compression, tuple(cfg.model.patch))
    work = partial(work_of, shapes=shapes, network=network_of_run(cfg, model.objective), **again)
    more = {"progress": {"work": work}}
    return [instantiate(callback, **more.get(name, {})) for name, callback in (cfg.callbacks or {}).items()]


def world_size(cfg: DictConfig) -> int:
    """Return how many processes train together."""
    return cfg.trainer.num_nodes * processes_of_node(cfg)


def processes_of_node(cfg: DictConfig) -> int:
    """Return how many processes train on each node."""
    devices = cfg.trainer.devices
    return count_processes(list(devices) if isinstance(devices, ListConfig) else devices)


def keep_defaults(new: DictConfig, old: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Give every key without an override the value that it had in the run, and return one line for each.

    A default may have changed since the run began.
    """
    given = [key_of(override) for override in overrides]
    # Only compared: what may be taken from it was checked when it was read for the command line.
    stored = read_plain(folder / OVERRIDES) if (folder / OVERRIDES).is_file() else []
    if any(override not in (stored or []) for override in overrides if key_of(override) == "experiment"):
        return []
    today = flatten(to_tell(OmegaConf.to_container(new, resolve=True)))
    lines = []
    for key, value in flatten(OmegaConf.to_container(old, resolve=True)).items():
        by_user = any(touches(name, key) for name in given)
        if key in today and today[key] != value and not (by_user or is_free(key) or is_magic(key.rpartition(".")[2])):
            OmegaConf.update(new, key, value)
            lines.append(
                f"{key}: continues with {value!r} as in {folder}/config.yaml, today's default is {today[key]!r}"
            )
    return lines


def check_same(new: DictConfig, old: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Raise if the new configuration would train something else than the old one.

    A key that the old one lacks, and that no override sets, came with a later version: see `versions.MEANT`.
    """
    new = flatten(to_tell(OmegaConf.to_container(new, resolve=True)))
    old = flatten(OmegaConf.to_container(old, resolve=True))
    for key in sorted(new.keys() | old.keys()):
        later = key not in old and not any(touches(key_of(override), key) for override in overrides)
        same = new.get(key) == old.get(key) or later
        if not same and not is_free(key):
            found = repr(new[key]) if key in new else "no such key in this version"
            raise ValueError(
                f"resume={folder}: {key}: found {found}, expected {old.get(key)!r} as in {folder}/config.yaml"
            )


def is_free(key: str) -> bool:
    """Return whether a key may change at a resume."""
    return any(key == name or key.startswith(f"{name}.") for name in (*FREE, *FREE_DATA, "text.vocabulary"))


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested dictionary with dotted keys."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {k: v for key, value in node.items() for k, v in flatten(value, f"{prefix}{key}.").items()}


def quiet_and_quick() -> None:
    """Silence Lightning's advice, and keep glibc from returning large blocks to the kernel at every step.

    On a CPU a third of a step is page faults otherwise.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Each process would print it on every machine with Slurm; `videodiff doctor` reports what is wrong with a launch.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 1 << 30)
