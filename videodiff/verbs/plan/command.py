"""The command: print and write the best plan of a training, or refuse with the smallest change that would fit."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from videodiff.data.order.arithmetic import micro_batches
from videodiff.data.storage.files import check_writable, write_alone
from videodiff.planning.forecast.choice import (
    Choice,
    Job,
    Plan,
    best,
    choices,
    evaluate,
    fits,
    least,
    memory_of,
    nearest,
)
from videodiff.planning.forecast.hardware import GIB, Cluster
from videodiff.planning.forecast.pages import as_json, as_text
from videodiff.planning.remedies import overrides
from videodiff.printing import say, say_lines
from videodiff.training.start import freeze
from videodiff.verbs.config.arguments import Arguments, split
from videodiff.verbs.config.build import check_network
from videodiff.verbs.config.checking import config_dirs
from videodiff.verbs.config.origin import check_learns
from videodiff.verbs.config.stored import key_of
from videodiff.verbs.plan.job import every_of, job_of, weightless
from videodiff.verbs.plan.measure import measure
from videodiff.words import count_text

# Keys of the command line that only this verb has.
OWN = ("cluster", "calibrate", "clips", "tokens", "clip_mb", "json", "resume", "checkpoint")
# Keys that the plan decides.
DECIDED = ("trainer.devices", "trainer.num_nodes", "strategy", "recompute", "data.micro_batch")
# Keys of what it decides that it leaves to the user, and those of them that it does not.
INNER, SETTLED = ("strategy.", "recompute."), ("strategy.sequence_parallel", "recompute.level", "recompute.every")
# Precisions whose memory and speed the plan knows.
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")


def run(cfg: DictConfig) -> None:
    """Print the best plan, and write it as JSON if asked; raise if no plan fits."""
    for name in [name for name in ("json", "calibrate") if cfg[name] is not None]:
        check_writable(name, Path(cfg[name]))
    cluster = instantiate(cfg.cluster)
    cluster.check()
    check(cfg)
    if cfg.calibrate:
        return calibrate(cluster, Path(cfg.calibrate))
    job = job_of(cfg, cluster.cpu)
    plan = best(job, cluster)
    if plan is None:
        raise ValueError(refusal(job, cluster))
    line = override_line(cfg, job, cluster, plan)
    now = present(cfg, job, cluster)
    found = as_json(job, cluster, plan) | {"overrides": line}
    if cfg.json:
        write_alone(Path(cfg.json), f"{json.dumps(found, indent=2)}\n".encode())
    say_lines(as_text(str(cfg.name), job, cluster, plan, found))
    if isinstance(now, str):
        say(f"as it stands  it cannot run: {now}")
    elif now is not None:
        say(told(now, job, cluster))
    for override in [override for override in inner(typed()[1]) if override not in line]:
        say(f"left out      {override}: the plan has another strategy, or no recompute")
    say("")
    say(f"videodiff train {shlex.join(line)}")


def check(cfg: DictConfig) -> None:
    """Raise where a plan is asked for that cannot be made, or where training would refuse the configuration."""
    if cfg.clips is not None and cfg.tokens is not None:
        raise ValueError(f"clips: found {cfg.clips:g} beside tokens={cfg.tokens:g}, expected one budget")
    for name in [name for name in ("resume", "checkpoint") if cfg[name] is not None]:
        raise ValueError(
            f"{name}: found {cfg[name]}, expected null: a plan is of a whole training; give the overrides of the run, "
            "which are in its overrides.yaml"
        )
    if cfg.fp8.recipe != "none":
        raise ValueError(
            f"fp8: found {cfg.fp8.recipe}, expected none: no profile has a speed of products in FP8; plan without "
            "fp8=, which takes about the same memory"
        )
    if str(cfg.trainer.precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision: found {cfg.trainer.precision}, expected one of {', '.join(PRECISIONS)}: the plan "
            "knows neither memory nor speed of others"
        )
    objective = instantiate(cfg.objective)
    check_network(cfg, objective)
    check_learns(cfg, objective)
    if cfg.freeze:
        freeze(weightless(cfg), cfg.freeze, objective.learns)


def calibrate(like: Cluster, path: Path) -> None:
    """Measure this machine, write it down, and say how it differs from the profile that was named."""
    if not like.cpu and not torch.cuda.is_available():
        raise ValueError(f"calibrate: found no GPU here, expected a {like.card}; set cluster=cpux2 for the processor")
    found = measure(like, path)
    for name in ("memory_gb_per_s", "node_gb_per_s", "launch_us"):
        say(f"{name:<18}{getattr(found, name):10.3g}, was {getattr(like, name):.3g}")
    for half, name in ((False, "full"), (True, "half")):
        rates = [float(one.product_rate(np.array([512]), half)[0]) / 1e12 for one in (found, like)]
        say(f"{f'TFLOP/s, {name}':<18}{rates[0]:10.3g}, was {rates[1]:.3g}, products 512 wide")
    say(f"wrote {path}; in conf/cluster it is cluster={path.stem}")


def override_line(cfg: DictConfig, job: Job, cluster: Cluster, plan: Plan) -> list[str]:
    """Return the overrides of videodiff train that run the plan: those of the user, then those of the plan."""
    (arguments, given), limited = typed(), cfg.clips is not None or cfg.tokens is not None
    decided = (*DECIDED, "trainer.max_steps") if limited else DECIDED
    kept = [o for o in given if (key := key_of(o)).partition(".")[0] not in OWN and not within(key, decided)]
    choice, level = plan.choice, plan.choice.recompute
    line = [
        *(f"--config-dir={folder}" for folder in config_dirs(arguments)),
        *kept,
        f"trainer.num_nodes={cluster.nodes}",
        f"trainer.devices={cluster.cards}",
        f"strategy={choice.strategy}",
        f"recompute={level}",
    ]
    if level != "none" and every_of(cfg) > 1:
        line.append(f"recompute.every={every_of(cfg)}")
    if job.micro_batches is None:
        line.append(f"data.micro_batch={job.micro_batch(cluster.world // choice.sequence, choice.accumulate)}")
    if choice.strategy != "single":
        line.append(f"strategy.sequence_parallel={choice.sequence}")
    if limited:
        line.append(f"trainer.max_steps={max(1, round(job.steps))}")
    # Settings of a strategy, or of recompute, hold where the plan has taken it.
    own = {"strategy": named() == choice.strategy, "recompute": level != "none"}
    return line + [override for override in inner(given) if own[key_of(override).partition(".")[0]]]


def typed() -> tuple[Arguments, list[str]]:
    """Return the command line, and its overrides; those of a job of a sweep have a value each."""
    found = split(sys.argv[2:]) if HydraConfig.initialized() else Arguments([], [])
    return found, list(HydraConfig.get().overrides.task) if found.has("--multirun") else found.overrides


def inner(given: Sequence[str]) -> list[str]:
    """Return the overrides of settings of a strategy, or of recompute, that the plan leaves to the user."""
    keys = {override: key_of(override) for override in given}
    return [o for o, key in keys.items() if key.startswith(INNER) and not within(key, SETTLED)]


def named() -> str | None:
    """Return the name of the strategy that the user's configuration takes."""
    return HydraConfig.get().runtime.choices.get("strategy") if HydraConfig.initialized() else None


