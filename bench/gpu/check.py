"""The argument of a proof: the device, sizes, a folder, and a record of its figures that is written at once."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GIB = 2**30


class Failed(Exception):
    """A verb of the command line failed."""


class Check:
    """One running proof; every call writes its record to `<out>/<name>.json`."""

    def __init__(self, name: str, out: Path, device: str, tiny: bool, seconds: float) -> None:
        self.name, self.out, self.tiny, self.end = name, out, tiny, time.monotonic() + seconds
        self.device = torch.device(device)
        self.scratch = out / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {
            "proof": name,
            "state": "running",
            "device": device,
            "tiny": tiny,
            "failures": [],
            "notes": [],
            "figures": {},
        }
        self.write()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until this proof is stopped."""
        return self.end - time.monotonic()

    def write(self) -> None:
        """Write the record as it is now."""
        path = self.out / f"{self.name}.json"
        path.with_suffix(".partial").write_text(json.dumps(self.record, indent=1))
        os.replace(path.with_suffix(".partial"), path)

    def figure(self, name: str, value: float | int | str | None) -> None:
        """Record a figure; it is printed too."""
        value = float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
        self.record["figures"][name] = value if not isinstance(value, float) or math.isfinite(value) else str(value)
        print(f"{self.name}: {name}: {value}", flush=True)
        self.write()

    def note(self, text: str) -> None:
        """Record what was not done, and why."""
        self.record["notes"].append(text)
        print(f"{self.name}: {text}", flush=True)
        self.write()

    def fail(self, reason: str) -> None:
        """Record a failure; the proof continues."""
        self.record["failures"].append(reason)
        print(f"{self.name}: FAILED: {reason}", flush=True)
        self.write()

    def hold(self, what: str, holds: bool, found: str = "") -> None:
        """Record a failure unless this holds."""
        if not holds:
            self.fail(f"{what}{': found ' + found if found else ''}")

    def near(self, what: str, found: Tensor, wanted: Tensor, most: float) -> None:
        """Record the relative error of a tensor, a failure where it is above `most`."""
        error = relative_error(found, wanted)
        self.figure(f"{what}, relative error", error)
        self.hold(f"{what}, relative error at most {most:g}", error <= most, f"{error:.3g}")

    def part(self, what: str, work: Callable[[], Any], gib: float = 0.0) -> Any:
        """Run one part of a proof; an exception, such as a lack of memory, is a failure of this part only."""
        if gib and (free := free_gib(self.device)) < gib:
            self.note(f"{what}: passed over: needs {gib:.0f} GiB, found {free:.0f} GiB free")
            return None
        try:
            return work()
        except torch.OutOfMemoryError as error:
            self.fail(f"{what}: out of memory: {first_line(error)}")
        except Exception as error:
            traceback.print_exc()
            self.fail(f"{what}: {type(error).__name__}: {first_line(error)}")
        finally:
            if self.cuda:
                release()
        return None

    def ends(self) -> None:
        """Record the end of the proof."""
        self.record["state"] = "failed" if self.record["failures"] else "held"
        self.write()


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference beside the norm of what is wanted, in float64 on the host."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    if not bool(found.isfinite().all()):
        return math.inf
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def free_gib(device: torch.device) -> float:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] / GIB
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


def peak_gib(device: torch.device) -> float:
    """Return the most memory that was in use at once: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_use_gib() -> float:
    """Return the memory of the GPU that tensors of this process hold, those of garbage left out; 0 without a GPU."""
    gc.collect()
    return torch.cuda.memory_allocated() / GIB


def release() -> None:
    """Give back to the GPU what nothing holds any more; networks hold themselves in circles."""
    gc.collect()
    torch.cuda.empty_cache()


def settle(device: torch.device) -> None:
    """Wait for the device, and begin to measure its peak memory anew."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: torch.device, rounds: int = 5, repeat: int = 1) -> float:
    """Return the seconds of one call, the median of some rounds after a warm-up."""
    work()
    taken = []
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        for _ in range(repeat):
            work()
        wait(device)
        taken.append((time.perf_counter() - start) / repeat)
    return statistics.median(taken)


def fixed_order() -> list[str]:
    """Return the override by which a device adds in a fixed order, so that runs can be equal to the bit.

    Without it, the backward pass of fused attention over more than some hundred tokens adds as its threads come.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # To find memory that is read before it is written is not the subject here.
    torch.utils.deterministic.fill_uninitialized_memory = False
    return ["trainer.deterministic=true"]


def videodiff(*arguments: str) -> str:
    """Run one verb in this process and return what it printed; its one line of error is raised."""
    from hydra.core.global_hydra import GlobalHydra

    from videodiff import cli

    os.environ["HYDRA_FULL_ERROR"] = "1"
    print("videodiff", *arguments, flush=True)
    GlobalHydra.instance().clear()
    before, said, printed = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["videodiff", *arguments]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            cli.main()
    except SystemExit as leave:
        if leave.code:
            lines = [line for line in said.getvalue().splitlines() if "error" in line.lower()]
            raise Failed(lines[-1] if lines else f"videodiff {arguments[0]} left with {leave.code}") from None
    finally:
        sys.argv = before
        # `trainer.deterministic` holds for the whole process; what follows may need other kernels.
        torch.use_deterministic_algorithms(False)
        print(printed.getvalue(), said.getvalue(), flush=True)
    return printed.getvalue()


@contextlib.contextmanager
def watched(*callbacks: Any) -> Iterator[None]:
    """Add callbacks of Lightning to the runs of `videodiff train` in this process."""
    from videodiff.verbs.train import command as train

    build = train.build_callbacks
    train.build_callbacks = lambda *arguments: [*build(*arguments), *callbacks]
    try:
        yield
    finally:
        train.build_callbacks = build
