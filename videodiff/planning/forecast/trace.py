"""Record every operation of a forward and a backward pass of the real network without computing it.

Fake tensors have shapes and types but no numbers. Autograd treats them like other tensors: what it keeps, when it frees
it, and what recompute repeats are as in a real run. The record of an operation has its FLOPs, its memory traffic and
the bytes that are alive after it.

These figures are linear in clips and in blocks, so two small traces give the figures of any network and batch. What
grows with the clips is told from what does not, such as copies of weights in another type, by its size: it is a
multiple of the number of clips, which is a large prime.
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

# From a number of blocks to a network, and a function from a number of clips to their mean loss.
Make = Callable[[int], tuple[nn.Module, Callable[[int], Tensor]]]
aten = torch.ops.aten
# Products of attention on the CPU, which torch's table of FLOPs leaves out; the backward pass repeats one.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,
}
# Operations that move no memory.
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
# Numbers of a weight that ZeRO 3 does not split: `param_persistence_threshold` of conf/strategy.
SMALL = 100_000


class Kind(NamedTuple):
    """An operation of aten; `width` is the narrowest side of a product, 0 for other operations.

    `half`: its numbers have 16 bits.
    """

    name: str
    width: int = 0
    half: bool = False


class Weights(NamedTuple):
    """Numbers of weights: all that learn, of the matrices in blocks among them, and of the largest block as a whole.

    tensors: how many tensors learn; small: of those, the weights that ZeRO 3 keeps whole; orthogonal: the FLOPs of the
    products in a step of Muon; width: the shorter side of those matrices; frozen: the weights that do not learn.
    """

    all: int
    matrices: int
    largest: int
    tensors: int = 1
    small: int = 0
    orthogonal: int = 0
    width: int = 1
    frozen: int = 0

    @property
    def saved(self) -> int:
        """The size of a checkpoint, in weights that learn: of a frozen one it holds 8 of 20 bytes, no moments."""
        return self.all + 2 * self.frozen // 5


@dataclass(frozen=True, eq=False)
class Passes:
    """The operations of both passes in order, with the FLOPs of each and the bytes that it reads and writes.

    gradients, fixed, others: bytes of weight gradients, of what else does not grow with the clips, and of all else but
    weights, that are alive after each operation; turn: the number of operations until the last block has all its
    gradients. Of each operation's traffic, `still` does not grow.
    """

    kinds: list[Kind]
    flops: np.ndarray
    traffic: np.ndarray
    others: np.ndarray
    fixed: np.ndarray
    gradients: np.ndarray
    still: np.ndarray
    turn: int
    weights: Weights

    def peaks(self, gradient: float, scale: float = 1.0) -> np.ndarray:
        """Return the most bytes alive before the last block has all its gradients, and after that.

        `gradient`: the share of the gradients that this process keeps; `scale`: clips over traced clips. Each of the
        two is linear in the number of blocks; their maximum is not, as either may be the larger one in a deeper
        network.
        """
        alive = scale * self.others + self.fixed + gradient * self.gradients
        return np.array([alive[: self.turn].max(), alive[self.turn :].max()])


class Watching(TorchDispatchMode):
    """Records each operation and the bytes that are alive after it; what grows is a multiple of `clips`."""

    def __init__(self, clips: int = 1) -> None:
        super().__init__()
        self.clips, self.alive, self.fixed, self.whole, self.turn = clips, 0, 0, 0, 0
        self.seen = weakref.WeakSet()
        self.kinds: list[Kind] = []
        self.figures: list[tuple[float, float, float, int, int, int]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        if operation.namespace != "aten":
            return out
        # What lies on meta has a shape and no memory, though a fake one says that it has some.
        read, written = ([t for t in tensors(part) if t.device.type != "meta"] for part in ((args, kwargs), out))
        for tensor in written:
            self.watch(tensor.untyped_storage())
        name = operation.overloadpacket.__name__
        kind = Kind(name, width_of(operation, read), any(t.element_size() == 2 for t in read))
        moved = [] if name in FREE else [size(t) for t in (*read, *written)]
        still = sum(n for n in moved if n % self.clips)
        self.write(kind, flops_of(operation, args, kwargs or {}, out), sum(moved), still)
        return out

    def write(self, kind: Kind, flops: float, traffic: int, still: int) -> None:
        """Record an operation."""
        self.kinds.append(kind)
        fixed = self.fixed - self.whole
        self.figures.append((flops, traffic, still, self.alive - self.fixed, fixed, self.whole))

    def watch(self, memory: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        if memory in self.seen:
            return
        self.seen.add(memory)
        self.count(memory.nbytes())
        weakref.finalize(memory, self.count, -memory.nbytes())

    def count(self, size: int) -> None:
        """Count the bytes of a storage, or with a minus no longer."""
        self.alive += size
        self.fixed += size if size % self.clips else 0

    def keep(self, last: set[Tensor], p: Tensor) -> None:
        """Count a weight's finished gradient as a gradient; weights of the `last` block finish first."""
        self.whole += p.grad.untyped_storage().nbytes()
        last.discard(p)
        if not last and not self.turn:
            self.turn = len(self.kinds)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def size(tensor: Tensor) -> int:
    """Return the bytes of a tensor that a kernel touches; an expanded axis counts once."""
    numbers = math.prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    return numbers * tensor.element_size()


