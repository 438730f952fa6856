"""Attention over one axis of tokens, with RMS norm on queries and keys (Henry et al. 2020, arXiv 2010.04245)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videodiff.denoiser.position import rotate


class HeadNorm(nn.RMSNorm):
    """RMS norm in the type of its weight: under autocast a mixed one would miss the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class SelfAttention(nn.Module):
    """Every token of a sequence looks at every other, at rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = HeadNorm(width // heads, eps=1e-6)
        self.norm_k = HeadNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """Map `b n d` to `b n d`."""
        qkv = rearrange(self.qkv(x), "b n (three m e) -> three b m n e", three=3, m=self.heads)
        return self.out(rearrange(self.attend(qkv, rotary), "b m n e -> b n (m e)"))

    def attend(self, qkv: Tensor, rotary: Tensor) -> Tensor:
        """Map queries, keys and values `three b m n e` to `b m n e`; nothing here depends on the number of heads."""
        q, k, v = qkv
        q, k = rotate(self.norm_q(q), rotary), rotate(self.norm_k(k), rotary)
        return F.scaled_dot_product_attention(q, k, v)


class CrossAttention(nn.Module):
    """Every token looks at the words of the caption; padding words are masked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm_q = HeadNorm(width // heads, eps=1e-6)
        self.norm_k = HeadNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Map `b n d` with text `b l d` and its mask `b l` (True: a word) to `b n d`."""
        q = self.norm_q(rearrange(self.q(x), "b n (m e) -> b m n e", m=self.heads))
        k, v = rearrange(self.kv(text), "b l (two m e) -> two b m l e", two=2, m=self.heads)
        mask = rearrange(text_mask, "b l -> b 1 1 l")
        attended = F.scaled_dot_product_attention(q, self.norm_k(k), v, attn_mask=mask)
        return self.out(rearrange(attended, "b m n e -> b n (m e)"))
