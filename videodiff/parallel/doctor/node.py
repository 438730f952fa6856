"""What one machine needs to train: versions, devices, limits, room, and variables that agree with each other."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from videodiff.machine import cores
from videodiff.parallel.environment import Finding, Place, limited, problems
from videodiff.words import count_text

GIB = 2**30
# The processes of a node hand data on in shared memory: NCCL does, and so do torch's own workers.
SHARED_GIB, FILES = 4, 4096
# Variables that change results or speed so much that nobody sets them on purpose for a long run.
FOR_DEBUGGING = ("CUDA_LAUNCH_BLOCKING", "TORCH_DISTRIBUTED_DEBUG", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")


def examine(place: Place, folder: Path, gib: float, environment: Mapping[str, str], seconds: float) -> list[Finding]:
    """Return the findings about this machine; no check takes longer than `seconds`."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", versions),
        ("GPUs", lambda: gpus(place)),
        ("variables", lambda: variables(place, environment)),
        ("names", lambda: names(place, environment)),
        ("limits", limits),
        ("/dev/shm", lambda: shared_memory()),
        ("folder", lambda: disk(folder, gib)),
    ]
    return [finding for about, check in checks for finding in in_time(about, check, seconds)]


def in_time(about: str, check: Callable[[], Iterator[Finding]], seconds: float) -> list[Finding]:
    """Return the findings of a check; a time-out or an exception is a finding too."""
    try:
        return limited(lambda: list(check()), seconds)
    except TimeoutError:
        return [
            Finding(about, f"no answer within {seconds:.0f} s", "one", "this machine hangs there, look at it", True)
        ]
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return [Finding(about, f"{type(error).__name__} ({text})", "an answer", "", True)]


