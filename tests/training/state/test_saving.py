"""Several processes write one checkpoint; here they are threads of this one, each with a trainer of its own."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.material.runs.disk import Disk
from videodiff.parallel.whole import Whole
from videodiff.training.optimizer import AdamW
from videodiff.training.state import saving
from videodiff.training.state.checkpoint import AVERAGE, whole
from videodiff.training.state.progress import plain
from videodiff.training.state.restoring import files_of
from videodiff.training.state.saved import Saved
from videodiff.training.state.saving import Saving

WORLD = 3
# What a collective waits for the others, and the time that the disk of one rank takes.
COLLECTIVE, SLOW = 1.0, 2.5


class Agreement:
    """A collective of threads that fails, as gloo's do, where one of them comes too late."""

    def __init__(self) -> None:
        self.barrier, self.problems = threading.Barrier(WORLD), []

    def __call__(self, world: int, problem: Exception | None) -> None:
        self.problems.append(problem)
        self.barrier.wait(COLLECTIVE)
        found = [one for one in self.problems if one is not None]
        self.barrier.wait(COLLECTIVE)
        self.problems.clear()
        self.barrier.wait(COLLECTIVE)
        if found:
            raise found[0]


def trainer(rank: int, partial: Path) -> Any:
    """Return what a checkpoint asks of a trainer, after two steps of a small network."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 7))
    optimizer = AdamW(module.parameters())
    for _ in range(2):
        module(torch.ones(2, 40)).sum().backward()
        optimizer.step()
    strategy = SimpleNamespace(
        optimizers=[optimizer],
        global_rank=rank,
        world_size=WORLD,
        broadcast=lambda path: partial,
        lightning_module=module,
    )
    strategy.engine = Whole(strategy)
    loop = SimpleNamespace(state_dict=dict)
    parts = {
        "fit_loop": loop,
        "lr_scheduler_configs": [],
        "callbacks": [],
        "datamodule": None,
        "precision_plugin": None,
    }
    place = {"global_step": 1, "world_size": WORLD, "global_rank": rank}
    return SimpleNamespace(**parts, **place, strategy=strategy, lightning_module=module)


def zero(layer: nn.Module) -> None:
    """Give weights another value in their place."""
    for p in layer.parameters(recurse=False):
        p.zero_()


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function by which all ranks save; `before` is called with a path before it is written."""
    write = saving.write_pieces

    def run(before: Callable[[Path], None]) -> list[Any]:
        copied = [threading.Event() for _ in range(WORLD)]

        def wrapped(pieces: Any, random: Any, path: Path) -> Any:
            copied[int(path.stem[-5:])].wait(10)
            before(path)
            return write(pieces, random, path)

        monkeypatch.setattr(saving, "agree", Agreement())
        monkeypatch.setattr(saving, "write_pieces", wrapped)
        partial = tmp_path / ".step_00000001.abc.partial"

        # Made before: a thread that is late with it would miss the first collective.
        trainers = [trainer(rank, partial) for rank in range(WORLD)]

        def one(rank: int) -> Any:
            try:
                begun = Saving(trainers[rank], tmp_path, saving.Buffers())
                # Training goes on before anything is written.
                trainers[rank].lightning_module.requires_grad_(False).apply(zero)
                copied[rank].set()
                return begun.finish()
            except Exception as error:
                return error
            finally:
                copied[rank].set()

        with ThreadPoolExecutor(WORLD) as pool:
            return list(pool.map(one, range(WORLD)))

    return run


