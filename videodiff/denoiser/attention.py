"""Attention over one axis of tokens, with RMS norm on queries and keys (Henry et al. 2020, arXiv 2010.04245).

Tokens are `b t s d` throughout. Only queries, keys and values change their order, in one copy: the sequence is a frame
over space, a position over time, and the clip over both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videodiff.denoiser.change import Change, changed
from videodiff.denoiser.linear import Linear
from videodiff.denoiser.position import rotate
from videodiff.denoiser.short import SHORT, Normed, Parts, by_products
from videodiff.denoiser.target import plain

SPLIT = {
    "space": "b t s (three m e) -> three (b t) m s e",
    "time": "b t s (three m e) -> three (b s) m t e",
    "spacetime": "b t s (three m e) -> three b m (t s) e",
}
JOIN = {
    "space": "(b t) m s e -> b t s (m e)",
    "time": "(b s) m t e -> b t s (m e)",
    "spacetime": "b m (t s) e -> b t s (m e)",
}

# The most keys that products are faster for in bfloat16.
LONG = 256
# What CUDA's fused kernels take at once: the rows of a grid, and the numbers that the backward pass of flash attention
# counts with 32 bits (Dao-AILab/flash-attention#1311: attention over time in a video network).
ROWS, NUMBERS = 2**16 - 1, 2**31


def backend(device: str, head_width: int, length: int, dtype: torch.dtype) -> str:
    """Return the fastest kernel for `length` keys: torch's `fused` attention, or batched `products`.

    On a CPU products win up to about 64 keys, or 128 with wide heads, and in bfloat16 up to 256; other devices were not
    measured.
    """
    most = LONG if dtype == torch.bfloat16 else max(SHORT, head_width)
    return "products" if device == "cpu" and length <= most else "fused"


class HeadNorm(nn.RMSNorm):
    """RMS norm of queries or keys in the dtype of its weight, then the rotary turn if there is a table."""

    def forward(self, x: Tensor, rotary: Tensor | None = None) -> Tensor:
        """Map `b m n e` to the same; on a CPU the result is float32."""
        if not plain(x):
            return Normed.apply(x, self.weight, None if rotary is None else torch.view_as_complex(rotary), self.eps)
        # Under autocast an x of another dtype would miss the fused kernel.
        y = super().forward(x.to(self.weight.dtype))
        return y if rotary is None else rotate(y, rotary)


class SelfAttention(nn.Module):
    """Every token of a sequence along `axes` looks at every other, at rotary positions."""

    def __init__(self, width: int, heads: int, axes: str = "spacetime") -> None:
        super().__init__()
        self.heads, self.axes = heads, axes
        self.qkv = Linear(width, 3 * width)
        self.norm_q = HeadNorm(width // heads, eps=1e-6)
        self.norm_k = HeadNorm(width // heads, eps=1e-6)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, rotary: Tensor, change: Change | None = None) -> Tensor:
        """Map `b t s d` to `b t s d`; `change` is that of queries, keys and values."""
        b, t, s, _ = x.shape
        qkv = rearrange(changed(self.qkv, change, x), SPLIT[self.axes], three=3, m=self.heads)
        return self.out(rearrange(self.attend(qkv, rotary), JOIN[self.axes], b=b, t=t, s=s))

    def attend(self, qkv: Tensor, rotary: Tensor) -> Tensor:
        """Map queries, keys and values `three b m n e` to `b m n e`; any number of heads works."""
        q, k, v = qkv if plain(qkv) else Parts.apply(qkv)
        return attend(self.norm_q(q, rotary), self.norm_k(k, rotary), v)


class CrossAttention(nn.Module):
    """Every token looks at the words of the caption, and at no place that is masked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.norm_q = HeadNorm(width // heads, eps=1e-6)
        self.norm_k = HeadNorm(width // heads, eps=1e-6)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """Map `b t s d` with text `b l d` and its mask `b l` (True: visible; None: all are) to `b t s d`."""
        q = rearrange(self.q(x), "b t s (m e) -> b m (t s) e", m=self.heads)
        k, v = rearrange(self.kv(text), "b l (two m e) -> two b m l e", two=2, m=self.heads)
        y = self.attend(q, k, v, text_mask)
        return self.out(rearrange(y, "b m (t s) e -> b t s (m e)", t=x.shape[1]))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, text_mask: Tensor | None) -> Tensor:
        """Map queries `b m n e` with keys and values `b m l e` to `b m n e`."""
        return attend(self.norm_q(q), self.norm_k(k), v, text_mask)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Map normed queries `b m n e`, keys and values `b m l e` to `b m n e`; `mask` `b l` is True for visible keys.

    Where no key is visible the result is 0.
    """
    if not plain(q) and backend("cpu", q.shape[-1], k.shape[-2], v.dtype) == "products":
        return by_products(q, k, v, mask).to(v.dtype)
    mask = None if mask is None else rearrange(mask, "b l -> b 1 1 l")
    compiled = torch.compiler.is_compiling() and q.device.type == "cpu" and v.dtype == torch.float32
    if compiled and backend("cpu", q.shape[-1], k.shape[-2], v.dtype) == "products":
        return plain_products(q, k, v, mask)
    q, k = q.to(v.dtype), k.to(v.dtype)
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return in_parts(q, k, v, at_once(*q.shape[1:]) if q.is_cuda else len(q))


def plain_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend by plain products, which a compiler joins with the operations around them; `mask` is `b 1 1 l`."""
    logits = q.float() * q.shape[-1] ** -0.5 @ k.float().mT
    if mask is not None:
        # Not infinite: without a visible key the weights are equal then, and no number otherwise.
        logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
        v = v.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return logits.softmax(-1) @ v


def at_once(heads: int, length: int, head_width: int) -> int:
    """Return how many sequences CUDA's fused attention takes in one call.

    It counts numbers in tiles of 128 queries by 32 channels: attention over 16 frames pads them eightfold.
    """
    padded = heads * (-(-length // 128) * 128) * (-(-head_width // 32) * 32)
    return max(1, min(ROWS, NUMBERS // padded))


def in_parts(q: Tensor, k: Tensor, v: Tensor, most: int) -> Tensor:
    """Return the fused attention of `b m n e`, of at most so many sequences at a time."""
    if len(q) <= most:
        return F.scaled_dot_product_attention(q, k, v)
    parts = zip(q.split(most), k.split(most), v.split(most), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
