"""The FLOPs of the denoiser against those that torch counts in it, part by part, forward and backward."""

from __future__ import annotations

import copy
import re
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.distillation import ProgressiveDistillation
from videodiff.diffusion.flow_map import FlowMap
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective
from videodiff.diffusion.path import RectifiedFlow
from videodiff.parallel.recompute import recompute_blocks
from videodiff.planning.flops import Flops, Network, forward, forward_and_backward, network_of, recomputed
from videodiff.training.start import freeze

AXES = [("space", "time"), ("spacetime", "space", "time")]
CAPTIONED = (False, True)
SHAPES = [(5, 12, 16), (1, 32, 32), (16, 8, 8), (9, 4, 28)]
WORDS, WIDTH, TEXT_WIDTH, DEPTH = 7, 32, 8, 3
# The part that each module of the network belongs to; products of attention are found in no module of their own.
PARTS = {
    r"\.attention\.(qkv|out)$": "projections",
    r"\.cross_attention$": "text",
    r"\.mlp\.\d$": "mlp",
    r"\.(embed|head)$": "patches",
    r"\.(embed_tau|embed_fps|embed_text|modulate)$": "conditions",
}


def counted(axes: tuple[str, ...], shape: tuple[int, int, int], backward: bool, **recompute: object) -> FlopCounterMode:
    """Return what torch counts in one clip; the fused kernel of a CPU is not counted, plain products are."""
    frames, height, width = shape
    network = SpaceTimeTransformer(
        patch=(1, 4, 4),
        width=WIDTH,
        depth=DEPTH,
        heads=4,
        axes=axes,
        text_width=TEXT_WIDTH,
        mlp_ratio=2.6,
        captioned=CAPTIONED,
    )
    if recompute:
        recompute_blocks(network, **recompute)
    z, tau = torch.zeros(1, 3, frames, height, width), torch.zeros(1, frames)
    text, mask = torch.zeros(1, WORDS, TEXT_WIDTH), torch.ones(1, WORDS, dtype=torch.bool)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = network(z, tau, text, mask, torch.zeros(1))
        if backward:
            out.sum().backward()
    return counter


def shape_of(axes: tuple[str, ...]) -> Network:
    return network_of(WIDTH, axes, DEPTH, CAPTIONED, patch=48, words=WORDS, text_width=TEXT_WIDTH, mlp_ratio=2.6)


def tokens(shape: tuple[int, int, int]) -> tuple[int, int]:
    return shape[0], shape[1] * shape[2] // 16


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_parts_are_those_that_torch_counts_in_the_modules(axes: tuple[str, ...], shape: tuple[int, int, int]):
    found, parts = counted(axes, shape, backward=False).get_flop_counts(), Counter()
    for name, operations in found.items():
        flops = sum(operations.values())
        parts.update({part: flops for pattern, part in PARTS.items() if re.search(pattern, name)})
        if match := re.search(r"\.blocks\.(\d+)\.attention$", name):
            parts[axes[int(match[1]) % len(axes)]] += flops
            linear = (sum(found[f"{name}.{layer}"].values()) for layer in ("qkv", "out"))
            parts[axes[int(match[1]) % len(axes)]] -= sum(linear)
    expected = forward(*tokens(shape), shape_of(axes))
    assert expected == Flops(**{part: parts[part] for part in Flops._fields})
    assert expected.total == sum(found["Global"].values())
    assert expected.blocks == sum(parts[p] for p in ("projections", "space", "time", "spacetime", "text", "mlp"))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_training_step_takes_what_torch_counts_forward_and_backward(axes, shape):
    plain = counted(axes, shape, backward=True).get_total_flops()
    assert forward_and_backward(*tokens(shape), shape_of(axes)) == plain


@pytest.mark.parametrize("name", ["denoising", "flow map", "distillation"])
def test_an_objective_takes_the_passes_that_it_states(name: str) -> None:
    frames, side, clips, mapped = 4, 8, 3, name == "flow map"
    network = SpaceTimeTransformer(
        patch=(1, 4, 4), width=WIDTH, depth=2, heads=4, text_width=TEXT_WIDTH, step_rank=5 * mapped
    )
    path, levels = RectifiedFlow(), NoiseLevels()
    objective = {
        "denoising": lambda: Objective(path, levels),
        "flow map": lambda: FlowMap(path, levels),
        "distillation": lambda: ProgressiveDistillation(path, levels),
    }[name]()
    freeze(nn.ModuleDict({"denoiser": network}), (), objective.learns)
    if name == "distillation":
        objective.network = copy.deepcopy(network).requires_grad_(False)
    condition = {
        "text": torch.zeros(clips, WORDS, TEXT_WIDTH),
        "text_mask": torch.ones(clips, WORDS, dtype=torch.bool),
        "fps": torch.full((clips,), 8.0),
    }
    x = torch.randn(clips, 3, frames, side, side)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(network, x, condition, {}, seeds=[1, 2, 3]).mean().backward()
    shape = network_of(
        WIDTH,
        ("space", "time"),
        2,
        patch=48,
        words=WORDS,
        text_width=TEXT_WIDTH,
        step_rank=5 * mapped,
        forwards=objective.forwards,
        own=objective.own_steps,
    )
    assert objective.forwards == pytest.approx({"denoising": 0, "flow map": 7, "distillation": 2}[name])
    assert counter.get_total_flops() == clips * forward_and_backward(frames, side * side // 16, shape)


def test_a_flow_map_states_its_pieces_and_its_own_steps() -> None:
    for own, spread, passes in ((0.0, 0.0, 4.0), (0.5, 0.0, 5.0), (0.5, 0.5, 6.0), (0.0, 1.0, 5.0)):
        objective = FlowMap(RectifiedFlow(), NoiseLevels(), pieces=4, own=own, spread=spread)
        assert objective.forwards == passes


@pytest.mark.parametrize("how", [{"level": "full"}, {"level": "full", "every": 2}, {"level": "none"}])
def test_a_recompute_takes_what_torch_counts_beyond_the_plain_step(how):
    (axes, shape), plain = (AXES[1], SHAPES[0]), counted(AXES[1], SHAPES[0], backward=True).get_total_flops()
    more = counted(axes, shape, backward=True, **how).get_total_flops() - plain
    assert more == recomputed(*tokens(shape), shape_of(axes), **how)
