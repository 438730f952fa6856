"""What to change where a training runs out of memory: overrides that take less and leave its result as it is."""

from __future__ import annotations

from collections.abc import Iterator

from videodiff.planning.forecast.choice import Choice, Job, Plan, choices, evaluate, fits, memory_of
from videodiff.planning.forecast.hardware import GIB, Cluster

MOST = 3
# It did not fit whatever the plan says, so that a remedy has to take less than that by some margin.
LESS = 0.95


def remedies(job: Job, cluster: Cluster, now: Choice) -> list[str]:
    """Return up to three changes of one setting each that fit by the plan, the quickest first; of two where none does.

    A change of the processes that share a clip, and of the micro-batch, names both.
    """
    for changes in (1, 2):
        if found := sorted(changed(job, cluster, now, changes), key=lambda plan: plan.seconds.total):
            return list(dict.fromkeys(overrides(job, cluster, now, plan.choice) for plan in found))[:MOST]
    return []


def changed(job: Job, cluster: Cluster, now: Choice, changes: int) -> Iterator[Plan]:
    """Yield the plans of so many changes that fit; of micro-batches the largest one that does."""
    limit, seen = LESS * memory_of(job, cluster, now).total, set()
    # The same clips at once, shared by more processes, make more micro-batches.
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
    """Return the overrides from one choice to another."""
    words = [
        f"{name}={getattr(then, name)}"
        for name in ("strategy", "recompute")
        if then._asdict()[name] != now._asdict()[name]
    ]
    if then.sequence != now.sequence:
        words.append(f"strategy.sequence_parallel={then.sequence}")
    if (then.accumulate, then.sequence) != (now.accumulate, now.sequence):
        words.append(f"data.micro_batch={job.batch * then.sequence // (cluster.world * then.accumulate)}")
    return " ".join(words)


def machine(cluster: Cluster, card: str, memory: float, nodes: int, cards: int) -> Cluster:
    """Return a cluster of other cards: those that a training runs on, by their name and bytes."""
    return Cluster(**{**vars(cluster), "card": card, "memory_gib": memory / GIB, "nodes": nodes, "cards": cards})
