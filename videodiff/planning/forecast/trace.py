"""What a forward and a backward pass do, operation by operation, of the very network that will run, without running it.

Fake tensors have shapes and types but no numbers. Autograd treats them as it treats others, so that what it keeps, when
it lets go of it and what recompute repeats are the real thing. Each operation is written down with its arithmetic, its
traffic and the bytes that are alive after it.

All these grow evenly with clips and with blocks: from one clip and two, and from few blocks and some more, follows any
number of both.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# A network of so many blocks, and the mean loss of so many clips.
Make = Callable[[int], tuple[nn.Module, Callable[[int], Tensor]]]
aten = torch.ops.aten
# Attention on the CPU, which torch's table of FLOPs leaves out; it repeats a product in the backward pass.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,
}
# What moves no memory.
FREE = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select"}
FREE |= {
    "view_as_complex",
    "view_as_real",
    "_conj",
    "detach",
    "alias",
    "as_strided",
    "split",
    "split_with_sizes",
    "unbind",
    "reshape",
    "lift_fresh",
    "empty",
}


class Kind(NamedTuple):
    """An operation of aten; `width` is the narrowest side of a product, 0 for what is no product.

    `half`: it works on 16-bit numbers.
    """

    name: str
    width: int = 0
    half: bool = False


class Weights(NamedTuple):
    """How many weights there are: all, the matrices of the blocks, and those of the largest block."""

    all: int
    matrices: int
    largest: int


@dataclass(frozen=True, eq=False)
class Passes:
    """The operations of both passes in their order: FLOPs and bytes read and written of each.

    others, gradients: bytes alive after it, besides the weights; turn: the operations until all gradients of the last
    block are whole.
    """

    kinds: list[Kind]
    flops: np.ndarray
    traffic: np.ndarray
    others: np.ndarray
    gradients: np.ndarray
    turn: int
    weights: Weights

    def peaks(self, gradient: float) -> np.ndarray:
        """Return the most bytes alive until the last block's gradients are whole, and after that.

        `gradient`: the share of the gradients that stays with this process. Each of the two grows evenly with blocks;
        the larger one of them may be another one in a deeper network.
        """
        alive = self.others + gradient * self.gradients
        return np.array([alive[: self.turn].max(), alive[self.turn :].max()])


class Watching(TorchDispatchMode):
    """Writes down each operation and what is alive after it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.whole, self.turn, self.seen = 0, 0, 0, weakref.WeakSet()
        self.kinds: list[Kind] = []
        self.figures: list[tuple[float, float, int, int]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        if operation.namespace != "aten":
            return out
        read, written = (list(tensors(part)) for part in ((args, kwargs), out))
        for tensor in written:
            self.watch(tensor.untyped_storage())
        name = operation.overloadpacket.__name__
        kind = Kind(name, width_of(operation, read), any(t.element_size() == 2 for t in read))
        traffic = 0 if name in FREE else sum(map(size, [*read, *written]))
        self.write(kind, flops_of(operation, args, kwargs or {}, out), traffic)
        return out

    def write(self, kind: Kind, flops: float, traffic: int) -> None:
        """Write an operation down."""
        self.kinds.append(kind)
        self.figures.append((flops, traffic, self.alive - self.whole, self.whole))

    def watch(self, memory: torch.UntypedStorage) -> None:
        """Count a memory as long as somebody holds it."""
        if memory in self.seen:
            return
        self.seen.add(memory)
        self.alive += memory.nbytes()
        weakref.finalize(memory, self.release, memory.nbytes())

    def release(self, size: int) -> None:
        """Count a memory no longer."""
        self.alive -= size

    def keep(self, last: set[Tensor], p: Tensor) -> None:
        """Count a gradient of a weight as such, as it is whole now; those of the `last` block come first."""
        self.whole += p.grad.untyped_storage().nbytes()
        last.discard(p)
        if not last and not self.turn:
            self.turn = len(self.kinds)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def size(tensor: Tensor) -> int:
    """Return the bytes that a kernel touches of a tensor; what is expanded lies there once."""
    numbers = math.prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    return numbers * tensor.element_size()


def width_of(operation: Any, read: list[Tensor]) -> int:
    """Return the narrowest side of a product, which decides how fast it is; 0 for what is none.

    Of attention it is the shorter one of queries and keys.
    """
    if "scaled_dot_product" in operation.overloadpacket.__name__:
        return min(t.shape[2] for t in read if t.ndim == 4 and t.shape[2] > 1)
    if operation.overloadpacket in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm):
        a, b = read[-2:]
        return min(a.shape[-2], a.shape[-1], b.shape[-1])
    return 0


def flops_of(operation: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Return the FLOPs of an operation, a multiply-add as two; what is no product of matrices has none."""
    packet = operation.overloadpacket
    if packet in ATTENTION:
        q, k = args[1:3] if packet.__name__.endswith("backward") else args[:2]
        b, m, n, e = q.shape
        return 2.0 * ATTENTION[packet] * b * m * n * k.shape[2] * e
    return float(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0.0


def passes(make: Make, blocks: int, clips: int) -> Passes:
    """Return what both passes of a network of so many blocks do with so many clips."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network, loss_of = make(blocks)
        weights = [p for p in network.parameters() if p.requires_grad]
        last = {p for p in network.blocks[-1].parameters() if p.requires_grad}
        with Watching() as seen:
            for p in weights:
                # What is there before counts with the weights.
                seen.seen.add(p.untyped_storage())
                p.register_post_accumulate_grad_hook(partial(seen.keep, last))
            loss_of(clips).backward()
        # The last gradient is whole after the last operation.
        seen.write(Kind("end"), 0.0, 0)
    flops, traffic, others, gradients = map(np.asarray, zip(*seen.figures, strict=True))
    return Passes(seen.kinds, flops, traffic, others, gradients, seen.turn, weights_of(network))


def weights_of(network: nn.Module) -> Weights:
    """Return how many weights a network has, and in its parts."""
    blocks = [dict(block.named_parameters()) for block in network.blocks]
    matrices = [p for block in blocks for name, p in block.items() if name.endswith("weight") and p.ndim == 2]
    return Weights(
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        sum(p.numel() for p in matrices),
        max(sum(p.numel() for p in block.values()) for block in blocks),
    )


class OneKernel(torch.autograd.Function):
    """An RMS norm as CUDA's kernels read and keep it, for tensors without numbers."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Keep the input and a number for each row."""
        context.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Give gradients of the same shapes."""
        x, weight, _ = context.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@contextmanager
def norms_by_one_kernel() -> Iterator[None]:
    """Let RMS norms be one operation, as they are on CUDA; elsewhere torch takes them apart, which keeps more."""
    before = nn.RMSNorm.forward
    nn.RMSNorm.forward = lambda norm, x: OneKernel.apply(x, norm.weight)
    try:
        yield
    finally:
        nn.RMSNorm.forward = before


def halve(network: nn.Module) -> None:
    """Give a network weights of 16 bits; its own conversion refuses fake tensors."""
    for part in network.modules():
        for name, p in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(p.detach().bfloat16(), p.requires_grad))
