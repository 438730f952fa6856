"""One block of the factorized space-time transformer.

Tokens are `b t s d`: frames by positions. A block attends over one of the axes, over space within a frame, over time
at a position, or over both together, then looks at the caption, then passes each token through a feed-forward layer.
The noise level enters by adaLN-single (PixArt-alpha, arXiv 2310.00426, section 2.3): one network for the whole stack
gives six vectors per frame, and each block adds a learned table to them.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from videodiff.denoiser.attention import CrossAttention, SelfAttention

FOLD = {
    "space": "b t s d -> (b t) s d",
    "time": "b t s d -> (b s) t d",
    "spacetime": "b t s d -> b (t s) d",
}
UNFOLD = {
    "space": "(b t) s d -> b t s d",
    "time": "(b s) t d -> b t s d",
    "spacetime": "b (t s) d -> b t s d",
}


class Block(nn.Module):
    """Attention over `axes`, cross-attention to text and a feed-forward layer, each added to the token stream.

    `gate` is the value that the gates of the residual branches start from: at 0 a new block is the identity.
    """

    def __init__(self, width: int, heads: int, axes: str, mlp_ratio: float = 4.0, gate: float = 0.0) -> None:
        super().__init__()
        if axes not in FOLD:
            raise ValueError(f"model.axes: found {axes!r}, expected one of {', '.join(FOLD)}")
        self.axes = axes
        self.norm_1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.table = nn.Parameter(torch.zeros(6, width))
        nn.init.constant_(self.table[2], gate)
        nn.init.constant_(self.table[5], gate)
        nn.init.zeros_(self.cross_attention.out.weight)
        nn.init.zeros_(self.cross_attention.out.bias)

    def forward(self, x: Tensor, modulation: Tensor, text: Tensor, text_mask: Tensor, rotary: Tensor) -> Tensor:
        """Map `b t s d` to the same; `modulation` is `b t 6 d`, `rotary` the table of this block's axes."""
        b, t, s, _ = x.shape
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (self.table + modulation)[:, :, :, None].unbind(2)
        y = rearrange(torch.addcmul(shift_1, self.norm_1(x), 1 + scale_1), FOLD[self.axes])
        y = rearrange(self.attention(y, rotary), UNFOLD[self.axes], b=b, t=t, s=s)
        x = torch.addcmul(x, gate_1, y)
        y = self.cross_attention(rearrange(x, "b t s d -> b (t s) d"), text, text_mask)
        x = x + rearrange(y, "b (t s) d -> b t s d", t=t)
        y = self.mlp(torch.addcmul(shift_2, self.norm_2(x), 1 + scale_2))
        return torch.addcmul(x, gate_2, y)
