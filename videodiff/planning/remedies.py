"""Overrides for a training that ran out of memory: they need less memory and do not change the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from videodiff.planning.forecast.choice import Choice, Job, Plan, choices, evaluate, fits, memory_of
from videodiff.planning.forecast.hardware import GIB, Cluster

MOST = 3
# The training did not fit, whatever its plan says, so a remedy must need clearly less than that plan.
LESS = 0.95


def remedies(job: Job, cluster: Cluster, now: Choice) -> list[str]:
    """Return up to three changes that fit by the plan, the fastest first: of one setting each, or else of two.

    A change of the processes that share a clip names the micro-batch too.
    """
    for changes in (1, 2):
        if found := sorted(changed(job, cluster, now, changes), key=lambda plan: plan.seconds.total):
            return list(dict.fromkeys(overrides(job, cluster, now, plan.choice) for plan in found))[:MOST]
    return []


def changed(job: Job, cluster: Cluster, now: Choice, changes: int) -> Iterator[Plan]:
    """Yield the plans that fit and differ in `changes` settings; of several micro-batches, only the largest."""
    limit, seen = LESS * memory_of(job, cluster, now).total, set()
    # If more processes share the same clips, a step has more micro-batches.
    for choice in choices(job, cluster):
        kept = now.accumulate * choice.sequence // now.sequence
        smaller = choice.accumulate != kept
        count = (choice.strategy != now.strategy) + (choice.recompute != now.recompute)
        count += (choice.sequence != now.sequence) + smaller
        if count != changes or choice.accumulate < kept or (smaller and choice[:3] in seen):
            continue
        memory = memory_of(job, cluster, choice)
        if memory.total < limit and fits(memory, cluster):
            seen |= {choice[:3]} if smaller else set()
            yield evaluate(job, cluster, choice)


def overrides(job: Job, cluster: Cluster, now: Choice, then: Choice) -> str:
    """Return the overrides that change one choice into another."""
    words = [
        f"{name}={getattr(then, name)}"
        for name in ("strategy", "recompute")
        if then._asdict()[name] != now._asdict()[name]
    ]
    if then.sequence != now.sequence:
        words.append(f"strategy.sequence_parallel={then.sequence}")
    if job.micro_batches is None and (then.accumulate, then.sequence) != (now.accumulate, now.sequence):
        words.append(f"data.micro_batch={job.micro_batch(cluster.world // then.sequence, then.accumulate)}")
    return " ".join(words)


def machine(cluster: Cluster, card: str, memory: float, nodes: int, cards: int) -> Cluster:
    """Return a copy of a cluster with other cards, of this name and these bytes of memory."""
    return replace(cluster, card=card, memory_gib=memory / GIB, nodes=nodes, cards=cards)
