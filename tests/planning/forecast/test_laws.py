"""What holds of every plan: more of something never costs less, and more cards or faster links never cost more."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from videodiff.planning.forecast.choice import (
    GAIN,
    LEVELS,
    Choice,
    Job,
    Plan,
    best,
    divisors,
    evaluate,
    fitting,
    least,
    plainness,
)
from videodiff.planning.forecast.faults import saving
from videodiff.planning.forecast.hardware import GIB, Cluster
from videodiff.planning.forecast.memory import SPLIT
from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.plan.job import job_of

RECIPES = {
    "half": ("hdvila_256", "model.width=256", "model.depth=4", "model.heads=4", "data.height=64", "data.width=64"),
    "muon": ("uniform_gpu", "model.width=128", "model.depth=4", "model.heads=2", "data.frames=8", "data.height=32"),
    # Six passes without a gradient in a step.
    "taught": ("bouncing_flow_map", "start_from=runs/demo"),
}
MANY = [name for name in SPLIT if name != "single"]
# Sums of the same numbers in another order may differ in their last digits.
ROUND = 1 + 1e-9


@cache
def job(name: str, *more: str) -> Job:
    """Return the training of a recipe on GPUs."""
    experiment, *overrides = RECIPES[name]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return job_of(compose("plan", [f"experiment={experiment}", *overrides, *more]), cpu=False)


def nodes(count: int, **figures: float) -> Cluster:
    """Return nodes of eight H100."""
    return replace(instantiate(OmegaConf.load(conf_dir() / "cluster" / "h100x8.yaml")), nodes=count, **figures)


def plan(training: Job, cluster: Cluster, clips: int, choice: Choice) -> Plan:
    """Return the plan of a step of so many clips."""
    shapes = [shape._replace(global_batch=clips) for shape in training.shapes]
    return evaluate(replace(training, shapes=shapes, stated=0), cluster, choice)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("strategy", MANY)
@pytest.mark.parametrize("name", RECIPES)
def test_more_cards_never_take_more_memory_each(name: str, strategy: str, level: str) -> None:
    for clips in (lambda cluster: 1024, lambda cluster: 4 * cluster.world):
        found = [plan(job(name), c, clips(c), Choice(strategy, level, 1, 1)).memory for c in map(nodes, (1, 2, 4, 16))]
        totals = [memory.total for memory in found]
        assert all(more <= ROUND * less for less, more in pairwise(totals))
        if SPLIT[strategy]:
            state = [memory.optimizer + memory.average + memory.host for memory in found]
            assert state == sorted(state, reverse=True)


@pytest.mark.parametrize("strategy", SPLIT)
@pytest.mark.parametrize("name", RECIPES)
def test_more_recompute_takes_no_more_memory_and_no_less_time(name: str, strategy: str) -> None:
    cluster = nodes(1, cards=1) if strategy == "single" else nodes(1)
    for accumulate in (1, 2):
        found = [plan(job(name), cluster, 8 * cluster.world, Choice(strategy, lv, 1, accumulate)) for lv in LEVELS]
        memory, seconds = [one.memory.total for one in found], [one.seconds.total for one in found]
        assert memory == sorted(memory, reverse=True)
        assert seconds == sorted(seconds)


@pytest.mark.parametrize("strategy", MANY)
@pytest.mark.parametrize(
    "figure", ["node_gb_per_s", "network_gb_per_s", "host_gb_per_s", "memory_gb_per_s", "storage_gb_per_s"]
)
def test_nothing_that_is_faster_makes_a_step_slower(figure: str, strategy: str) -> None:
    usual = getattr(nodes(2), figure)
    for sequence in (1, 2):
        found = [
            plan(job("muon"), nodes(2, **{figure: usual * times}), 128, Choice(strategy, "none", sequence, 1))
            for times in (0.01, 0.1, 1, 10)
        ]
        seconds = [one.seconds.total for one in found]
        assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_longer_and_more_clips_take_no_less(strategy: str, level: str) -> None:
    choice = Choice(strategy, level, 1, 1)
    longer = [plan(job("muon", f"data.frames={frames}"), nodes(1), 64, choice) for frames in (8, 16, 64)]
    more = [plan(job("muon"), nodes(1), clips, choice) for clips in (8, 16, 128)]
    for found in (longer, more):
        for figure in ([one.memory.total for one in found], [one.seconds.total for one in found]):
            assert figure == sorted(figure)


def test_larger_cards_never_have_a_worse_plan() -> None:
    last = float("inf")
    for gib in (3, 6, 12, 48, 96):
        found = best(job("half"), nodes(1, memory_gib=gib))
        cost = found.seconds.total * (1 + GAIN * plainness(found.choice)) if found else float("inf")
        assert cost <= last
        last = cost
    assert last < float("inf")


def test_more_faults_save_more_often_and_lose_more() -> None:
    found = [saving(nodes(count, faults=0.2), 10**9) for count in (1, 8, 64, 512)]
    assert [one.interval for one in found] == sorted((one.interval for one in found), reverse=True)
    assert [one.lost for one in found] == sorted(one.lost for one in found)
    # By hand: the state's 16 GB over 8 cards at 50 GB/s, and a second; 0.2 faults a year for each of them.
    assert found[0].interval == pytest.approx((2 * (1 + 16 / 8 / 50) * 365.25 * 86400 / 1.6) ** 0.5)


@pytest.mark.parametrize(("number", "wanted"), [(1, [1]), (16, [1, 2, 4, 8, 16]), (12, [1, 2, 3, 4, 6, 12])])
def test_divisors_come_in_order_and_once(number: int, wanted: list[int]) -> None:
    assert divisors(number) == wanted
    # A prime of ten digits is no work.
    assert divisors(1_000_000_007) == [1, 1_000_000_007]


@pytest.mark.parametrize("name", RECIPES)
def test_the_best_plan_is_the_best_of_all_that_fit(name: str) -> None:
    smallest, levels = least(job(name), nodes(1, memory_gib=1e-3)).total / GIB, set()
    # Just enough for one choice, and for some.
    for gib in (1.0001 * smallest, 2.5 * smallest):
        cluster = nodes(1, memory_gib=gib, context_gib=0.0, slack=0.0)
        found, every = best(job(name), cluster), fitting(job(name), cluster)
        costs = [plan.seconds.total * (1 + GAIN * plainness(plan.choice)) for plan in (found, *every)]
        assert costs[0] == min(costs)
        levels |= {plan.choice.recompute for plan in every}
    assert len(levels) > 1
