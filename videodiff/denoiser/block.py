"""One block of the factorized space-time transformer.

Tokens are `b t s d`: frames by positions. A block attends over one of the axes, over space within a frame, over time
at a position, or over both together, then looks at the caption, if it is one of the blocks that do, then passes each
token through a feed-forward layer. The noise level enters by adaLN-single (PixArt-alpha, arXiv 2310.00426, section
2.3): one network for the whole stack gives six vectors per frame, and each block adds a learned table to them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videodiff.denoiser.attention import SPLIT, CrossAttention, SelfAttention
from videodiff.denoiser.change import Changes, changed
from videodiff.denoiser.linear import Linear
from videodiff.denoiser.modulation import Norm, weighted

# The changes where none are taken: of queries, keys and values, of the layer up, and of the layer down.
UNCHANGED = (None, None, None)


class Block(nn.Module):
    """Attention over `axes`, cross-attention to text and a feed-forward layer, each added to the token stream.

    `gate` is the value that the gates of the residual branches start from: at 0 a new block is the identity. A block
    that is not `captioned` has no cross-attention. `step_rank` is that of its changes on a step of a flow map; 0: none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        axes: str,
        mlp_ratio: float = 4.0,
        gate: float = 0.0,
        captioned: bool = True,
        step_rank: int = 0,
    ) -> None:
        super().__init__()
        if axes not in SPLIT:
            raise ValueError(f"model.axes: found {axes!r}, expected one of {', '.join(SPLIT)}")
        self.axes = axes
        self.norm_1 = Norm(width)
        self.attention = SelfAttention(width, heads, axes)
        self.cross_attention = CrossAttention(width, heads) if captioned else None
        self.norm_2 = Norm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(Linear(width, hidden), nn.GELU(), Linear(hidden, width))
        self.step = Changes(width, hidden, step_rank) if step_rank else None
        self.table = nn.Parameter(torch.zeros(6, width))
        nn.init.constant_(self.table[2], gate)
        nn.init.constant_(self.table[5], gate)
        if captioned:
            nn.init.zeros_(self.cross_attention.out.weight)
            nn.init.zeros_(self.cross_attention.out.bias)

    def forward(
        self, x: Tensor, modulation: Tensor, text: Tensor, text_mask: Tensor | None, rotary: Tensor, step: bool = False
    ) -> Tensor:
        """Map `b t s d` to the same.

        `modulation` is `b t 6 d`, `rotary` the table of this block's axes; `step`: take the changes for a step.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (self.table + modulation)[:, :, :, None].unbind(2)
        of_qkv, of_up, of_down = self.step.values() if step else UNCHANGED
        y = self.attention(weighted(shift_1, self.norm_1(x), 1 + scale_1), rotary, of_qkv)
        x = weighted(x, y, gate_1)
        if self.cross_attention is not None:
            x = x + self.cross_attention(x, text, text_mask)
        up, gelu, down = self.mlp
        y = gelu(changed(up, of_up, weighted(shift_2, self.norm_2(x), 1 + scale_2)))
        return weighted(x, changed(down, of_down, y), gate_2)
