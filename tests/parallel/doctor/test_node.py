"""What the doctor says of one machine, for machines that lack something."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from videodiff.parallel.doctor.node import disk, examine, in_time, limits, names, shared_memory, variables
from videodiff.parallel.environment import Finding, Place

ALONE = Place("nobody", 0, 1, 0, 1, "127.0.0.1", 0)
FOUR = Place("torchrun", 0, 4, 0, 2, "127.0.0.1", 29500)


def of(findings: list[Finding], about: str) -> Finding:
    """Return the one finding about something."""
    (found,) = [finding for finding in findings if finding.about == about]
    return found


def test_a_machine_that_can_train_has_nothing_that_stops_a_run(tmp_path: Path) -> None:
    findings = examine(ALONE, tmp_path, 0.001, {}, 60)
    assert [finding for finding in findings if finding.stops] == []
    assert of(findings, "versions").found.startswith("torch 2.")


@pytest.mark.parametrize(
    ("environment", "about", "do", "stops"),
    [
        ({}, "OMP_NUM_THREADS", "export OMP_NUM_THREADS=", False),
        ({"OMP_NUM_THREADS": "512"}, "OMP_NUM_THREADS", "export OMP_NUM_THREADS=", False),
        ({"OMP_NUM_THREADS": "1", "NCCL_IB_DISABLE": "1"}, "NCCL_IB_DISABLE", "unset NCCL_IB_DISABLE", False),
        (
            {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "ib17"},
            "GLOO_SOCKET_IFNAME",
            "unset GLOO_SOCKET_IFNAME",
            True,
        ),
        ({"OMP_NUM_THREADS": "1", "WORLD_SIZE": "4"}, "WORLD_SIZE", "unset WORLD_SIZE", True),
    ],
)
def test_a_variable_that_harms_is_named_with_what_to_do(
    environment: dict[str, str], about: str, do: str, stops: bool
) -> None:
    found = of(list(variables(FOUR, environment)), about)
    assert found.do.startswith(do)
    assert found.stops == stops


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        # A sign before the list is of the whole list, and names that are not there may be excluded.
        *(("NCCL_SOCKET_IFNAME", value, True) for value in ("^lo99,docker99", "^docker99,virbr99", "l,eth99", "=lo,x")),
        *(("NCCL_SOCKET_IFNAME", value, False) for value in ("=l", "eth99", "=eth99,l")),
        # Gloo knows no signs, and wants each name.
        *(("GLOO_SOCKET_IFNAME", value, True) for value in ("lo", "l")),
        *(("GLOO_SOCKET_IFNAME", value, False) for value in ("lo,eth99", "^eth99", "=lo")),
    ],
)
def test_a_network_card_is_found_as_the_library_finds_it(name: str, value: str, right: bool) -> None:
    found = list(variables(FOUR._replace(local_world=1), {"OMP_NUM_THREADS": "1", name: value}))
    assert [finding.about for finding in found if finding.stops] == ([] if right else [name])


def test_variables_that_agree_are_one_line() -> None:
    settings = {
        "OMP_NUM_THREADS": "1",
        "NCCL_IB_DISABLE": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "^docker",
    }
    assert [finding.about for finding in variables(FOUR._replace(local_world=1), settings)] == ["variables"]


def test_a_name_that_does_not_resolve_stops_a_run_of_several(tmp_path: Path) -> None:
    for place, stops in ((FOUR, True), (ALONE, False)):
        found = of(list(names(place._replace(address="no-such-host.invalid"), {})), "MASTER_ADDR")
        assert found.found.startswith("'no-such-host.invalid' (")
        assert found.stops == stops


def test_a_low_limit_of_open_files_is_found() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        found = of(list(limits()), "open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found.found == "1024"
    assert found.do.startswith("ulimit -n ")


def test_a_folder_that_cannot_be_written_or_is_full_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = disk(tmp_path / "file" / "runs", 1)
    assert found.stops
    assert "(Not a directory)" in found.found
    (found,) = disk(tmp_path, 10**9)
    assert "expected at least 1e+09 (gib=)" in found.line()
    assert not found.stops, "there is room, if less than asked for"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "the doctor leaves no file"


def test_no_shared_memory_stops_a_run(tmp_path: Path) -> None:
    (found,) = shared_memory(tmp_path / "shm")
    assert found.stops


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda: time.sleep(5), "no answer within 0 s"),
        (lambda: iter([]).__next__(), "StopIteration"),
        (lambda: (_ for _ in ()).throw(OSError("the card is gone")), "OSError (the card is gone)"),
    ],
    ids=["hangs", "ends", "fails"],
)
def test_a_check_that_hangs_or_fails_is_a_finding_and_the_others_go_on(check: Callable[[], object], said: str) -> None:
    before = time.monotonic()
    (found,) = in_time("the card", check, 0.2)
    assert time.monotonic() - before < 2
    assert found.stops
    assert said in found.found
