"""Recompute of blocks, from outside and in place: the backward pass runs a block again, so its results are not kept.

Only `forward` is replaced, so the names in checkpoints stay. The wrappers of a block are, from the inside: recompute,
compile, the switch of sequence parallelism. The compiler must see what is recomputed. A collective between two blocks
lies outside, so it is not repeated: it runs once in the forward and once in the backward pass. Only the input of a
recomputed block is kept; it has the same size on both sides of that collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

LEVELS = ("none", "selective", "full")
aten, collectives = torch.ops.aten, torch.ops._c10d_functional
# What selective recompute keeps: the results of matrix products, which take most of the time, and of collectives.
KEPT = {
    aten.mm.default,
    # A product in FP8.
    aten._scaled_mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    collectives.all_to_all_single.default,
    collectives.wait_tensor.default,
}


def recompute_blocks(denoiser: nn.Module, level: str = "full", every: int = 1, offload: bool = False) -> None:
    """Let the backward pass compute every `every`-th block of `denoiser.blocks` again, beginning with the first.

    `level` none: nothing is recomputed; selective: everything except the outputs of matrix products and of attention;
    full: the whole block. `offload` keeps the input tokens of such a block on the host until the backward pass, with
    CUDA in pinned memory.
    """
    check(level, every, len(denoiser.blocks), offload)
    if level == "none":
        return
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if level == "selective":
        how["context_fn"] = contexts
    for block in denoiser.blocks[::every]:
        block.forward = partial(checkpoint, block.forward, **how)
        if offload:
            keep_on_host(block)


def check(level: str, every: int, blocks: int, offload: bool) -> None:
    """Raise if the settings do not fit each other or the number of blocks."""
    if level not in LEVELS:
        raise ValueError(f"recompute.level: found {level!r}, expected one of {', '.join(LEVELS)}")
    if not 1 <= every <= blocks:
        raise ValueError(f"recompute.every: found {every}, expected 1 to {blocks}, the number of blocks")
    if offload and level == "none":
        raise ValueError("recompute.offload: found true with nothing recomputed, expected recompute=full or selective")


def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of selective recompute: one for the forward pass of a block, one for its recompute."""
    return create_selective_checkpoint_contexts(policy)


def policy(context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Return whether the output of an operation is kept."""
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def keep_on_host(block: nn.Module) -> None:
    """Keep the saved input tokens of a block on the host until the backward pass.

    Module hooks do this, because they stay outside the compiled `forward`. What all blocks share (modulation, text,
    positions) stays on the device.
    """
    entered: list[saved_tensors_hooks] = []

    def before(block: nn.Module, given: Sequence[Any]) -> None:
        entered.append(saved_on_host(given[0]))
        entered[-1].__enter__()

    def after(block: nn.Module, given: Sequence[Any], returned: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    block.register_forward_pre_hook(before)
    block.register_forward_hook(after, always_call=True)


def saved_on_host(x: Tensor) -> saved_tensors_hooks:
    """Return a context in which autograd saves `x` on the host, and all else as it is."""
    host = save_on_cpu(pin_memory=torch.cuda.is_available())
    place = x.untyped_storage().data_ptr()

    def pack(t: Tensor) -> Callable[[], Tensor]:
        if t.untyped_storage().data_ptr() != place:
            return lambda: t
        return partial(host.unpack_hook, host.pack_hook(t))

    return saved_tensors_hooks(pack, lambda fetch: fetch())
