"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videodiff.planning.flops import forward_and_backward
from videodiff.planning.forecast.choice import Choice, Job, Plan, Shape, clips_of
from videodiff.planning.forecast.duration import Seconds
from videodiff.planning.forecast.faults import saving
from videodiff.planning.forecast.hardware import GIB, Cluster
from videodiff.words import count_text

DAY = 86400.0


def as_json(job: Job, cluster: Cluster, plan: Plan) -> dict[str, Any]:
    """Return all figures of a plan; memory in bytes, times in seconds."""
    weights = job.weights(plan.choice)
    saved = saving(cluster, weights.saved)
    if saved.lost >= 1:
        raise ValueError(
            f"cluster.faults: found {cluster.faults:g} for a card and year, one in {saved.between:.3g} s, expected so "
            "few that a job starts and saves between two of them"
        )
    step, steps = plan.seconds.total, job.steps
    stored = job.mean(shape.global_batch * shape.stored for shape in job.shapes)
    clips = job.mean(shape.global_batch for shape in job.shapes)
    tokens = job.mean(shape.global_batch * shape.tokens for shape in job.shapes)
    seconds = steps * step / (1 - saved.lost)
    return {
        "cluster": {"card": cluster.card, "nodes": cluster.nodes, "cards": cluster.cards, "room": cluster.room},
        "weights": weights.all + weights.frozen,
        "choice": plan.choice._asdict() | {"micro_batch": plan.clips},
        "memory": plan.memory._asdict() | {"total": plan.memory.total},
        "step": plan.seconds._asdict() | {"total": plan.seconds.total},
        "shapes": [of_shape(*pair, cluster, plan.choice) for pair in zip(job.shapes, plan.by_shape, strict=True)],
        "mfu": plan.mfu,
        "sent": plan.sent._asdict(),
        "tokens_per_s_per_card": tokens / step / cluster.world,
        "tokens_per_day": tokens / step * DAY * (1 - saved.lost),
        "steps": steps,
        "clips": steps * clips,
        "tokens": steps * tokens,
        "days": seconds / DAY,
        "cost": seconds / 3600 * cluster.world * cluster.price,
        "read_gb_per_s_per_node": stored / step / cluster.nodes / 1e9,
        "storage_tb_of_1m_clips": stored / clips * 1e6 / 1e12,
        "checkpoint": saved._asdict() | {"steps": max(1, round(saved.interval / step))},
    }


def of_shape(shape: Shape, seconds: Seconds, cluster: Cluster, choice: Choice) -> dict[str, Any]:
    """Return the figures of one shape; `micro_batch`: the clips of one."""
    own = {name: value for name, value in shape._asdict().items() if name not in ("trace", "encoding")}
    return own | {"micro_batch": clips_of(shape, cluster, choice), "seconds": seconds.total}


def as_text(name: str, job: Job, cluster: Cluster, plan: Plan, found: dict[str, Any]) -> str:
    """Return a plan as a page for people."""
    shape, choice, saved = job.largest, plan.choice, found["checkpoint"]
    flops = forward_and_backward(shape.time, shape.space, job.network)
    head = [
        ("plan", f"{name} on {cluster.nodes} x {cluster.cards} {cluster.card}, {count_text(cluster.world, 'process')}"),
        (
            "network",
            f"{count_text(len(job.network.axes), 'block')} of width {job.network.width}, "
            f"{count_text(found['weights'], 'weight')}",
        ),
        *(("clips", described(s, job)) for s in job.shapes),
        ("work", f"{flops / 1e12:.3g} TFLOP for a clip of {shape.name}, forward and backward"),
        (
            "choice",
            f"strategy={choice.strategy} recompute={choice.recompute}, {count_text(choice.sequence, 'process')} a "
            f"clip, {count_text(plan.clips, 'clip')} at once, {count_text(choice.accumulate, 'micro-batch')} a step",
        ),
    ]
    parts = [(part, f"{size / GIB:8.2f} GiB") for part, size in plan.memory._asdict().items() if size]
    times = [
        (part, f"{1e3 * s:8.1f} ms  {s / plan.seconds.total:4.0%}") for part, s in plan.seconds._asdict().items() if s
    ]
    tail = [
        (
            "speed",
            f"MFU {found['mfu']:.1%}; {found['tokens_per_s_per_card']:,.0f} tokens a second and card, "
            f"{count(found['tokens_per_day'])} a day",
        ),
        ("budget", budget(cluster, found)),
        (
            "data",
            f"{found['read_gb_per_s_per_node']:.3g} GB/s a node; a million clips take "
            f"{found['storage_tb_of_1m_clips']:.2g} TB",
        ),
        *checkpoints(cluster, saved),
    ]
    memory = [*parts, ("together", f"{plan.memory.total / GIB:8.2f} GiB of {cluster.room / GIB:.1f}")]
    step = [*times, ("together", f"{1e3 * plan.seconds.total:8.1f} ms")]
    title = "\na step"
    if len(job.shapes) > 1:
        title = "\na step, the mean of all"
        step += [
            ("", f"{1e3 * s.total:8.1f} ms of {one.name}") for one, s in zip(job.shapes, plan.by_shape, strict=True)
        ]
    return "\n".join([*rows(head), "\nmemory of a process", *rows(memory), title, *rows(step), "", *rows(tail)])


def described(shape: Shape, job: Job) -> str:
    """Return the line about a shape, with its share of the steps if there are others."""
    share = f"; {shape.steps / job.steps:.0%} of the steps" if len(job.shapes) > 1 else ""
    return f"{shape.name}: {shape.tokens:,} tokens; {count_text(shape.global_batch, 'clip')} a step{share}"


def checkpoints(cluster: Cluster, saved: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines that say how large a checkpoint is, and how often to save one if cards fail."""
    size = f"{saved['size'] / 1e9:.1f} GB, written in {saved['written']:.0f} s"
    if not cluster.faults:
        return [("checkpoint", f"{size}; no faults: save when you like")]
    every = count_text(saved["steps"], "step")
    often = f"best every {every}, {saved['interval'] / 60:.0f} min; {saved['lost']:.2%} is lost"
    return [("checkpoint", f"{size}; a fault every {saved['between'] / DAY:.1f} days"), ("", often)]


def budget(cluster: Cluster, found: dict[str, Any]) -> str:
    """Return the line that says how long a training takes and what it costs."""
    money = f", {found['cost']:,.0f} US dollars at {cluster.price:g} a card and hour" if cluster.price else ""
    return (
        f"{found['steps']:,.0f} steps: {count(found['clips'])} clips, {count(found['tokens'])} tokens: "
        f"{found['days']:.2f} days{money}"
    )


def rows(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each pair, the names in one column."""
    return [f"{name:<14}{text}" for name, text in pairs]


def count(number: float) -> str:
    """Return a large number with three digits and a unit."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.3g}"