@pytest.mark.parametrize("slow", [0, 2])
def test_a_disk_that_takes_longer_than_a_collective_waits_costs_nothing(
    save: Callable[..., list[Any]], tmp_path: Path, slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, sizes = saving.size_of, []
    monkeypatch.setattr(saving, "size_of", lambda folder: sizes.append(folder) or measure(folder))
    found = save(lambda path: time.sleep(SLOW * (path.stem == f"rank_{slow:05d}")))
    assert found == [tmp_path / "step_00000001"] * WORLD
    assert len(sizes) <= WORLD * (2 + SLOW // saving.MEASURE), "each look asks for the sizes of the files of all ranks"
    whole(found[0])
    trained, saved, averages = trainer(0, tmp_path), Saved(files_of(found[0])), load_file(found[0] / AVERAGE)
    for name, p in trained.lightning_module.named_parameters():
        state = trained.strategy.optimizers[0].state[p]
        assert torch.equal(saved.whole(name, "weight"), p)
        assert saved.keys(name).keys() == state.keys() == {"step", "ema_step", "exp_avg", "exp_avg_sq", "ema"}
        assert all(torch.equal(saved.whole(name, key), state[key]) for key in ("exp_avg", "exp_avg_sq", "ema"))
        assert saved.number(name, "step") == saved.number(name, "ema_step") == 2
        assert torch.equal(averages[name], state["ema"])
        assert not torch.equal(averages[name], p)


def test_a_checkpoint_gets_its_name_when_all_of_it_is_on_the_disk(
    save: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".step_00000000.dead.partial" / "state").mkdir(parents=True)
    for _ in ("new", "in the place of the first"):
        disk = Disk(monkeypatch)
        (checkpoint, *_) = save(lambda path: None)
        assert disk.holds(checkpoint)
    assert os.listdir(tmp_path) == [checkpoint.name], "an interrupted save and the former checkpoint are gone"
    assert set(os.listdir(checkpoint)) == {"state", "average.safetensors", "checkpoint.json"}


@pytest.mark.parametrize(("broken", "number"), [(0, errno.ENOSPC), (1, errno.EDQUOT), (2, errno.ENOSPC)])
def test_a_rank_that_cannot_write_fails_on_all_ranks_with_its_error_and_nothing_stays(
    save: Callable[..., list[Any]], tmp_path: Path, broken: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, half, at_mark = saving.write_whole, [], []
    # The room that a checkpoint needs is that of the largest one there is.
    for name, size in (("step_00000000", 3), ("step_00000000.damaged", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "average.safetensors").write_bytes(bytes(size * 2**20))

    def fill(path: Path) -> None:
        if path.stem == f"rank_{broken:05d}":
            path.write_bytes(b"half")
            half.append(path)
            raise OSError(number, os.strerror(number), str(path))
        time.sleep(0.2)

    def full(path: Path, data: bytes) -> None:
        if path.stem == f"rank_{broken:05d}":
            at_mark.append(half[0].exists())
        mark(path, data)

    monkeypatch.setattr(saving, "write_whole", full)
    found = save(fill)
    assert len({str(error) for error in found}) == 1
    assert all(isinstance(error, OSError) for error in found)
    assert f"{os.strerror(number)} for a checkpoint, which needs about 3.0 MiB" in str(found[0])
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000000", "step_00000000.damaged"}
    assert at_mark == [False], "half a file left no room to tell the first rank"


# Where files stop growing before it fails, the others have agreed by then that all have written.
@pytest.mark.parametrize("stall", [saving.STALL, 0.1])
@pytest.mark.parametrize("last", ["write_json", "write_average", "put_in_place"])
def test_a_first_rank_that_cannot_end_what_all_have_written_fails_on_all(
    save: Callable[..., list[Any]], tmp_path: Path, last: str, stall: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "STALL", stall)

    def fail(*_: Any) -> None:
        time.sleep(0.5)
        raise OSError(errno.EIO, "Input/output error", "x")

    monkeypatch.setattr(saving, last, fail)
    assert [str(error) for error in save(lambda path: None)] == ["[Errno 5] Input/output error: 'x'"] * WORLD
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_cannot_even_tell_that_it_is_done_fails_on_all(
    save: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "STALL", 0.5)
    mark = saving.write_whole

    def fail(path: Path, data: bytes) -> None:
        if path.stem == "rank_00001":
            raise OSError(errno.EIO, "Input/output error", "x")
        mark(path, data)

    monkeypatch.setattr(saving, "write_whole", fail)
    assert [str(error) for error in save(lambda path: None)] == ["[Errno 5] Input/output error: 'x'"] * WORLD
    assert list(tmp_path.iterdir()) == []


def test_progress_that_cannot_be_saved_leaves_nothing(
    save: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "progress_of", lambda trainer: plain({"part": {1: 2}}, "progress"))
    expected = "progress.part: found the key 1, expected text: a checkpoint holds plain values"
    assert [str(error) for error in save(lambda path: None)] == [expected] * WORLD
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", [0, 2])
def test_whatever_a_thread_fails_with_is_raised_on_all_ranks(
    save: Callable[..., list[Any]], tmp_path: Path, broken: int
) -> None:
    def exhaust(path: Path) -> None:
        if path.stem == f"rank_{broken:05d}":
            raise RuntimeError("not enough memory: you tried to allocate 8 bytes")

    found = save(exhaust)
    assert [str(error) for error in found] == ["not enough memory: you tried to allocate 8 bytes"] * WORLD
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_is_gone_is_found_out(
    save: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "STALL", 0.5)
    ended, mark = saving.Saving.finish, saving.write_whole

    def finish(self: Saving) -> Path:
        if self.rank == 1:
            raise SystemError("killed")
        return ended(self)

    monkeypatch.setattr(saving.Saving, "finish", finish)
    # Its file is never marked as written.
    monkeypatch.setattr(
        saving, "write_whole", lambda path, data: None if path.stem == "rank_00001" else mark(path, data)
    )
    found = save(lambda path: None)
    assert [type(error) for error in found] == [threading.BrokenBarrierError, SystemError, threading.BrokenBarrierError]
    assert list(tmp_path.iterdir()) == []


def test_copies_are_kept_from_one_save_to_the_next() -> None:
    buffers, values = saving.Buffers(), [torch.arange(4.0), torch.ones(3, dtype=torch.bfloat16)]

    def copies(*tensors: Tensor) -> list[Tensor]:
        pieces = [saving.Piece(f"{n}", "ema", 0, tensor, tuple(tensor.shape)) for n, tensor in enumerate(tensors)]
        return [piece.values for piece in buffers.copies(pieces)]

    first = copies(*values)
    values[0] += 1
    assert first[0].tolist() == [0, 1, 2, 3]
    second = copies(*values)
    assert [one.data_ptr() for one in first] == [one.data_ptr() for one in second]
    assert second[0].tolist() == [1, 2, 3, 4]
    other = copies(torch.zeros(5), values[1])
    assert other[0].tolist() == [0] * 5
