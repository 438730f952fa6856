"""What launchers say by variables is read as they mean it, and a contradiction is one line that names the variable."""

from __future__ import annotations

import socket
import time

import pytest

from videodiff.parallel.environment import Place, check, first_node, limited, place_of, started_by

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}
SLURM = {
    **{"SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"},
    **{"SLURM_NNODES": "2", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    **{"SLURM_NODELIST": "127.0.0.1,gpu2"},
}
LEFT_BY_LIGHTNING = {"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def without(environment: dict[str, str], name: str) -> dict[str, str]:
    """Return an environment without a variable."""
    return {key: value for key, value in environment.items() if key != name}


OF_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def test_the_place_of_a_process_is_what_its_launcher_says() -> None:
    assert place_of(TORCHRUN) == Place("torchrun", 3, 4, 1, 2, "127.0.0.1", 29500)
    assert place_of(SLURM) == Place("Slurm", 9, 16, 1, 8, "127.0.0.1", 18456)
    assert place_of(SLURM | {"MASTER_ADDR": "node0", "MASTER_PORT": "1234"})[5:] == ("node0", 1234)
    assert place_of(without(TORCHRUN, "LOCAL_WORLD_SIZE")).local_world == 1
    assert place_of({}) == Place("nobody", 0, 1, 0, 1, "127.0.0.1", 0)
    assert started_by(LEFT_BY_LIGHTNING) == "Lightning"
    for name in ("bash", "interactive"):
        assert started_by(SLURM | {"SLURM_JOB_NAME": name}) == "nobody"
    assert place_of(SLURM | {"SLURM_NTASKS_PER_NODE": "8(x2)"}).local_world == 8, "as Slurm writes it for two nodes"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("gpu[07-12,20]", "gpu07"),
        ("gpu[3,5],cpu1", "gpu3"),
        ("a-b-[001-002]", "a-b-001"),
        ("node1.cluster,node2.cluster", "node1.cluster"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


SOUND = {
    "nobody": ({}, 1, 1),
    "torchrun": (TORCHRUN, 2, 2),
    "slurm": (SLURM, 8, 2),
    "slurm's number for each of two nodes": (SLURM | {"SLURM_NTASKS_PER_NODE": "8(x2)"}, 8, 2),
    "an older slurm": (without(SLURM, "SLURM_STEP_ID") | {"SLURM_STEPID": "0"}, 8, 2),
    "a task alone": ({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_NODELIST": "n1"}, 1, 1),
    "a shell of salloc that says so": (SLURM | {"SLURM_JOB_NAME": "interactive"}, 1, 1),
    "what a training in this process left": (LEFT_BY_LIGHTNING, 1, 1),
    "what one process of another training left": ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, 1, 1),
    "a rank that somebody else has placed": ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2, 1),
    "torchrun within a job": ({**SLURM, **TORCHRUN}, 2, 2),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_environment_is_not_accused(name: str) -> None:
    check(*SOUND[name])


WRONG = {
    "RANK without WORLD_SIZE": ({"RANK": "1"}, "RANK: found 1, expected WORLD_SIZE beside it"),
    "a rank too high": ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK: found 4, expected a rank below WORLD_SIZE=4"),
    "WORLD_SIZE without RANK": ({"WORLD_SIZE": "2"}, "WORLD_SIZE: found 2 without RANK"),
    "a pod without torchrun": ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK: found 1 of WORLD_SIZE=2 without torchrun"),
    "no number": ({"WORLD_SIZE": "two"}, "WORLD_SIZE: found 'two', expected a whole number"),
    **{f"torchrun without {name}": (without(TORCHRUN, name), f"{name}: found nothing") for name in OF_TORCHRUN},
    **{f"port {port}": (TORCHRUN | {"MASTER_PORT": port}, f"MASTER_PORT: found {port}, ") for port in ("0", "65536")},
    "no srun": (without(SLURM, "SLURM_STEP_ID"), "SLURM_NTASKS: found 16 in a process that srun did not start"),
    "tasks in all": (without(SLURM, "SLURM_NTASKS_PER_NODE"), "ask for --ntasks-per-node instead of --ntasks"),
    **{f"no {name} from srun": (without(SLURM, name), f"{name}: found 'nothing'") for name in OF_SRUN},
    "no number of tasks": (SLURM | {"SLURM_NTASKS": "two"}, "SLURM_NTASKS: found 'two', expected a whole number"),
    "other devices": (
        SLURM | {"SLURM_NTASKS_PER_NODE": "4(x2)"},
        "trainer.devices: found 2, expected SLURM_NTASKS_PER_NODE=4",
    ),
    "other nodes": (
        SLURM | {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "4"},
        "trainer.num_nodes: found 2, expected SLURM_NNODES=4; set trainer.num_nodes=4",
    ),
    "other processes": (TORCHRUN | {"WORLD_SIZE": "8"}, "set trainer.devices=2 trainer.num_nodes=4"),
    "no such host": (TORCHRUN | {"MASTER_ADDR": "no-such-host.invalid"}, "MASTER_ADDR: found 'no-such-host.invalid' ("),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_contradiction_is_one_line_that_names_the_variable(name: str) -> None:
    environment, said = WRONG[name]
    with pytest.raises(ValueError, match=r"^[A-Z_a-z.]+[^:]*: found ") as error:
        check(environment, 2, 2)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_nobody_answers_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videodiff.parallel.environment.RESOLVE_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    with pytest.raises(ValueError, match=r"^MASTER_ADDR: found '127.0.0.1' \(no answer within 0 s\), expected a "):
        check(TORCHRUN, 2, 2)


def test_a_port_that_is_taken_is_named_on_the_first_rank_alone() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        check(SLURM | {"MASTER_PORT": port}, 8, 2)
        with pytest.raises(ValueError, match=rf"^MASTER_PORT: found {port} \(Address already in use\)"):
            check(SLURM | {"MASTER_PORT": port, "SLURM_PROCID": "0"}, 8, 2)
        # By hand, or by Lightning, which starts the others.
        for environment in ({}, {"LOCAL_RANK": "0"}):
            with pytest.raises(ValueError, match=rf"^MASTER_PORT: found {port} .*; export MASTER_PORT=<another one>$"):
                check(environment | {"MASTER_PORT": port}, 2, 1)
        check({"MASTER_PORT": port}, 1, 1)
        check({"MASTER_PORT": port, "LOCAL_RANK": "1"}, 2, 1)
        check({"MASTER_PORT": port, "NODE_RANK": "1"}, 1, 2)
        first = without(TORCHRUN, "LOCAL_RANK") | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}
        with pytest.raises(ValueError, match=rf"^MASTER_PORT: found {port} "):
            check(first, 2, 2)
        # The agent of torchrun listens there for its processes.
        check(first | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, 2, 2)
    check(SLURM | {"MASTER_PORT": port, "SLURM_PROCID": "0"}, 8, 2)


def test_a_call_that_hangs_is_left_after_its_time() -> None:
    before = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        limited(lambda: time.sleep(5), 0.1)
    assert time.monotonic() - before < 2
    assert limited(lambda: 3, 1) == 3
    with pytest.raises(KeyError):
        limited(lambda: {}["x"], 1)
