"""Host memory of a node's processes that all load one pretrained encoder: random weights, the real classes.

    python bench/parallel/encoders.py [--processes 1,2,4] [--alone]

Each process loads the encoder as training does and uses all its weights. Then the growth of their proportional set
sizes is summed (a page that n processes share counts 1 / n in each) and compared with the size of the weights. The peak
is the largest sum while they load. With `--alone` each process loads its own copy.
"""

from __future__ import annotations

import argparse
import re
import select
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402

from videodiff.node_copy import NodeCopies  # noqa: E402
from videodiff.pretrained import load_frozen  # noqa: E402

# As wide as T5 large, and twice as wide as the autoencoder of Stable Diffusion.
T5 = {"vocab_size": 32000, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 12, "num_heads": 16}
VAE = {"block_out_channels": (256, 512, 1024, 1024), "layers_per_block": 2}


def make(kind: str, precision: torch.dtype, folder: Path) -> None:
    """Write the files of an encoder with random weights in this dtype."""
    if kind == "text":
        import transformers

        model = transformers.T5EncoderModel(transformers.T5Config(feed_forward_proj="gated-gelu", **T5))
    else:
        import diffusers

        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        model = diffusers.AutoencoderKL(**VAE, **blocks)
    model.to(precision).save_pretrained(folder)


def classes(kind: str) -> type:
    """Return the class of an encoder."""
    if kind == "text":
        import transformers

        return transformers.T5EncoderModel
    import diffusers

    return diffusers.AutoencoderKL


def load(kind: str, folder: Path, processes: int, copies: Path) -> None:
    """Load the encoder in one of several processes, then use its weights; wait for a line after both."""
    cls, how = classes(kind), {"low_cpu_mem_usage": False} if kind == "codec" else {}
    step("imported")
    with NodeCopies(processes, copies):
        model = load_frozen(kind, cls, str(folder), None, "main", "bfloat16", **how)
    # Sum a few values at a time, as a float32 copy of a weight would count as well.
    read = sum(float(part.float().sum()) for p in model.parameters() for part in p.flatten().split(2**16))
    step(f"used {sum(p.nbytes for p in model.parameters())} {read == read}")


def step(what: str) -> None:
    """Report the finished step, and wait for the others."""
    print(what, flush=True)
    sys.stdin.readline()


def memory(process: subprocess.Popen, name: str = "Pss", file: str = "smaps_rollup") -> float:
    """Return a memory figure of a process from the kernel, in MiB."""
    text = Path(f"/proc/{process.pid}/{file}").read_text()
    return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) / 1024


def measured(kind: str, folder: Path, processes: int, alone: bool) -> tuple[float, float, float, float]:
    """Return in MiB the size of the weights, the memory of all processes and its peak, and the largest process."""
    with tempfile.TemporaryDirectory() as copies:
        started = []
        for _ in range(processes):
            sharing = 1 if alone else processes
            command = [sys.executable, __file__, "--inside", kind, str(folder), str(sharing), copies]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, text=True, **pipes))
        for process in started:
            process.stdout.readline()
        before = sum(map(memory, started))
        for process in started:
            print(file=process.stdin, flush=True)
        peak, size, waiting = 0.0, 0.0, list(started)
        while waiting:
            peak = max(peak, sum(map(memory, started)))
            there, _, _ = select.select([process.stdout for process in waiting], [], [], 0.02)
            size = max([size, *(int(stdout.readline().split()[1]) / 2**20 for stdout in there)])
            waiting = [process for process in waiting if process.stdout not in there]
        after, largest = sum(map(memory, started)), max(memory(p, "VmHWM", "status") for p in started)
        for process in started:
            process.communicate("\n")
        return size, after - before, max(peak, after) - before, largest


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        kind, precision, folder = args.make
        make(kind, getattr(torch, precision), Path(folder))
        return
    if args.inside:
        kind, folder, processes, copies = args.inside
        load(kind, Path(folder), int(processes), Path(copies))
        return
    print(
        f"{'encoder':8} {'file':9} {'processes':>9} {'weights':>8} {'together':>9} {'peak':>8} {'largest RSS':>12}  MiB"
    )
    for kind in ("text", "codec"):
        for precision in (torch.bfloat16, torch.float32):
            with tempfile.TemporaryDirectory() as place:
                folder, name = Path(place), str(precision).removeprefix("torch.")
                subprocess.run([sys.executable, __file__, "--make", kind, name, place], check=True, capture_output=True)
                for processes in map(int, args.processes.split(",")):
                    found = measured(kind, folder, processes, args.alone)
                    print(f"{kind:8} {name:9} {processes:9} " + " ".join(f"{n:9.0f}" for n in found), flush=True)


if __name__ == "__main__":
    main()
