"""Attention against softmax written out, with RMS norm and rotation by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from videodiff.denoiser.attention import CrossAttention, SelfAttention
from videodiff.denoiser.position import rotary_table

WIDTH, HEADS, TOKENS = 24, 2, 5
HEAD = WIDTH // HEADS


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(module: nn.Module) -> nn.Module:
    """Give every parameter, the norms' weights too, a value of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def turned(x: Tensor, places: Tensor) -> Tensor:
    """Rotate each token (n, HEAD) to its place on one axis, pair by pair, by a matrix written out."""
    n = HEAD // 2
    angle = places[:, None] * 100.0 ** (-torch.arange(n) / (n - 1))
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(1)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weight = (q @ k.T / math.sqrt(q.shape[-1])).exp()
    return weight / weight.sum(-1, keepdim=True) @ v


def heads(x: Tensor) -> list[Tensor]:
    return list(x.split(HEAD, dim=-1))


def test_self_attention_is_softmax_over_rotated_normed_queries_and_keys() -> None:
    attention, x, places = awake(SelfAttention(WIDTH, HEADS)), randn(2, TOKENS, WIDTH), torch.arange(TOKENS) * 0.7
    made = attention(x, rotary_table(places[:, None], HEAD))
    for clip in range(2):
        q, k, v = linear(attention.qkv, x[clip]).split(WIDTH, dim=-1)
        attended = [
            softmax_attention(
                turned(normed(attention.norm_q, q), places), turned(normed(attention.norm_k, k), places), v
            )
            for q, k, v in zip(heads(q), heads(k), heads(v), strict=True)
        ]
        torch.testing.assert_close(made[clip], linear(attention.out, torch.cat(attended, -1)), rtol=0, atol=1e-5)


def test_cross_attention_is_softmax_over_the_words_alone() -> None:
    attention, x = awake(CrossAttention(WIDTH, HEADS)), randn(2, TOKENS, WIDTH)
    text, mask = randn(2, 4, WIDTH, seed=2), torch.tensor([[True, True, True, False], [True, False, False, False]])
    made = attention(x, text, mask)
    for clip in range(2):
        q, (k, v) = linear(attention.q, x[clip]), linear(attention.kv, text[clip, mask[clip]]).split(WIDTH, dim=-1)
        attended = [
            softmax_attention(normed(attention.norm_q, q), normed(attention.norm_k, k), v)
            for q, k, v in zip(heads(q), heads(k), heads(v), strict=True)
        ]
        torch.testing.assert_close(made[clip], linear(attention.out, torch.cat(attended, -1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_self_attention_sees_differences_of_places_alone(axes: int) -> None:
    attention, x, places = awake(SelfAttention(WIDTH, HEADS)), randn(1, TOKENS, WIDTH), randn(TOKENS, axes, seed=3)
    here, moved, stretched = (attention(x, rotary_table(at, HEAD)) for at in (places, places + 3.0, places * 2.0))
    torch.testing.assert_close(here, moved, rtol=0, atol=1e-5)
    assert (here - stretched).abs().max() > 1e-3
