"""Attention over short sequences on a CPU: the same results as the plain formulas, with a backward pass of our own.

Fused CPU kernels are made for long sequences: at 8 to 32 tokens most of their time is set-up, in bfloat16 at 256 still
much of it. Here one batched matrix product does the work, and each backward pass is written out in few operations.
`attention.py` has the plain formulas for compilers, for forward-mode derivatives, and for tests to compare with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Up to so many keys, products in float32 are the fastest way, whatever the dtype of the values.
SHORT = 64
# torch's softmax works row by row; on rows shorter than this, operations over all rows at once are faster.
FEW = 16


class Parts(Function):
    """Split one tensor into queries, keys and values; join their gradients in one tensor of the same layout."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> tuple[Tensor, ...]:
        """Split `three b m n e`; nothing is copied."""
        ctx.like = torch.empty_like(qkv, device="meta")
        return qkv.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient of all three."""
        whole = torch.empty_like(ctx.like, device="cpu")
        for part, grad in zip(whole.unbind(0), grads, strict=True):
            part.copy_(grad)
        return whole


class Normed(Function):
    """RMS norm of queries or keys, then the rotary turn if there is a table; in float32."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor, turn: Tensor | None, eps: float) -> Tensor:
        """Map `b m n e`, a weight `e` and a complex table `n e/2` or None to `b m n e`."""
        x = x.float()
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = torch.mul(x, scale, out=x.new_empty(x.shape)).mul_(weight.float())
        if turn is not None:
            as_complex(y).mul_(turn)
        ctx.save_for_backward(x, scale, weight, turn)
        return y

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of `x` and of `weight`."""
        x, scale, weight, turn = ctx.saved_tensors
        if turn is not None:
            grad = torch.view_as_real(as_complex(grad.contiguous()) * turn.conj()).flatten(-2)
        # Sums as products with a vector: they read once, and write nothing as large as x.
        along, wide = grad * x, weight.float()
        to_weight = along.flatten(0, -2).T @ scale.flatten()
        mean = (along @ (wide / x.shape[-1]))[..., None].mul_(scale).mul_(scale)
        to_x = torch.mul(grad, wide, out=along).addcmul_(x, mean, value=-1).mul_(scale)
        return to_x, to_weight, None, None


class ShortAttention(Function):
    """softmax(q k^T / sqrt(e) + hidden) v by batched products: the logits in float32, the rest in the dtype of v."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
        """Map queries `a n e`, keys and values `a l e`, and `hidden` `a 1 l` or None to `a n e`."""
        factor = q.shape[-1] ** -0.5
        if hidden is None:
            logits = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=factor)
        else:
            logits = torch.baddbmm(hidden, q, k.mT, alpha=factor)
        weight = softmax(logits).to(v.dtype)
        ctx.save_for_backward(q, k, v, weight)
        return torch.bmm(weight, v)

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of queries, keys and values."""
        q, k, v, weight = ctx.saved_tensors
        factor, none = q.shape[-1] ** -0.5, v.new_empty(())
        to_v = torch.bmm(weight.mT, grad)
        # The derivative of a softmax w: w (g - sum(w g)).
        weight = weight.float()
        logits = torch.bmm(grad, v.mT).float().mul_(weight)
        logits = logits.addcmul_(weight, logits.sum(-1, keepdim=True), value=-1).to(v.dtype)
        to_q = torch.baddbmm(none, logits, k.to(v.dtype), beta=0, alpha=factor)
        to_k = torch.baddbmm(none, logits.mT, q.to(v.dtype), beta=0, alpha=factor)
        return to_q.float(), to_k.float(), to_v, None


def as_complex(x: Tensor) -> Tensor:
    """Return pairs of neighbouring channels `... e` as complex numbers `... e/2`, without a copy."""
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last axis; do not overwrite the logits, which selective recompute may keep."""
    if logits.shape[-1] >= FEW:
        return logits.softmax(-1)
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()
    return weight.div_(weight.sum(-1, keepdim=True))


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Map queries `b m n e` with keys and values `b m l e` to `b m n e`; `mask` `b l` is True for visible keys.

    Where no key is visible the result is 0, as in torch's own kernels. Few keys are attended to in float32, which is
    as fast; with more of them, the values keep their dtype.
    """
    hidden = None
    v = v.float() if k.shape[-2] <= SHORT else v
    if mask is not None:
        # Not infinite: without a visible key the weights are equal then, and no number otherwise.
        hidden = mask.new_zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)
        hidden = hidden.repeat_interleave(q.shape[1], 0)[:, None]
        v = v.masked_fill(~mask.any(1)[:, None, None, None], 0.0)
    parts = [x.flatten(0, 1) for x in (q.float(), k.float(), v)]
    with torch.autocast("cpu", enabled=False):
        return ShortAttention.apply(*parts, hidden).unflatten(0, q.shape[:2])
