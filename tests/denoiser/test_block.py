"""One block: what it mixes, what it leaves alone, and what a new one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from videodiff.denoiser.attention import SPLIT
from videodiff.denoiser.block import Block
from videodiff.denoiser.modulation import weighted
from videodiff.denoiser.position import frame_coordinates, patch_coordinates, rotary_table
from videodiff.denoiser.target import targeting

B, T, S, WIDTH, HEADS = 2, 3, 4, 24, 2
each_axes = pytest.mark.parametrize("axes", SPLIT)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotary(axes: str, t: int = T) -> Tensor:
    time, space = frame_coordinates(t)[:, None], patch_coordinates(2, 2)
    both = torch.cat([time.repeat_interleave(S, 0), space.repeat(t, 1)], dim=-1)
    return rotary_table({"time": time, "space": space, "spacetime": both}[axes], WIDTH // HEADS)


def run(block: Block, x: Tensor, modulation: Tensor | None = None, text: Tensor | None = None) -> Tensor:
    b, t = x.shape[:2]
    modulation = torch.zeros(b, t, 6, WIDTH) if modulation is None else modulation
    text = randn(b, 5, WIDTH, seed=9) if text is None else text
    return block(x, modulation, text, torch.ones(text.shape[:2], dtype=torch.bool), rotary(block.axes, t))


def awake(block: Block) -> Block:
    """Perturb every parameter, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return block


@each_axes
def test_a_new_block_is_the_identity_to_the_bit(axes: str) -> None:
    x = randn(B, T, S, WIDTH)
    assert torch.equal(run(Block(WIDTH, HEADS, axes), x), x)


@each_axes
def test_a_new_block_adds_what_its_gates_let_through(axes: str) -> None:
    block, x = Block(WIDTH, HEADS, axes, gate=0.5), randn(B, T, S, WIDTH)
    expected = x + 0.5 * block.attention(nn.functional.layer_norm(x, (WIDTH,), eps=1e-6), rotary(axes))
    expected = expected + 0.5 * block.mlp(nn.functional.layer_norm(expected, (WIDTH,), eps=1e-6))
    torch.testing.assert_close(run(block, x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "frames", "places"), [("space", [1], range(S)), ("time", range(T), [2]), ("spacetime", range(T), range(S))]
)
def test_a_token_reaches_those_that_share_its_axes_and_no_other(axes: str, frames: object, places: object) -> None:
    block, x = awake(Block(WIDTH, HEADS, axes)), randn(1, T, S, WIDTH)
    moved = x.clone()
    moved[0, 1, 2] += randn(WIDTH, seed=4)
    changed = (run(block, moved) != run(block, x)).any(-1)[0]
    wanted = torch.zeros(T, S, dtype=torch.bool)
    wanted[torch.tensor(frames)[:, None], torch.tensor(places)] = True
    assert torch.equal(changed, wanted)


@each_axes
def test_a_block_modulates_attends_reads_and_thinks_in_turn(axes: str) -> None:
    block, x, text = awake(Block(WIDTH, HEADS, axes)), randn(1, 1, S, WIDTH), randn(1, 5, WIDTH, seed=9)
    modulation = randn(1, 1, 6, WIDTH, seed=3)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (block.table + modulation[0, 0]).detach()
    mask = torch.ones(1, 5, dtype=torch.bool)
    y = nn.functional.layer_norm(x[:, 0], (WIDTH,), eps=1e-6) * (1 + scale_1) + shift_1
    expected = x[:, 0] + gate_1 * block.attention(y[:, None], rotary(axes, 1))[:, 0]
    expected = expected + block.cross_attention(expected[:, None], text, mask)[:, 0]
    y = nn.functional.layer_norm(expected, (WIDTH,), eps=1e-6) * (1 + scale_2) + shift_2
    expected = expected + gate_2 * block.mlp(y)
    torch.testing.assert_close(run(block, x, modulation, text)[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("of_frame", [False, True])
@pytest.mark.parametrize("s", [1, S])
def test_a_weighted_sum_has_the_derivatives_of_torch(s: int, of_frame: bool, autocast: bool) -> None:
    parts = [randn(B, T, 1 if of_frame else s, WIDTH), randn(B, T, s, WIDTH, seed=1), randn(B, T, 1, WIDTH, seed=2)]
    if autocast:
        parts[1] = parts[1].bfloat16()
    parts = [part.requires_grad_() for part in parts]
    found = []
    for device in ("cpu", "cuda"):
        with targeting(device), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            made = weighted(*parts)
        found.append([made, *torch.autograd.grad(made, parts, randn(*made.shape, seed=3).to(made.dtype))])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


@each_axes
def test_a_block_works_on_one_frame(axes: str) -> None:
    block, x = awake(Block(WIDTH, HEADS, axes)), randn(B, 1, S, WIDTH).requires_grad_()
    made = run(block, x)
    made.square().sum().backward()
    assert made.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_unknown_axes_are_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"model\.axes: found 'width', expected one of space, time, spacetime"):
        Block(WIDTH, HEADS, "width")
