"""Check on a GPU whether the project computes the right results, and how fast. docs/gpu.md explains the output.

python bench/gpu_check.py [--device cuda|cpu] [--minutes 9] [--proofs parity,demo] [--out DIR] [--tiny]

Proofs run one after the other, each in a process of its own with a time limit. A proof writes each figure to
<out>/<proof>.json at once; <out>/gpu_check.json has all figures. A proof that fails does not stop the next. --tiny
shrinks all sizes, so that the same code runs on a CPU in a minute or two.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT)]

from gpu.proof_list import PROOFS, Proof  # noqa: E402

from videodiff.parallel.node.parent import die_with_parent  # noqa: E402

WORDS = {"held": 0, "passed over": 0, "failed": 1, "out of time": 1}


def main() -> int:
    """Run the requested proofs; return 0 if none failed, 1 if one failed, 2 if none can begin."""
    args = arguments()
    if args.proof:
        return alone(args)
    begun = time.monotonic()
    # OpenBLAS and jemalloc have threads by now; both libraries stop and restart them at a fork.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
    args.out.mkdir(parents=True, exist_ok=True)
    lost = missing_packages(args.proofs)
    # Import here, once, everything that the proofs import; each proof is a fork of this process.
    where = card(args)
    if isinstance(where, str):
        print(f"gpu_check: {where}", file=sys.stderr)
        return 2
    print(f"gpu_check: {', '.join(f'{name} {value}' for name, value in where.items())}", flush=True)
    warm([proof for proof in args.proofs if proof.name not in lost])
    results = []
    for proof in args.proofs:
        left = 60 * args.minutes - (time.monotonic() - begun)
        results.append(outcome(proof, args, left, lost.get(proof.name)))
        # If the fork itself was at fault, the next proofs start in new processes.
        args.fresh |= results[-1]["state"] == "out of time" and not results[-1]["figures"]
        print(line(results[-1]), flush=True)
        (args.out / "gpu_check.json").write_text(json.dumps({"where": where, "proofs": results}, indent=1))
    print(f"\n{table(results)}\n\ngpu_check: {time.monotonic() - begun:.0f} s, all in {args.out}")
    return max((WORDS[result["state"]] for result in results), default=0)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many (9)")
    # `--stages` is the name of this option in earlier versions.
    parser.add_argument("--proofs", "--stages", default="", help=f"some of {','.join(p.name for p in PROOFS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out" / "gpu")
    parser.add_argument("--tiny", action="store_true", help="the same code with sizes for a CPU")
    parser.add_argument("--fresh", action="store_true", help="start each proof in a new process, not a fork: slower")
    parser.add_argument("--proof", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = [name for name in args.proofs.split(",") if name]
    known = {proof.name: proof for proof in PROOFS}
    for name in [*names, *([args.proof] if args.proof else [])]:
        if name not in known:
            parser.error(f"--proofs: found {name!r}, expected some of {', '.join(known)}")
    if not args.minutes > 0:
        parser.error(f"--minutes: found {args.minutes:g}, expected a number above 0")
    args.proofs = [proof for proof in PROOFS if not names or proof.name in names]
    args.out = args.out.resolve()
    return args


def missing_packages(proofs: list[Proof]) -> dict[str, str]:
    """Return the missing packages of each proof; print one line for each package with all proofs that need it."""
    costs: dict[str, list[str]] = {}
    for proof in proofs:
        for package in proof.packages:
            if importlib.util.find_spec(package) is None:
                costs.setdefault(package, []).append(proof.name)
    for package, names in costs.items():
        print(f"gpu_check: found no package {package}: passes over {', '.join(names)}", flush=True)
    lost: dict[str, str] = {}
    for package, names in costs.items():
        lost |= {name: ", ".join(filter(None, [lost.get(name), package])) for name in names}
    return lost


def card(args: argparse.Namespace) -> dict[str, Any] | str:
    """Return the facts about card and software for the record, or why nothing can run."""
    if importlib.util.find_spec("torch") is None:
        return "found no package torch, expected 2.11 or newer"
    # With this variable torch finds a GPU without opening it, so a fork of this process can still open it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if args.device == "cpu":
        # Libraries use a GPU if they see one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        return "found no CUDA device; --device cpu --tiny runs every proof on the CPU"
    from videodiff.training.run.record import git_state, processor

    state = git_state() or {}
    commit = (state.get("commit") or "unknown")[:12] + (" (changed)" if state.get("changed") else "")
    chip = processor()
    if args.device == "cuda":
        with contextlib.suppress(Exception):
            chip = json.loads(in_copy(describe, args.out / "card.json", 60))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "card": chip,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": commit,
        "command": " ".join(["python", "bench/gpu_check.py", *sys.argv[1:]]),
    }


def describe(path: Path) -> None:
    """Write the name and the memory of the GPU to a file."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    path.write_text(json.dumps(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))


