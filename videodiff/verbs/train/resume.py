"""Where a training goes on from: its checkpoint, and what may differ from the configuration that began it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from videodiff.data.loader.datamodule import BatchModule
from videodiff.data.storage.address import without_secrets
from videodiff.parallel.ranks import is_first_process
from videodiff.printing import say
from videodiff.training.rollback import batches_to_leave
from videodiff.training.run.record import to_tell
from videodiff.training.state.before import is_before_pieces
from videodiff.training.state.checkpoint import checkpoints, choose_checkpoint, leave_behind, step_of
from videodiff.training.state.mirror import bring, place_of
from videodiff.verbs.config.build import fill_text, read_run
from videodiff.verbs.config.checking import touches
from videodiff.verbs.config.expand import AUTO, OVERRIDES
from videodiff.verbs.config.stored import is_magic, key_of, names_command, read_plain
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


def choose_start(cfg: DictConfig, overrides: list[str], folder: Path, world: int) -> Path | None:
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
        checkpoint = choose_checkpoint(folder, cfg.checkpoint, hashed=world == 1)
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


def to_keep(overrides: Sequence[str]) -> list[str]:
    """Return the overrides to store for a resume, without trust and secrets: each command line gives these."""
    return [
        override
        for override in overrides
        if key_of(override) not in ("resume", "checkpoint", "trust", "data.pipes")
        and without_secrets(override) == override
        and not names_command(override)
    ]


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
