"""A training that runs out of memory says what takes less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny
from videodiff.planning.remedies import remedies
from videodiff.training import module


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        ((8, "none", "auto", 1, 1), ["recompute=selective", "data.micro_batch=4", "recompute=full"]),
        ((9, "full", "ddp", 4, 1), ["data.micro_batch=3", "strategy=zero2", "strategy=zero3"]),
        ((1, "selective", "zero2", 6, 2), ["recompute=full", "strategy=zero3", "strategy.sequence_parallel=3"]),
        ((1, "full", "zero3", 4, 4), []),
    ],
)
def test_a_remedy_is_one_that_is_not_in_use(now: tuple[int, str, str, int, int], wanted: list[str]) -> None:
    assert remedies(*now) == wanted


def test_a_training_out_of_memory_is_one_line_with_remedies_that_train(
    world_dataset: Path,
    cwd: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = module.encode_video

    def small(batch: dict[str, object], *rest: object) -> torch.Tensor:
        if len(batch["key"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(batch, *rest)

    monkeypatch.setattr(module, "encode_video", small)
    status, _, err = call("train", "name=a", *tiny(world_dataset), "trainer.max_steps=1")
    assert status == 1
    (line,) = [line for line in err.splitlines() if "out of memory" in line]
    assert line == (
        "videodiff train: error: out of memory with 4 clips at once on each process: CUDA out of memory. Tried to "
        "allocate 2.00 GiB; try recompute=selective, or data.micro_batch=2, or recompute=full"
    )
    status, _, err = call("train", "name=b", *tiny(world_dataset), "trainer.max_steps=1", "data.micro_batch=2")
    assert status == 0, err
