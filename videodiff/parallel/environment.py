"""The variables of launchers: which process this is, and where they contradict each other."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

# What starts processes, and the variables by which it is known.
TORCHRUN, SLURM, LIGHTNING, ALONE = "torchrun", "Slurm", "Lightning", "nobody"
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_PORT")
# Seconds within which a host name must resolve.
RESOLVE_S = 10.0


class Finding(NamedTuple):
    """One line of a check: its subject, what was found, what was expected, what to do, and whether it stops a run."""

    about: str
    found: str
    expected: str = ""
    do: str = ""
    stops: bool = False

    def line(self) -> str:
        """Return the line of an error."""
        wanted = f", expected {self.expected}" if self.expected else ""
        return f"{self.about}: found {self.found}{wanted}" + (f"; {self.do}" if self.do else "")


class Place(NamedTuple):
    """This process in its run: what started it, its rank, the number of processes, and where they meet."""

    by: str
    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str
    port: int


def place_of(environment: Mapping[str, str]) -> Place:
    """Return the place of this process; check `problems` first."""
    by, get = started_by(environment), environment.get
    address, port = get("MASTER_ADDR"), get("MASTER_PORT")
    if by == SLURM:
        address = address or first_node(get("SLURM_NODELIST", "127.0.0.1"))
        # Chosen as Lightning does, so that two jobs on a node do not meet.
        port = port or str(15000 + int(get("SLURM_JOB_ID", "0")[-4:]))
        world, local = int(environment["SLURM_NTASKS"]), int(get("SLURM_NTASKS_PER_NODE", "1").partition("(")[0])
        return Place(
            by, int(get("SLURM_PROCID", "0")), world, int(get("SLURM_LOCALID", "0")), local, address, int(port)
        )
    if by == TORCHRUN:
        rank, world, local_rank, local = (
            int(get(name, default)) for name, default in zip(NUMBERS, "0101", strict=False)
        )
        return Place(by, rank, world, local_rank, local, address or "127.0.0.1", int(port or 12910))
    return Place(by, 0, 1, 0, 1, "127.0.0.1", int(port or 0))


def started_by(environment: Mapping[str, str]) -> str:
    """Return what started this process, in the order in which Lightning looks."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return TORCHRUN
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return SLURM
    return LIGHTNING if "LOCAL_RANK" in environment else ALONE


def first_node(nodes: str) -> str:
    """Return the first of a list of nodes as Slurm writes it: `gpu[07-12,20]` begins with gpu07."""
    first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes)
    return re.split(r"[ ,]", first)[0]


