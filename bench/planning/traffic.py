"""What the processes of a training really send, beside what the planner says.

    python bench/planning/traffic.py [--only 0,3]

Each configuration trains by `videodiff train` in some processes of this machine. Two counts are taken of two steps.
*Called* are the collectives that training calls, each at the bytes that a process sends for it in a ring, as the
planner counts them. *Left* are the bytes that the kernel saw leave through the sockets of a process. Between CPUs
torch's gloo sends rings too, but it takes a whole sum for a reduce-scatter, which sends twice as much; the plan is
changed by this one rule before it is compared. Both counts are the mean of all processes.

The figures go to bench/out/traffic.json, the table to docs/scale.md. Neither needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainings import ROOT, Case, Observer, begin, clips, end, planned

from videodiff.planning.forecast.traffic import Sent
from videodiff.verbs.config.groups import conf_dir

OUT, PAGE = ROOT / "bench" / "out" / "traffic.json", ROOT / "docs" / "scale.md"
MARKS = "<!-- made by bench/planning/traffic.py -->", "<!-- end -->"
SKIPPED, STEPS = 2, 2
# Bytes that a process of n sends in a ring for each byte that a collective is given, of input or output the larger.
RINGS: dict[str, Callable[[int], float]] = {
    "allreduce_": lambda n: 2 * (n - 1) / n,
    "_allgather_base_": lambda n: (n - 1) / n,
    "allgather_": lambda n: (n - 1) / n,
    "allgather_into_tensor_coalesced_": lambda n: (n - 1) / n,
    "_reduce_scatter_base_": lambda n: (n - 1) / n,
    "reduce_scatter_tensor_coalesced_": lambda n: (n - 1) / n,
    "broadcast_": lambda n: (n - 1) / n,
    "reduce_": lambda n: (n - 1) / n,
    "alltoall_base_": lambda n: (n - 1) / n,
    "barrier": lambda n: 0.0,
    # From inside the network and the optimizer; a gather is given a part.
    "all_to_all_single": lambda n: (n - 1) / n,
    "all_gather_into_tensor": lambda n: n - 1.0,
}
# Functions of this name space that send nothing.
SILENT = {"wait_tensor", "_wrap_tensor_autograd"}
# Where the kernel writes how many bytes of a connection have arrived: linux/tcp.h, tcp_info.tcpi_bytes_acked.
ACKNOWLEDGED = 120

CASES = (
    *(
        Case(256, 4, 2, 32, 1, strategy=strategy, processes=processes)
        for strategy in ("ddp", "zero1", "zero2", "zero3", "fsdp2")
        for processes in (2, 4)
    ),
    Case(256, 4, 2, 32, 1, strategy="zero3", processes=3),
    *(Case(256, 4, 2, 32, 1, strategy=s, processes=2, accumulate=2) for s in ("ddp", "zero1", "zero2", "zero3")),
    Case(256, 4, 2, 32, 1, strategy="zero2", processes=2, precision="bf16-mixed"),
    Case(256, 4, 2, 32, 1, strategy="zero3", processes=2, precision="bf16-mixed"),
    Case(256, 4, 2, 32, 1, strategy="zero3", processes=2, more=("strategy.max_reuse_distance=0",)),
    *(Case(256, 4, 2, 32, 1, strategy=s, processes=n, optimizer="muon") for s in ("ddp", "fsdp2") for n in (2, 4)),
    *(Case(256, 4, 2, 32, 1, strategy="zero3", processes=n, optimizer="muon") for n in (2, 4)),
    *(Case(256, 4, 2, 32, 1, strategy=f"zero{n}_offload", processes=2, optimizer="muon") for n in (2, 3)),
    Case(128, 4, 8, 64, 2, strategy="ddp", processes=2, sequence=2),
    Case(128, 4, 8, 64, 2, strategy="ddp", processes=4, sequence=2),
    Case(128, 4, 8, 64, 2, strategy="zero2", processes=4, sequence=4),
    Case(128, 3, 8, 64, 2, strategy="ddp", processes=2, sequence=2, axes="space,time,spacetime"),
)


class Call(NamedTuple):
    """A collective: its name, and the bytes that this process sends for it in a ring."""

    name: str
    bytes: float


class Called(TorchDispatchMode):
    """Writes down the collectives that torch is asked for in this process, in both passes and in the step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if operation.namespace in ("c10d", "_c10d_functional") and name not in SILENT:
            whole = max((size_of(part) for part in args), default=0)
            self.calls.append(Call(name, RINGS[name](processes_of(args)) * whole))
        return operation(*args, **(kwargs or {}))