def within(key: str, names: Sequence[str]) -> bool:
    """Tell whether a key is one of these, or lies below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def present(cfg: DictConfig, job: Job, cluster: Cluster) -> Plan | str | None:
    """Return the plan of the unchanged configuration, or why it cannot run; None for a strategy of the user's own."""
    name = named()
    strategy = {"auto": "single" if cluster.world == 1 else "ddp"}.get(name, name)
    sequence = OmegaConf.select(cfg, "strategy.sequence_parallel") or 1
    if strategy is None:
        return None
    if strategy == "single" and cluster.world > 1:
        return f"strategy=single has one process, and the cluster {count_text(cluster.world, 'card')}"
    if strategy in job.refused:
        return f"training takes no strategy={strategy} with this compile=, optimizer or precision"
    if cluster.cards % sequence or sequence > job.longest:
        return (
            f"strategy.sequence_parallel={sequence} processes share a clip of {count_text(job.longest, 'frame')} in "
            f"the denoiser, on nodes of {count_text(cluster.cards, 'card')}"
        )
    shares = cluster.world // sequence
    sizes, limit = [shape.global_batch for shape in job.shapes], cfg.data.get("micro_batch")
    try:
        accumulate = micro_batches(sizes, job.stated or job.batch, limit, shares, count=job.micro_batches)
    except ValueError as error:
        return str(error)
    level = cfg.recompute.level if cfg.get("recompute") else "none"
    return evaluate(job, cluster, Choice(strategy, level, sequence, accumulate))


def told(now: Plan, job: Job, cluster: Cluster) -> str:
    """Return the line that says whether the unchanged configuration fits, or what would make it fit."""
    size = f"{now.memory.total / 2**30:.1f} GiB a card, {now.seconds.total:.3g} s a step"
    if fits(now.memory, cluster):
        return f"as it stands  {size}: it fits"
    words = overrides(job, cluster, now.choice, nearest(job, cluster, now.choice).choice)
    return f"as it stands  {size}: it does not fit; the smallest change that does: {words}"


def refusal(job: Job, cluster: Cluster) -> str:
    """Return the message that says why no plan fits, and the smallest change of cluster or data that helps."""
    smallest = least(job, cluster)
    if smallest is None:
        return undivided(job, cluster)
    if smallest.total > cluster.room:
        found, room = smallest.total / GIB, cluster.room / GIB
        lack = f"{found:.1f} GiB a card at least, expected at most {room:.1f} GiB of a {cluster.card}"
    else:
        found, room = smallest.host * cluster.cards / GIB, cluster.host_room / GIB
        lack = f"{found:.1f} GiB of a host at least where the cards have room, expected at most {room:.1f} GiB"
    return f"cluster: found {lack}; {larger(job, cluster)}"


def undivided(job: Job, cluster: Cluster) -> str:
    """Return the message that the batch does not divide over the cards, with the nearest one that does."""
    batches, world = sorted({shape.global_batch for shape in job.shapes}), cluster.world
    count = job.micro_batches or max(batches)
    near = world * max(1, round(count / world))
    if job.micro_batches:
        found, change = count_text(count, "micro-batch"), f"set data.batch.micro_batches={near}"
    elif len(batches) == 1:
        found, change = f"batches of {count_text(count, 'clip')}", f"set data.global_batch={near}"
    else:
        found = f"batches of {', '.join(map(str, batches))} clips"
        change = f"set the global_batch of every bucket to a multiple of {world}"
    return (
        f"cluster: found {count_text(world, 'card')} for {found}, expected a number of cards, or of groups that share "
        f"a clip, that divides them; {change}"
    )


def larger(job: Job, cluster: Cluster) -> str:
    """Return the part of the message with the smallest number of nodes that fits, or that no number does."""
    for nodes in range(cluster.nodes + 1, 64 * cluster.nodes + 1):
        grown = replace(cluster, nodes=nodes)
        if any(fits(memory_of(job, grown, choice), grown) for choice in choices(job, grown)):
            return f"the smallest change that fits: cluster.nodes={nodes}"
    return "no number of these nodes fits: choose cards with more memory, or a smaller clip or network"