def problems(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield contradictions between the variables of launchers with which a run cannot work."""
    by, get = started_by(environment), environment.get
    for name in NUMBERS:
        if name in environment and not environment[name].isdigit():
            yield Finding(name, repr(environment[name]), "a whole number", f"unset {name}, or start by torchrun", True)
            return
    rank, world = get("RANK"), int(get("WORLD_SIZE", 1))
    if rank is not None and int(rank) >= world:
        wanted = f"a rank below WORLD_SIZE={world}" if "WORLD_SIZE" in environment else "WORLD_SIZE beside it"
        yield Finding("RANK", rank, wanted, "unset RANK, or start by launch/torchrun/train.sh", True)
    elif by in (ALONE, LIGHTNING) and rank is not None and world > 1 and "LOCAL_RANK" not in environment:
        wanted = "TORCHELASTIC_RUN_ID, as torchrun sets it"
        yield Finding(
            "RANK", f"{rank} of WORLD_SIZE={world} without torchrun", wanted, "start by launch/torchrun/train.sh", True
        )
    elif by == ALONE and world > 1 and rank is None:
        yield Finding("WORLD_SIZE", f"{world} without RANK", "both, as torchrun sets them", "unset WORLD_SIZE", True)
    if by == TORCHRUN:
        yield from (
            Finding(name, "nothing", "a value, as torchrun sets it", "start by launch/torchrun/train.sh", True)
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
            if name not in environment
        )
    if by == SLURM:
        yield from slurm_problems(environment)
    if "MASTER_PORT" in environment and not 0 < int(environment["MASTER_PORT"]) < 65536:
        yield Finding("MASTER_PORT", environment["MASTER_PORT"], "a port, 1 to 65535", "choose another one", True)


def slurm_problems(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with Slurm's variables."""
    tasks = environment["SLURM_NTASKS"]
    if not tasks.isdigit():
        yield Finding("SLURM_NTASKS", repr(tasks), "a whole number", "unset it, or start by srun", True)
        return
    if int(tasks) > 1 and not any(name in environment for name in ("SLURM_STEP_ID", "SLURM_STEPID")):
        yield Finding(
            "SLURM_NTASKS",
            f"{tasks} in a process that srun did not start",
            "one process for each task",
            "put srun before the command; in a shell of salloc: SLURM_JOB_NAME=interactive",
            True,
        )
    elif int(tasks) > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        yield Finding(
            "SLURM_NTASKS",
            tasks,
            "SLURM_NTASKS_PER_NODE beside it",
            "ask for --ntasks-per-node instead of --ntasks",
            True,
        )
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        if int(tasks) > 1 and "SLURM_STEP_ID" in environment and not environment.get(name, "").isdigit():
            yield Finding(
                name, repr(environment.get(name, "nothing")), "a number, as srun sets it", "start by srun", True
            )


def fits(environment: Mapping[str, str], devices: int, nodes: int) -> Iterator[Finding]:
    """Yield a problem if a launcher started other processes than the configuration asks for."""
    by, get = started_by(environment), environment.get
    if by == SLURM:
        there = [("trainer.devices", devices, "SLURM_NTASKS_PER_NODE"), ("trainer.num_nodes", nodes, "SLURM_NNODES")]
        for key, wanted, name in there:
            count = get(name, "").partition("(")[0]
            if count.isdigit() and int(count) != wanted:
                yield Finding(key, str(wanted), f"{name}={count}", f"set {key}={count}", True)
    elif by == TORCHRUN and devices * nodes != int(environment["WORLD_SIZE"]):
        local = int(get("LOCAL_WORLD_SIZE", 1))
        hosts = max(int(environment["WORLD_SIZE"]) // local, 1)
        yield Finding(
            "trainer.devices",
            f"{devices} on trainer.num_nodes={nodes}",
            f"WORLD_SIZE={environment['WORLD_SIZE']} processes, which torchrun started",
            f"set trainer.devices={local} trainer.num_nodes={hosts}",
            True,
        )


def unresolved(place: Place) -> Finding | None:
    """Return the problem of the address where the processes meet: an unknown name."""
    if place.world == 1:
        return None
    variable = "MASTER_ADDR" if place.by != SLURM else "MASTER_ADDR (SLURM_NODELIST)"
    try:
        found = limited(lambda: socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM), RESOLVE_S)
    except TimeoutError:
        found = OSError(f"no answer within {RESOLVE_S:.0f} s")
    except OSError as error:
        found = error
    if isinstance(found, OSError):
        what = found.strerror or str(found)
        wanted = f"a name that {socket.gethostname()} knows"
        return Finding(
            variable, f"{place.address!r} ({what})", wanted, "export MASTER_ADDR=<address of the first node>", True
        )
    return None


def occupied(environment: Mapping[str, str], place: Place, processes: int) -> Finding | None:
    """Return the problem of the port where the first of several processes waits for the others, if it is in use.

    Lightning and the agent of torchrun choose free ports by themselves.
    """
    chosen = place.by == SLURM or "MASTER_PORT" in environment
    first = place.rank == 0 and not any(int(environment.get(name, 0)) for name in ("LOCAL_RANK", "NODE_RANK"))
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if processes > 1 and chosen and first and not agent and (taken := port_taken(place.port)):
        return Finding(
            "MASTER_PORT", f"{place.port} ({taken})", "a free port", "export MASTER_PORT=<another one>", True
        )
    return None


def port_taken(port: int) -> str | None:
    """Return why no server can listen at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.strerror
    return None


def check(environment: Mapping[str, str], devices: int, nodes: int) -> None:
    """Raise if the processes of a run can never meet: one line with the first reason, which names the variable."""
    finding = next(problems(environment), None) or next(fits(environment, devices, nodes), None)
    if finding is None:
        place = place_of(environment)
        finding = unresolved(place) or occupied(environment, place, max(place.world, devices * nodes))
    if finding is not None:
        raise ValueError(finding.line())


def limited(call: Callable[[], Any], seconds: float) -> Any:
    """Return the result of a call, or raise its error; TimeoutError if it takes longer, while the call goes on."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append((call(), None))
        except Exception as error:
            answer.append((None, error))

    thread = threading.Thread(target=run, daemon=True, name="a check")
    thread.start()
    thread.join(seconds)
    if not answer:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    value, error = answer[0]
    if error is not None:
        raise error
    return value