def versions() -> Iterator[Finding]:
    """Yield the installed versions."""
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "none"
    others = ", ".join(f"{name} {installed(name)}" for name in ("lightning", "deepspeed"))
    yield Finding("versions", f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, NCCL {nccl}, {others}")


def installed(name: str) -> str:
    """Return the version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def gpus(place: Place) -> Iterator[Finding]:
    """Yield GPUs and driver; faults are fewer GPUs than processes, and a driver that is too old for torch."""
    driver = ask_driver()
    if driver and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        do = "install torch with CUDA, or a newer driver; look at CUDA_VISIBLE_DEVICES"
        yield Finding("GPUs", f"{driver}, of which torch ({built}) sees none", "GPUs that torch can use", do, True)
        return
    count = torch.cuda.device_count()
    if count == 0:
        yield Finding("GPUs", "none: this machine trains on its processor")
        return
    if count < place.local_world:
        do = "ask for a GPU for each process, or start fewer processes"
        yield Finding("GPUs", f"{count} for {place.local_world} processes of this machine", "one for each", do, True)
    free, total = torch.cuda.mem_get_info(place.local_rank % count)
    name = torch.cuda.get_device_name(place.local_rank % count)
    yield Finding("GPUs", f"{count} x {name} ({total / GIB:.0f} GiB); {driver or 'no nvidia-smi'}")
    if free < 0.9 * total:
        yield Finding(
            f"GPU {place.local_rank % count}",
            f"{free / GIB:.0f} of {total / GIB:.0f} GiB free",
            "an empty GPU",
            "end what else runs there (nvidia-smi)",
        )


def ask_driver() -> str:
    """Return the driver's own report, empty if there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    lines = answer.stdout.split()
    return f"driver {lines[0]} with {count_text(len(lines), 'GPU')}" if answer.returncode == 0 and lines else ""


def variables(place: Place, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the variables that contradict each other, or slow a run down."""
    found = list(problems(environment))
    yield from found
    threads, there = environment.get("OMP_NUM_THREADS"), cores()
    if threads is None and place.local_world > 1:
        do = f"export OMP_NUM_THREADS={max(there // place.local_world, 1)}"
        yield Finding(
            "OMP_NUM_THREADS",
            f"nothing, with {place.local_world} processes on {count_text(there, 'core')}",
            "a share",
            do,
        )
    elif threads is not None and threads.isdigit() and int(threads) * place.local_world > there:
        do = f"export OMP_NUM_THREADS={max(there // place.local_world, 1)}"
        yield Finding("OMP_NUM_THREADS", f"{threads} for each of {place.local_world} processes", f"{there} in all", do)
    for name in FOR_DEBUGGING:
        if environment.get(name, "") not in ("", "0", "OFF"):
            yield Finding(name, environment[name], "nothing, in a long run", f"unset {name}")
    there = [card for _, card in socket.if_nameindex()]
    for name, finds in (("NCCL_SOCKET_IFNAME", nccl_finds), ("GLOO_SOCKET_IFNAME", gloo_finds)):
        if environment.get(name) and not finds(environment[name], there):
            yield Finding(
                name, environment[name], f"one of {', '.join(there)}", f"unset {name}, or name one of these", True
            )
    if not found:
        yield Finding("variables", f"started by {place.by}: process {place.rank} of {place.world}")


def nccl_finds(value: str, cards: Sequence[str]) -> bool:
    """Return whether NCCL finds a card by a list of beginnings of names: `^` excludes them, `=` takes whole names."""
    excluded, listed = value.startswith("^"), value.removeprefix("^")
    exact = listed.startswith("=")
    parts = [part.partition(":")[0] for part in listed.removeprefix("=").split(",") if part]
    return any(any(card == p if exact else card.startswith(p) for p in parts) != excluded for card in cards)


def gloo_finds(value: str, cards: Sequence[str]) -> bool:
    """Return whether gloo finds a card by each beginning of a name in a list."""
    return all(any(card.startswith(part) for card in cards) for part in value.split(","))


def names(place: Place, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether this machine knows its own name and the address where processes meet."""
    for about, name in (("host name", socket.gethostname()), ("MASTER_ADDR", place.address)):
        try:
            address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
        except OSError as error:
            do = "add it to DNS or /etc/hosts" + ("; or export MASTER_ADDR=<address>" if about == "MASTER_ADDR" else "")
            yield Finding(about, f"{name!r} ({error.strerror})", "a name that this machine knows", do, place.world > 1)
            continue
        several = place.world > place.local_world
        local = str(address).startswith("127.") or address == "::1"
        if several and local and about == "host name" and "GLOO_SOCKET_IFNAME" not in environment:
            do = "export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME=<network card>, or mend /etc/hosts"
            yield Finding(about, f"{name}, which is {address} here", "an address that other machines reach", do)
        else:
            yield Finding(about, f"{name} is {address}")


def limits() -> Iterator[Finding]:
    """Yield the limits of processes that training may reach."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FILES:
        do = f"ulimit -n {min(most, 65536) if most > files else 65536}"
        yield Finding("open files", str(files), f"at least {FILES}", do)
    else:
        yield Finding("open files", str(files))
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if locked == resource.RLIM_INFINITY:
        yield Finding("locked memory", "no limit")
    elif Path("/dev/infiniband").exists():
        do = "ulimit -l unlimited; in a container --ulimit memlock=-1; for Slurm in slurmd's own limits"
        yield Finding("locked memory", f"{locked / 2**20:.0f} MiB, with InfiniBand", "no limit", do, True)
    else:
        yield Finding("locked memory", f"{locked / 2**20:.0f} MiB; InfiniBand would want no limit")


def shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Yield the size of shared memory."""
    if not path.is_dir():
        yield Finding(
            str(path), "nothing", "a tmpfs", "mount one: NCCL and Python's locks of several processes lie in it", True
        )
        return
    free = shutil.disk_usage(path).free / GIB
    if free < SHARED_GIB:
        do = "docker run --ipc=host or --shm-size=16g; in Kubernetes an emptyDir with medium: Memory"
        yield Finding(str(path), f"{free:.2f} GiB free", f"at least {SHARED_GIB}", do, free < 0.1)
    else:
        yield Finding(str(path), f"{free:.1f} GiB free")


def disk(folder: Path, gib: float) -> Iterator[Finding]:
    """Yield whether runs can be written to a folder, and how much room there is."""
    probe = folder / f".doctor.{socket.gethostname()}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(os.urandom(1 << 16))
        probe.unlink()
    except OSError as error:
        yield Finding("folder", f"{folder} ({error.strerror})", "a folder to write to", "folder=<another one>", True)
        return
    free = shutil.disk_usage(folder).free / GIB
    if free < gib:
        do = "make room, or folder=<another one>"
        yield Finding("folder", f"{folder} with {free:.1f} GiB free", f"at least {gib:g} (gib=)", do, free < 0.1)
    else:
        yield Finding("folder", f"{folder} with {free:,.0f} GiB free")
