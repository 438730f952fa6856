"""A linear layer whose weights get their gradient sooner in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from videodiff.denoiser.target import plain

# The narrowest layer and the fewest weights that gain, and the rows that are transposed at a time.
NARROW, LEAST, TILE = 512, 2**20, 64


class Linear(nn.Linear):
    """`nn.Linear` with the same weights and results; a wide one has a backward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `... inputs` to `... outputs`."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        if dtype != torch.bfloat16 or not gains(*self.weight.shape) or plain(x):
            return super().forward(x)
        return Product.apply(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


def gains(outputs: int, inputs: int) -> bool:
    """Tell whether the gradient of such weights comes sooner by way of a transposed copy."""
    return min(outputs, inputs) >= NARROW and outputs * inputs >= LEAST


def transposed(x: Tensor) -> Tensor:
    """Return a copy of `n d` as `d n`; in tiles it keeps to the cache."""
    y = x.new_empty(x.shape[::-1])
    for to, tile in zip(y.split(TILE, 1), x.split(TILE), strict=True):
        to.copy_(tile.T)
    return y


class Product(Function):
    """x w^T + b, where the gradient of w is a product of two matrices that need no transposition.

    oneDNN takes twice the time for the product of a transposed matrix in bfloat16; a transposed copy costs less.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Map `... inputs` with a weight (outputs, inputs) and a bias to `... outputs`."""
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of `x`, of the weight and of the bias, where they are asked for."""
        x, weight = ctx.saved_tensors
        to_x = grad @ weight if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return to_x, None, None
        columns = transposed(grad.flatten(0, -2))
        to_weight = columns @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, columns.sum(1)