def size_of(part: Any) -> int:
    """Return the bytes of the tensors in an argument."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(part) if isinstance(t, Tensor))


def processes_of(arguments: Sequence[Any]) -> int:
    """Return how many processes take part in a collective: its arguments hold the group, or the group's name."""
    for part in arguments:
        if isinstance(part, torch.ScriptObject) and "ProcessGroup" in str(part._type()):
            return dist.ProcessGroup.unbox(part).size()
        if isinstance(part, str) and part.isdigit():
            return dist.distributed_c10d._resolve_process_group(part).size()
    raise ValueError(f"collective: found no group in {arguments}, expected one")


class Taps(Observer):
    """Counts, from the end of one step to the end of another, collectives and the bytes that leave by sockets."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.called, self.before = Called(), -1

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step == SKIPPED and self.before < 0:
            self.before = sum(acknowledged())
            self.called.__enter__()
        elif trainer.global_step == trainer.max_steps:
            self.called.__exit__(None, None, None)
            found = {"called": self.called.calls, "left": (sum(acknowledged()) - self.before) / STEPS}
            self.out.write_text(json.dumps(found))


def acknowledged() -> Iterator[int]:
    """Yield the bytes that have arrived at the other end of each connection of this process."""
    for place in Path("/proc/self/fd").iterdir():
        if place.is_socket():
            with socket.socket(fileno=os.dup(int(place.name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED + 8)
                    yield struct.unpack_from("<Q", told, ACKNOWLEDGED)[0]


class Count(NamedTuple):
    """Bytes of a step, the mean of all processes: by the plan, called, by the plan as gloo sends it, and left."""

    planned: float
    called: float
    by_gloo: float
    left: float

    @property
    def errors(self) -> tuple[float, float]:
        """How far the plan is from the calls, and from what has left."""
        return self.planned / self.called - 1, self.by_gloo / self.left - 1


def counted(case: Case, data: Path, folder: Path) -> Count:
    """Train, and return what was planned and what was found."""
    like = instantiate(OmegaConf.load(conf_dir() / "cluster" / "cpux2.yaml"))
    sent = planned(case, data, like).sent
    found = end(case, begin(case, data, folder, SKIPPED + STEPS, Taps))
    called = mean(sum(size for _, size in one["called"]) / STEPS for one in found)
    return Count(sent.bytes, called, by_gloo(case, sent).bytes, mean(one["left"] for one in found))


def by_gloo(case: Case, sent: Sent) -> Sent:
    """Return what gloo sends: it has no reduce-scatter, and takes a whole sum for it."""
    parts = case.strategy == "fsdp2" or (case.strategy == "zero3" and case.optimizer != "muon")
    return sent._replace(gradients=(2 if parts else 1) * sent.gradients)


def line(case: Case, count: Count) -> str:
    """Return a line of the table."""
    size = f"{case.width} x {case.depth}, {case.clips} x {case.frames} x {case.side} x {case.side}"
    mb = [f"{bytes / 1e6:.3f}" for bytes in count]
    ring, gloo = (f"{error:+.1%}" for error in count.errors)
    return f"| {size} | {case.told()} | {mb[0]} | {mb[1]} | {ring} | {mb[2]} | {mb[3]} | {gloo} |"


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(map(str, range(len(CASES)))))
    cases = [CASES[int(number)] for number in parser.parse_args().only.split(",")]
    torch.set_num_threads(1)
    counts: dict[Case, Count] = {}
    with tempfile.TemporaryDirectory() as place:
        data = clips(Path(place) / "data")
        for case in cases:
            counts[case] = counted(case, data, Path(place))
            print(line(case, counts[case]), flush=True)
    worst = [max(abs(one.errors[n]) for one in counts.values()) for n in (0, 1)]
    rows = [{"case": case._asdict(), "name": case.told(), **one._asdict()} for case, one in counts.items()]
    OUT.parent.mkdir(exist_ok=True)
    found = {"called_error_max": worst[0], "left_error_max": worst[1], "configurations": len(rows), "rows": rows}
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    print(f"largest error {worst[0]:.1%} of calls, {worst[1]:.1%} of what left", flush=True)
    if len(rows) == len(CASES):
        head = "| width x blocks, clips | | MB planned | called | error | planned for gloo | left | error |"
        table = "\n".join([MARKS[0], head, "|---" * 8 + "|", *(line(*one) for one in counts.items()), MARKS[1]])
        PAGE.write_text(re.sub(f"{MARKS[0]}.*?{MARKS[1]}", lambda _: table, PAGE.read_text(), flags=re.S))


if __name__ == "__main__":
    main()
