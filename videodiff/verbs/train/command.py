"""videodiff train: compose, build, fit, and leave a run folder with the whole record."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
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
from videodiff.generation.known import mixed
from videodiff.generation.sampling import is_no_room, latent_shape
from videodiff.machine import keep_freed_memory, memory
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
from videodiff.training.run.attempts import check_links, set_aside
from videodiff.training.run.logging import check_tables, log_configuration
from videodiff.training.run.record import to_tell, write_record
from videodiff.training.start import freeze, parts_of
from videodiff.verbs.config.build import (
    Model,
    build_data,
    build_model,
    clip_cost,
    fill_text,
    instantiate_partial,
    network_of_run,
)
from videodiff.verbs.config.expand import AUTO
from videodiff.verbs.config.origin import find_start, find_teacher
from videodiff.verbs.config.stored import dotted, is_only_here, key_of, leaves
from videodiff.verbs.config.versions import signed
from videodiff.verbs.plan.job import remedies_of
from videodiff.verbs.train.advice import below_limit, levels_apart, never_warm, off_the_steps, rarely_begun
from videodiff.verbs.train.resume import choose_start, go_on_from, to_keep
from videodiff.words import count_text


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


def train(cfg: DictConfig, overrides: list[str]) -> None:
    """Build and fit."""
    folder, first = Path(cfg.run), is_first_process()
    world = world_size(cfg)
    checkpoint = choose_start(cfg, overrides, folder, world)
    start = find_start(cfg) if checkpoint is None else None
    check_kept(cfg)
    place = str(cfg.data.get("root") or cfg.data.get("urls"))
    if cfg.resume is not None and first and "://" in place:
        say(f"videodiff train: reads {without_secrets(place)}, the data of the run")
    quiet()
    keep_freed_memory()
    fill_text(cfg)
    optimizer, schedule = (instantiate_partial(name, cfg[name]) for name in ("optimizer", "schedule"))
    data = build_data(cfg)
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


def forget(copies: NodeCopies, trainer: lightning.Trainer, module: VideoDiffusion) -> None:
    """Remove the copies of encoders that the processes of this node shared: each has loaded its own by now."""
    if trainer.local_rank == 0:
        copies.remove()


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


def check_strategy(cfg: DictConfig, strategy: Strategy | str) -> None:
    """Raise if compiled blocks or products in FP8 are asked for and cannot work here, or gain nothing."""
    stage = getattr(engine_of(strategy), "stage", None) if isinstance(strategy, Strategy) else None
    if cfg.get("compile"):
        check_stage(stage)
    if cfg.fp8.recipe == "none":
        return
    gpu, precision = cfg.trainer.accelerator not in ("cpu", "mps", "tpu"), str(cfg.trainer.precision)
    check_training(cfg.fp8.emulate, bool(cfg.get("compile")), precision, stage, gpu)


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


def quiet() -> None:
    """Silence Lightning's advice."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Each process would print it on every machine with Slurm; `videodiff doctor` reports what is wrong with a launch.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