def in_copy(work: Any, path: Path, seconds: float) -> str:
    """Let a fork of this process write a file; return the content."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            work(path)
        os._exit(0)
    wait_for(child, seconds)
    return path.read_text()


def warm(proofs: list[Proof]) -> None:
    """Import the modules of the proofs; a module that cannot be imported is reported by its proof."""
    names = {package for proof in proofs for package in proof.packages} | {
        f"gpu.proofs.{proof.name}" for proof in proofs
    }
    if "hydra" in names:
        names |= {f"videodiff.verbs.{verb}" for verb in ("train", "sample", "evaluate", "cache")}
    from videodiff.printing import no_warnings_logged

    # torchao warns of kernels for other cards.
    with no_warnings_logged():
        for name in sorted(names):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def outcome(proof: Proof, args: argparse.Namespace, left: float, lacks: str | None) -> dict[str, Any]:
    """Run one proof in a process of its own and return its record."""
    # A machine that runs tests has other work, so there the limit is long and only ends a proof that hangs.
    path, seconds = args.out / f"{proof.name}.json", min(proof.seconds * (4 if args.tiny else 1), left - 5)
    record = {"proof": proof.name, "failures": [], "notes": [], "figures": {}}
    if lacks:
        record |= {"state": "passed over", "notes": [f"found no package {lacks}"]}
    elif seconds < 10:
        record |= {"state": "passed over", "notes": [f"no time left of {args.minutes:g} minutes"]}
    else:
        path.unlink(missing_ok=True)
        start = time.monotonic()
        code = wait_for(begin(proof, args, seconds), seconds)
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(path.read_text())
        if code is None:
            record["state"] = "out of time"
            record["failures"].append(f"not done after {seconds:.0f} s")
        elif record.get("state", "running") == "running":
            record["state"] = "failed"
            record["failures"].append(f"its process ended with {code}: {last_line(args.out / f'{proof.name}.log')}")
        record["seconds"] = round(time.monotonic() - start, 1)
    path.write_text(json.dumps(record, indent=1))
    return record


def begin(proof: Proof, args: argparse.Namespace, seconds: float) -> int:
    """Start the process of a proof as the leader of its own process group; its output goes to a file."""
    args.fresh |= threading.active_count() > 1
    parent, child = os.getpid(), os.fork()
    if child:
        return child
    os.setsid()
    # Whoever ends this script, a time limit for one, ends its proof too: else it would go on and hold the device.
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    log = os.open(args.out / f"{proof.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(file, number)
    command = [sys.executable, str(Path(__file__).resolve()), "--proof", proof.name, "--seconds", str(seconds)]
    command += ["--device", args.device, "--out", str(args.out), *(["--tiny"] if args.tiny else [])]
    code = 1
    try:
        import torch

        if args.fresh or torch.cuda._is_in_bad_fork():
            # If an imported module has opened the GPU, a fork cannot open it; a new process can.
            os.execv(command[0], command)
        args.proof, args.seconds = proof.name, seconds
        code = alone(args)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def alone(args: argparse.Namespace) -> int:
    """Run one proof in this process."""
    from gpu.check import Check, first_line, free_gib

    proof = next(proof for proof in PROOFS if proof.name == args.proof)
    check = Check(proof.name, args.out, args.device, args.tiny, args.seconds)
    needs = 1.0 if args.tiny else proof.gib
    if (free := free_gib(check.device)) < needs:
        check.record |= {"state": "passed over", "notes": [f"needs {needs:g} GiB, found {free:.1f} GiB free"]}
        check.write()
        return 0
    try:
        run = importlib.import_module(f"gpu.proofs.{proof.name}").run
        # All that is imported stays: who looks for garbage need not look at it.
        gc.freeze()
        run(check)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        check.fail(f"{type(error).__name__}: {first_line(error)}")
    check.ends()
    return 0


def wait_for(child: int, seconds: float) -> int | None:
    """Wait for a process and end its whole group; return the exit status, None if it had to be killed."""
    code = exit_status(child, seconds)
    end_group(child)
    if code is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        # Not for ever: a process that waits inside a driver does not end even so.
        exit_status(child, 10)
    return code


def exit_status(child: int, seconds: float) -> int | None:
    """Return the exit status of a process as soon as it has ended, None if it has not after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.05)


def end_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def last_line(path: Path) -> str:
    """Return the last line of a log."""
    lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1][:300] if lines else "nothing was printed"


def line(record: dict[str, Any]) -> str:
    """Return the result line of a proof."""
    why = "; ".join([*record["failures"], *(record["notes"] if record["state"] == "passed over" else [])])
    took = f"{record['seconds']:7.1f} s" if "seconds" in record else " " * 9
    return f"{record['proof']:<10}{took}  {record['state']}{': ' + why if why else ''}"


def table(results: list[dict[str, Any]]) -> str:
    """Return the table of all figures and notes."""
    rows = []
    for record in results:
        rows.append(line(record))
        rows += [f"    {name:<80} {value}" for name, value in record["figures"].items()]
        rows += [f"    ({note})" for note in record["notes"] if record["state"] != "passed over"]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
