"""The peer: diffusers' `LatteTransformer3DModel`, of the same width, heads and number of blocks as our network."""

from __future__ import annotations

from torch import nn


def build_latte(
    width: int, heads: int, blocks: int, channels: int, side: int, patch: int, frames: int, text_width: int
) -> nn.Module:
    """Return Latte with half of its blocks over space and half over time, for clips of `frames` x `side` x `side`."""
    import diffusers

    return diffusers.LatteTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=blocks // 2,
        cross_attention_dim=width,
        attention_bias=True,
        sample_size=side,
        patch_size=patch,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=text_width,
        video_length=frames,
    ).train()
