"""An error that all ranks have is printed once, by the first, however long it takes to leave its training."""

from __future__ import annotations

import signal
import time

import pytest
import torch

from videodiff import cli
from videodiff.generation.sharing import Ranks
from videodiff.parallel import ranks
from videodiff.parallel.ranks import agree, agreed, count_processes, is_first_process


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Be the second of two ranks; return for how many seconds it waits."""
    waits: list[float] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(signal, "signal", lambda number, action: None)
    monkeypatch.setattr(ranks, "gather", lambda world, value: [value, None])
    return waits


@pytest.mark.parametrize(("devices", "processes"), [(3, 3), ("2", 2), ([0, 4], 2), ("auto", 1), (-1, 1), ("-1", 1)])
def test_a_node_has_a_process_for_each_device(
    devices: int | str | list[int], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert count_processes(devices) == processes


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"])
def test_the_first_process_has_no_number_but_0(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.setenv(one, "0")
    assert is_first_process()
    monkeypatch.setenv(name, "1")
    assert not is_first_process()


def agree_with_need() -> None:
    """Raise what all ranks have agreed on with more words, as saving does."""
    try:
        agree(2, OSError(28, "No space left on device", "runs/a"))
    except OSError as error:
        raise OSError(28, "No space left on device for a checkpoint", "runs/a") from error


def test_another_rank_prints_nothing_of_an_error_that_all_have(
    second: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, cli.one_line_a_failure("train"):
        agree_with_need()
    assert left.value.code == 1
    assert second == [cli.LONG_TURN]
    assert cli.LONG_TURN > 20, "a first rank on a busy machine needs some seconds to end"
    assert capsys.readouterr().err == ""


def test_another_rank_prints_its_own_error_after_the_first_had_its_turn(
    second: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, cli.one_line_a_failure("train"):
        raise ValueError("data.root: found nothing")
    assert left.value.code == 1
    assert second == [cli.TURN]
    assert capsys.readouterr().err == "videodiff train (rank 1): error: data.root: found nothing\n"


def test_the_first_rank_prints_what_all_have_agreed_on_at_once(
    second: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit), cli.one_line_a_failure("train"):
        agree(2, ValueError("strategy.nvme: found nothing"))
    assert second == []
    assert capsys.readouterr().err == "videodiff train: error: strategy.nvme: found nothing\n"


def test_what_a_block_of_one_rank_raises_is_of_all_ranks(
    second: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), cli.one_line_a_failure("evaluate"), Ranks(1, 2).together():
        raise ValueError("sampler.lead: found 9")
    assert second == [cli.LONG_TURN]
    assert capsys.readouterr().err == ""


def test_a_block_that_no_rank_fails_in_goes_on(second: list[float]) -> None:
    with agreed(2):
        second.append(1.5)
    assert second == [1.5]
