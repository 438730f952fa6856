"""torch.compile of whole blocks, from outside and in place.

Blocks of one kind share one graph, however many there are, and hooks that a strategy adds to a module stay outside the
graph. Only `forward` is replaced, so the names in checkpoints stay.
"""

from __future__ import annotations

import difflib
import os
import shutil

import torch
from torch import nn
from torch.utils._triton import has_triton_package


def compile_blocks(
    denoiser: nn.Module,
    backend: str = "inductor",
    mode: str | None = None,
    dynamic: bool | None = None,
    graphs: int = 64,
) -> None:
    """Compile every block of `denoiser.blocks` at its first call.

    `dynamic` None: a graph for the first size, then one in which the changed sizes are free; True: all sizes are free
    from the start, so that all buckets share one graph, with one more each for single clips and for single frames;
    False: one graph per bucket, the fastest. `graphs` limits the graphs per kind of block: each takes about ten seconds
    to build. `mode` is torch.compile's.
    """
    check(backend)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, graphs)
    how = {"backend": backend, "mode": mode, "dynamic": dynamic, "fullgraph": True}
    for block in denoiser.blocks:
        block.forward = torch.compile(block.forward, **how)


def check_stage(stage: int | None) -> None:
    """Raise if blocks cannot be compiled under this stage of ZeRO; None: another strategy."""
    if stage == 3:
        raise ValueError(
            "compile: found blocks under ZeRO 3, expected strategy=fsdp2, which splits as much, or compile=null: ZeRO "
            "3 gathers weights by hooks inside the blocks, which torch.compile refuses"
        )


def check(backend: str) -> None:
    """Raise if a backend does not exist, or if the compiler that it needs is missing."""
    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        near = difflib.get_close_matches(backend, known, n=1, cutoff=0.0)
        raise ValueError(f"compile.backend: found {backend!r}, expected one of {', '.join(known)} (nearest: {near[0]})")
    if backend != "inductor":
        return
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise ValueError(
            f"compile.backend: found no {' or '.join(compilers)}, which inductor builds its kernels with; install one, "
            "or leave compile= out"
        )
    if torch.cuda.is_available() and not has_triton_package():
        raise ValueError("compile.backend: found no package triton, which inductor writes its kernels in; install it")
