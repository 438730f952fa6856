"""A training that runs out of memory says what takes less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import tiny
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.planning.flops import network_of
from videodiff.planning.forecast.choice import Choice, Job, Shape, memory_of
from videodiff.planning.forecast.grown import Grown
from videodiff.planning.forecast.hardware import Cluster
from videodiff.planning.forecast.trace import Kind, Passes, Weights
from videodiff.planning.remedies import remedies
from videodiff.training import module


def job(half: bool = False) -> Job:
    """Return a training of eight clips whose passes keep 400 MB a clip, 240 and 80 with recompute."""
    kept = {"none": 4e8, "selective": 2.4e8, "full": 0.8e8}

    def trace(level: str, halved: bool) -> Grown:
        each = np.array([kept[level], 0.0])
        none, kinds = np.zeros(2), [Kind("mm", 512), Kind("end")]
        made = Passes(kinds, np.array([1e12, 0]), each, each, none, none, none, 1, Weights(10**6, 0, 10**5))
        return Grown(made, made, (2, 2), 2, 1)

    network = network_of(64, ("space", "time"), 2, patch=12, words=8, text_width=16)
    return Job(network, [Shape("8 x 16 x 16", 8, 16, 2048, 8, trace, 1e5)], half, False, False)


def cards(gib: float, nodes: int = 1, count: int = 1) -> Cluster:
    """Return a cluster of cards of so many GiB."""
    return Cluster(
        *("card", nodes, count, gib, {"half": 100, "full": 50}, {64: 0.2, 1024: 0.6}, 1000, 100, 10),
        **{"context_gib": 0.0, "slack": 0.0},
    )


@pytest.mark.parametrize(
    ("now", "gib", "count", "wanted"),
    [
        # 3.2 GB in 2.5: a selective recompute takes 1.9.
        (Choice("single", "none", 1, 1), 2.5, 1, {"recompute=selective", "recompute=full", "data.micro_batch=4"}),
        # In 1.2 GB it takes more than the first of these.
        (Choice("single", "none", 1, 1), 1.2, 1, {"recompute=full", "data.micro_batch=2"}),
        # In 0.3 GB two changes are needed.
        (Choice("single", "none", 1, 1), 0.3, 1, {"recompute=full data.micro_batch=2"}),
        (
            Choice("ddp", "full", 1, 1),
            0.25,
            4,
            {"data.micro_batch=1", "strategy.sequence_parallel=2 data.micro_batch=2"},
        ),
        (Choice("single", "none", 1, 1), 0.05, 1, set()),
    ],
)
def test_a_remedy_fits_and_takes_less(now: Choice, gib: float, count: int, wanted: set[str]) -> None:
    found = remedies(job(), cards(gib, count=count), now)
    assert wanted <= set(found)
    assert len(found) <= 3
    assert bool(found) == bool(wanted)


def test_no_remedy_names_a_micro_batch_where_the_budget_of_a_step_has_its_number() -> None:
    # Two micro-batches for two processes; one that shares its clips with the other takes both.
    training, now = replace(job(), micro_batches=2), Choice("ddp", "none", 1, 1)
    found = remedies(training, cards(1.2, count=2), now)
    assert {"recompute=full", "strategy.sequence_parallel=2"} <= set(found)
    assert not any("data.micro_batch" in words for words in found)


def test_a_remedy_names_the_part_of_the_usual_batch() -> None:
    # Of 16 clips, where another bucket has 8: as many micro-batches of both.
    found = remedies(replace(job(), stated=16), cards(1.2), Choice("single", "none", 1, 1))
    assert "data.micro_batch=4" in found


@pytest.mark.parametrize("gib", [0.3, 1.2, 2.5, 100])
@pytest.mark.parametrize("now", [Choice("single", "none", 1, 1), Choice("single", "selective", 1, 2)])
def test_the_plan_of_each_remedy_needs_less_than_the_limit(now: Choice, gib: float) -> None:
    here = cards(gib)
    for words in remedies(job(), here, now):
        settings = dict(word.split("=") for word in words.split())
        micro = int(settings.get("data.micro_batch", 8 // now.accumulate))
        then = now._replace(recompute=settings.get("recompute", now.recompute), accumulate=8 // micro)
        memory = memory_of(job(), here, then)
        assert memory.total < min(here.room, memory_of(job(), here, now).total)


# Of a card, of torch on a CPU, and of numpy.
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB."),
        RuntimeError("Tried to allocate 2.00 GiB: can't allocate memory"),
        MemoryError("Tried to allocate 2.00 GiB"),
    ],
)
def test_a_training_out_of_memory_is_one_line_with_remedies_that_train(
    error: Exception,
    world_dataset: Path,
    cwd: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = module.encode_video

    def small(batch: dict[str, object], *rest: object) -> torch.Tensor:
        if len(batch["key"]) > 2:
            raise error
        return encode(batch, *rest)

    monkeypatch.setattr(module, "encode_video", small)
    status, _, err = call("train", "name=a", *tiny(world_dataset), "trainer.max_steps=1")
    assert status == 1
    (line,) = [line for line in err.splitlines() if "out of memory" in line]
    assert line.startswith(
        f"videodiff train: error: out of memory with 4 clips at once on each process: {str(error).rstrip('.')}; try "
    )
    assert set(line.partition("; try ")[2].split(", or ")) == {
        "recompute=selective",
        "recompute=full",
        "data.micro_batch=2",
    }
    status, _, err = call("train", "name=b", *tiny(world_dataset), "trainer.max_steps=1", "data.micro_batch=2")
    assert status == 0, err


@pytest.mark.parametrize("error", [RuntimeError("Tried: can't allocate memory"), MemoryError("Unable to allocate")])
def test_a_network_that_memory_does_not_hold_is_such_a_line_too(
    error: Exception,
    world_dataset: Path,
    cwd: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, errors = SpaceTimeTransformer.__init__, [error]

    def first_fails(self: SpaceTimeTransformer, *arguments: Any, **settings: Any) -> None:
        if errors:
            raise errors.pop()
        build(self, *arguments, **settings)

    monkeypatch.setattr(SpaceTimeTransformer, "__init__", first_fails)
    status, _, err = call("train", "name=a", *tiny(world_dataset), "trainer.max_steps=1")
    assert status == 1
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"videodiff train: error: out of memory with 4 clips at once on each process: {error}; try ")
    assert "VIDEODIFF_TRACEBACK" not in line
