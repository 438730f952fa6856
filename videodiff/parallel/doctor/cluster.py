"""What machines need to train together: they meet, see one folder, agree on the time, and talk fast enough."""

from __future__ import annotations

import json
import socket
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from videodiff.parallel.environment import Finding, Place
from videodiff.words import count_text

LOOK_S = 0.05
# If clocks differ by more, logs, file times and leases of locks cannot be trusted.
CLOCKS_S, FOLDER_S = 1.0, 5.0
ROUNDS = 5


class Group(NamedTuple):
    """The processes that have met: a store that all of them reach, and the device on which they sum."""

    place: Place
    store: Any
    device: torch.device
    seconds: float

    def everyone(self, about: str, value: Any) -> list[Any]:
        """Return what every rank has stored under a name; TimeoutError if a rank has stored nothing."""
        self.store.set(f"{about}/{self.place.rank}", json.dumps(value))
        keys = [f"{about}/{rank}" for rank in range(self.place.world)]
        end = time.monotonic() + self.seconds
        while silent := [rank for rank, key in enumerate(keys) if not self.store.check([key])]:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing about {about} from rank {', '.join(map(str, silent))}")
            time.sleep(LOOK_S)
        return [json.loads(self.store.get(key)) for key in keys]


def meet(place: Place, seconds: float) -> tuple[Any, list[Finding]]:
    """Return the store where all processes have met, or why they could not meet."""
    where = f"{place.address}:{place.port}"
    limit = timedelta(seconds=seconds)
    # torchrun's agent already has a store at this port.
    serves = place.rank == 0 and place.by != "torchrun"
    try:
        store = distributed.TCPStore(place.address, place.port, None, serves, limit, wait_for_workers=False)
    except (distributed.DistError, OSError, RuntimeError, TimeoutError) as error:
        line = " ".join(str(error).split())[:160]
        do = "is the first process there, and does a firewall let the port through?"
        return None, [
            Finding("meeting", f"no answer at {where} ({line})", f"rank 0 there within {seconds:.0f} s", do, True)
        ]
    store.set(f"here/{place.rank}", socket.gethostname())
    end = time.monotonic() + seconds
    while missing := [rank for rank in range(place.world) if not store.check([f"here/{rank}"])]:
        if time.monotonic() > end:
            do = "look at what these print: did they start, and do they reach the address?"
            absent = ", ".join(map(str, missing))
            found = f"{place.world - len(missing)} of {count_text(place.world, 'process')}; rank {absent} is missing"
            return None, [Finding("meeting", found, f"all within {seconds:.0f} s", do, True)]
        time.sleep(LOOK_S)
    hosts = {store.get(f"here/{rank}").decode() for rank in range(place.world)}
    return store, [
        Finding("meeting", f"{count_text(place.world, 'process')} on {count_text(len(hosts), 'host')} at {where}")
    ]


def clocks(group: Group) -> Iterator[Finding]:
    """Yield how far the clocks of the machines differ: all read their clocks when the last process has arrived."""
    group.everyone("ready", True)
    times = group.everyone("clock", time.time())
    apart = max(times) - min(times)
    said = f"{apart:.2f} s apart (measured to about {2 * LOOK_S:.1f} s)"
    if apart > CLOCKS_S:
        first, last = times.index(min(times)), times.index(max(times))
        yield Finding(
            "clocks", f"{said}, rank {last} ahead of rank {first}", f"at most {CLOCKS_S:g} s", "run chronyd or ntpd"
        )
    else:
        yield Finding("clocks", said)


def shared(group: Group, folder: Path) -> Iterator[Finding]:
    """Yield whether all machines see the same folder: each rank writes a file and looks for the files of the others."""
    mark = group.everyone("mark", uuid.uuid4().hex if group.place.rank == 0 else None)[0]
    mine = folder / f".doctor.{mark}.{group.place.rank}"
    mine.write_text(mark)
    try:
        # No rank looks before all have written.
        group.everyone("written", True)
        begun, unseen = time.monotonic(), set(range(group.place.world))
        limit = min(4 * FOLDER_S, group.seconds)
        while unseen and time.monotonic() - begun < limit:
            unseen = {rank for rank in unseen if not sees(folder / f".doctor.{mark}.{rank}", mark)}
            time.sleep(LOOK_S if unseen else 0)
        seen = group.everyone("seen", [sorted(unseen), time.monotonic() - begun])
    finally:
        mine.unlink(missing_ok=True)
    blind = [(rank, others) for rank, (others, _) in enumerate(seen) if others]
    if blind:
        rank, others = blind[0]
        found = f"{folder.absolute()}: rank {rank} does not see the file of rank {', '.join(map(str, others))}"
        yield Finding(
            "shared folder", found, "one folder on all machines", "folder=<one on a shared file system>", True
        )
    elif (slowest := max(delay for _, delay in seen)) > FOLDER_S:
        do = "mount with a shorter attribute cache (NFS: actimeo=1)"
        yield Finding("shared folder", f"a file is seen after {slowest:.1f} s", f"{FOLDER_S:g} s at most", do)
    else:
        yield Finding("shared folder", f"{folder.absolute()}: a file is seen by all after {slowest:.2f} s")


def sees(path: Path, mark: str) -> bool:
    """Return whether a file exists and is complete."""
    try:
        return path.read_text() == mark
    except OSError:
        return False


def speed(group: Group, mib: int, least: float) -> Iterator[Finding]:
    """Yield how fast all processes sum a tensor: the bytes that each process sends in a ring, by the median time."""
    backend = "nccl" if group.device.type == "cuda" else "gloo"
    store = distributed.PrefixStore("speed", group.store)
    limit = timedelta(seconds=group.seconds)
    distributed.init_process_group(
        backend, store=store, rank=group.place.rank, world_size=group.place.world, timeout=limit
    )
    try:
        values = torch.ones(mib * 2**18, device=group.device)
        times = [timed(lambda: distributed.all_reduce(values), group.device) for _ in range(ROUNDS + 1)][1:]
        right = float(values[-1]) == float(group.place.world) ** (ROUNDS + 1)
    finally:
        distributed.destroy_process_group()
    world = group.place.world
    rate = 2 * (world - 1) / world * values.nbytes / statistics.median(times) / 1e9
    said = f"{rate:.2f} GB/s for each process ({backend}, {mib} MiB, {statistics.median(times) * 1e3:.0f} ms)"
    if not right:
        yield Finding(
            "all-reduce", "a wrong sum", f"{world}", "a network card or a GPU is broken: try fewer machines", True
        )
    elif rate < least:
        do = "NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME=<fast card>; NCCL_DEBUG=INFO says what NCCL took"
        yield Finding("all-reduce", said, f"at least {least:g} (gb_per_s=)", do)
    else:
        yield Finding("all-reduce", said)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that a call takes on a device."""
    begun = time.monotonic()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - begun