def width_of(operation: Any, read: list[Tensor]) -> int:
    """Return the narrowest side of a product, which decides its speed; 0 for other operations.

    For attention it is the number of queries or of keys, whichever is smaller.
    """
    if "scaled_dot_product" in operation.overloadpacket.__name__:
        # Queries, keys and values, or the gradient of the result before queries and keys; a mask comes later.
        return min(t.shape[2] for t in read[:3])
    if operation.overloadpacket in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm):
        a, b = read[-2:]
        return min(a.shape[-2], a.shape[-1], b.shape[-1])
    return 0


def flops_of(operation: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Return the FLOPs of an operation, two for a multiply-add; 0 unless it is a product of matrices."""
    packet = operation.overloadpacket
    if packet in ATTENTION:
        q, k = args[1:3] if packet.__name__.endswith("backward") else args[:2]
        b, m, n, e = q.shape
        return 2.0 * ATTENTION[packet] * b * m * n * k.shape[2] * e
    return float(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0.0


def passes(make: Make, blocks: int, clips: int) -> Passes:
    """Return the operations of both passes of a network of `blocks` blocks over `clips` clips."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network, loss_of = make(blocks)
        weights = [p for p in network.parameters() if p.requires_grad]
        last = {p for p in network.blocks[-1].parameters() if p.requires_grad}
        with Watching(clips) as seen:
            for p in network.parameters():
                # Memory of the weights is not counted here.
                seen.seen.add(p.untyped_storage())
            for p in weights:
                p.register_post_accumulate_grad_hook(partial(seen.keep, last))
            loss_of(clips).backward()
        # Where no weight learns, as the text encoder alone trains, both passes come before it.
        turn = seen.turn or len(seen.kinds)
        # The last gradient is finished only after the last operation.
        seen.write(Kind("end"), 0.0, 0, 0)
    flops, traffic, still, others, fixed, gradients = map(np.asarray, zip(*seen.figures, strict=True))
    return Passes(seen.kinds, flops, traffic, others, fixed, gradients, still, turn, weights_of(network))


def weights_of(network: nn.Module) -> Weights:
    """Return the numbers of weights of a network."""
    blocks = [dict(block.named_parameters()) for block in network.blocks]
    learn = [p for p in network.parameters() if p.requires_grad]
    matrices = [
        p
        for block in blocks
        for name, p in block.items()
        if name.endswith("weight") and p.ndim == 2 and p.requires_grad
    ]
    return Weights(
        sum(p.numel() for p in learn),
        sum(p.numel() for p in matrices),
        max(sum(p.numel() for p in block.values()) for block in blocks),
        len(learn),
        sum(p.numel() for p in learn if p.numel() <= SMALL),
        sum(orthogonalised(min(p.shape), max(p.shape)) for p in matrices),
        max((min(p.shape) for p in matrices), default=1),
        sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in learn),
    )


def orthogonalised(low: int, high: int, steps: int = 5) -> int:
    """Return the FLOPs of Muon's iteration on a matrix: three products a step, on its shorter side."""
    return steps * 2 * (2 * low**2 * high + low**3)


class OneKernel(torch.autograd.Function):
    """An RMS norm with the memory traffic and saved tensors of CUDA's kernel, for tensors without numbers."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Save the input and one number for each row."""
        context.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the right shapes."""
        x, weight, _ = context.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@contextmanager
def norms_by_one_kernel() -> Iterator[None]:
    """Let torch compute RMS norms by one operation, as on CUDA; elsewhere it takes them apart, which keeps more.

    A mode of torch's function calls would miss the norms that recompute repeats: it is off in the backward pass.
    """
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("rms_norm", lambda x, shape, weight, eps=None: OneKernel.apply(x, weight), "AutogradCPU")
        yield


def halve(network: nn.Module) -> None:
    """Replace the weights of a network by bfloat16 ones; torch's conversion refuses fake tensors."""
    for part in network.modules():
        for name, p in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(p.detach().bfloat16(), p.requires_grad))
