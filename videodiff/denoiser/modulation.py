"""Layer norm, and tokens shifted, scaled and gated frame by frame: torch's operations, or faster ones on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from videodiff.denoiser.target import plain


class Norm(nn.LayerNorm):
    """Layer norm without weights. torch's kernel of a CPU is twice as fast where it is given some, so it gets ones."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if plain(x):
            return super().forward(x)
        return F.layer_norm(x, self.normalized_shape, x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1]), self.eps)


class Weighted(Function):
    """a + b scale, where `scale` is of a frame, `b t 1 d`, and `a` is of a frame or of tokens.

    torch's derivative of the same passes over the tokens once more, to multiply by one.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        """Map `b t 1 d` or `b t s d`, `b t s d` and `b t 1 d` to `b t s d`."""
        ctx.save_for_backward(b, scale)
        ctx.shape_of_a = a.shape
        return torch.addcmul(a, b, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of all three."""
        b, scale = ctx.saved_tensors
        return grad.sum_to_size(ctx.shape_of_a), grad * scale, (grad * b).sum(2, keepdim=True)


def weighted(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return a + b scale for tokens `b t s d`; `scale` is `b t 1 d`, and `a` either."""
    return torch.addcmul(a, b, scale) if plain(b) else Weighted.apply(a, b, scale)
