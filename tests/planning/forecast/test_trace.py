"""What is traced without numbers is what a pass with numbers does: its FLOPs, its operations and its memory."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from videodiff.denoiser.target import targeting
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.flow_map import FlowMap
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.path import RectifiedFlow
from videodiff.parallel.recompute import recompute_blocks
from videodiff.planning.flops import forward_and_backward, network_of, recomputed
from videodiff.planning.forecast.faults import BYTES_OF_AVERAGE, BYTES_OF_STATE
from videodiff.planning.forecast.grown import traced
from videodiff.planning.forecast.trace import Passes, Watching, halve, norms_by_one_kernel, passes
from videodiff.training.start import freeze

WIDTH, FRAMES, SIDE, WORDS = 32, 4, 8, 5
LEARNS = FlowMap(RectifiedFlow(), NoiseLevels()).learns


def loss_of(network: nn.Module, clips: int) -> Tensor:
    """Return a loss of a network of this file, of fake or of real clips; with weights for steps they take one."""
    rho = {} if network.embed_step is None else {"rho": torch.zeros(clips, FRAMES)}
    given = rho | {
        "z": torch.ones(clips, 3, FRAMES, SIDE, SIDE),
        "tau": torch.ones(clips, FRAMES),
        "text": torch.ones(clips, WORDS, 16),
        "text_mask": torch.ones(clips, WORDS, dtype=torch.bool),
        "fps": torch.ones(clips),
    }
    return network(**given).square().mean()


def make(level: str = "none", half: bool = False, rank: int = 0, frozen: int = 0):
    """Return what makes a network of so many blocks, the first of them frozen, and its loss.

    With a rank only changes for steps learn.
    """

    def made(blocks: int):
        sizes = {"width": WIDTH, "depth": blocks, "heads": 2, "text_width": 16, "step_rank": rank}
        network = SpaceTimeTransformer(patch=(1, 2, 2), **sizes)
        patterns = [f"denoiser.blocks.{number}.*" for number in range(frozen)]
        freeze(nn.ModuleDict({"denoiser": network}), patterns, LEARNS if rank else bool)
        if half:
            halve(network)
        recompute_blocks(network, level)
        return network, lambda clips: loss_of(network, clips)

    return made


class Chain(nn.Module):
    """Two layers and a loss, all of whose memory can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 256, bias=False), nn.Linear(256, 8, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](torch.sigmoid(self.blocks[0](x)))


def test_a_chain_of_two_layers_holds_what_a_hand_counts() -> None:
    def chain(_: int):
        network = Chain()
        return network, lambda clips: network(torch.ones(clips, 64)).sum()

    found, rows = passes(chain, 2, 1000), 1000
    # At the sum: the input, the first layer's output (gone), the sigmoid's, the second one's, and the sum.
    after_forward = 4 * (rows * 64 + rows * 256 + rows * 8 + 1)
    assert after_forward in found.others + found.fixed
    assert found.gradients[-1] == 4 * (64 * 256 + 256 * 8)
    products = 2 * rows * (64 * 256 + 256 * 8)
    # The input has no gradient.
    assert found.flops.sum() == products + products + 2 * rows * 256 * 8
    # Both weights are so small that ZeRO 3 keeps them whole. A step of Muon takes five times three products, on the
    # shorter side: of 64 x 64 x 256 twice and 64 x 64 x 64, and of 8 x 8 x 256 twice and 8 x 8 x 8.
    products = 5 * 2 * (2 * 64 * 64 * 256 + 64**3 + 2 * 8 * 8 * 256 + 8**3)
    both = 64 * 256 + 256 * 8
    assert found.weights == (both, both, 64 * 256, 2, both, products, 64, 0)


@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("level", ["none", "selective", "full"])
def test_a_trace_has_the_flops_that_the_formulas_have(level: str, rank: int) -> None:
    found = passes(make(level, rank=rank), 2, 2)
    network = network_of(WIDTH, ("space", "time"), 2, patch=12, words=WORDS, text_width=16, step_rank=rank)
    space = SIDE * SIDE // 4
    wanted = forward_and_backward(FRAMES, space, network) + recomputed(FRAMES, space, network, level)
    assert found.flops.sum() == pytest.approx(2 * wanted, rel=0.002)


def test_weights_that_do_not_learn_are_counted_apart() -> None:
    found = passes(make(rank=5), 3, 2).weights
    # The embedding of the step, and in each block three layers down to the rank and up from it, with a bias.
    embedding = 256 * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH
    matrices = 5 * (4 * WIDTH + 2 * 5 * WIDTH)
    assert (found.all, found.matrices) == (embedding + 3 * (matrices + 8 * WIDTH), 3 * matrices)
    assert found.frozen == passes(make(), 3, 2).weights.all
    # The weight, and in the file of averages the weight again; else there are two moments and the average in the state.
    assert found.saved * (BYTES_OF_STATE + BYTES_OF_AVERAGE) == pytest.approx(20 * found.all + 8 * found.frozen, abs=20)


@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("level", ["none", "selective", "full"])
def test_a_trace_holds_to_the_byte_what_the_allocator_gives_a_real_pass(level: str, rank: int) -> None:
    network, loss = make(level, rank=rank)(2)
    # What earlier tests left in cycles must not be freed in the meantime.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss(3).backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    found = passes(make(level, rank=rank), 2, 3)
    assert (found.others + found.fixed + found.gradients).max() == alive.max()
    assert found.gradients[-1] == alive[-1] == sum(4 * p.numel() for p in network.parameters() if p.requires_grad)


def test_a_trace_has_the_operations_of_the_real_pass() -> None:
    with Watching() as seen:
        loss_of(make()(2)[0], 3).backward()
    found = passes(make(), 2, 3)
    # What makes the network stands first, and the end last.
    assert [kind.name for kind in seen.kinds][-len(found.kinds) + 1 :] == [kind.name for kind in found.kinds[:-1]]


@pytest.mark.parametrize("frozen", [0, 3])
@pytest.mark.parametrize("level", ["none", "selective", "full"])
def test_a_deep_network_is_as_its_first_blocks_say(level: str, frozen: int) -> None:
    made = make(level, frozen=frozen)
    deep, grown = passes(made, 9, 5), traced(made, 2, 9, frozen)
    assert grown.blocks[1] < 9
    assert grown.weights == deep.weights
    for share in (0.0, 0.25, 1.0):
        # The peak moves with the depth.
        assert grown.peak(5, share) == pytest.approx(deep.peaks(share).max(), rel=0.04)


@pytest.mark.parametrize("level", ["none", "selective", "full"])
@pytest.mark.parametrize("halved", [False, True])
def test_what_belongs_to_weights_does_not_grow_with_the_clips(level: str, halved: bool) -> None:
    # Pictures of four patches: the copies are larger than what a clip keeps.
    def pictures(blocks: int):
        network = SpaceTimeTransformer(patch=(1, 2, 2), width=256, depth=blocks, heads=4, text_width=16)
        if halved:
            halve(network)
        recompute_blocks(network, level)

        def loss(clips: int) -> Tensor:
            given = {"z": torch.ones(clips, 3, 1, 4, 4), "tau": torch.ones(clips, 1), "fps": torch.ones(clips)}
            given |= {"text": torch.ones(clips, 3, 16), "text_mask": torch.ones(clips, 3, dtype=torch.bool)}
            with torch.autocast("cpu", torch.bfloat16, enabled=not halved):
                return network(**given).square().mean()

        return network, loss

    planned = traced(pictures, 2, 2)
    for clips in (2, 16, 64):
        wanted = passes(pictures, 2, clips)
        assert planned.peak(clips, 0.0) == pytest.approx(wanted.peaks(0.0).max(), rel=1e-3)
        # What an operation reads and writes of weights does not grow either.
        grows = planned.few.traffic - planned.few.still
        found = (grows * clips / planned.clips + planned.few.still).sum()
        assert found == pytest.approx(wanted.traffic.sum(), rel=1e-3)


def test_recompute_and_16_bits_take_less() -> None:
    none, selective, full = (passes(make(level), 2, 2) for level in ("none", "selective", "full"))
    assert full.peaks(0).max() < selective.peaks(0).max() < none.peaks(0).max()
    assert passes(make(half=True), 2, 2).peaks(0).max() < 0.7 * none.peaks(0).max()


def test_a_trace_for_a_gpu_has_the_operations_of_a_gpu() -> None:
    def count(found: Passes, name: str) -> int:
        return sum(kind.name == name for kind in found.kinds)

    here = passes(make(), 2, 2)
    with targeting("cuda"):
        apart = passes(make(), 2, 2)
        with norms_by_one_kernel():
            there = passes(make(), 2, 2)
    # Two blocks attend to themselves and to the text by torch's kernel, where the CPU takes small products.
    attend = "_scaled_dot_product_flash_attention_for_cpu"
    assert [count(found, attend) for found in (here, there)] == [0, 4]
    # Each of these attentions norms its queries and its keys, by the root of a mean.
    assert [count(found, "rsqrt") for found in (apart, there)] == [8, 0]
    assert there.traffic.sum() < 0.95 * apart.traffic.sum()
    assert passes(make(), 2, 2).kinds == here.kinds


@pytest.mark.parametrize(("frames", "side"), [(1, 4), (2, 2), (1, 2)])
def test_attention_of_one_token_is_traced_for_a_gpu(frames: int, side: int) -> None:
    # A picture has one token over time, and a clip of one patch one over space.
    def loss(clips: int) -> Tensor:
        given = {"z": torch.ones(clips, 3, frames, side, side), "tau": torch.ones(clips, frames)}
        given |= {"text": torch.ones(clips, 1, 16), "text_mask": torch.ones(clips, 1, dtype=torch.bool)}
        return network(**given, fps=torch.ones(clips)).square().mean()

    network = SpaceTimeTransformer(patch=(1, 2, 2), width=WIDTH, depth=2, heads=2, text_width=16)
    with targeting("cuda"):
        found = passes(lambda _: (network, loss), 2, 2)
    widths = {kind.width for kind in found.kinds if "scaled_dot_product" in kind.name}
    # Over space, over time, and to the one word.
    assert widths == {side * side // 4, frames, 1}


@pytest.mark.parametrize("level", ["selective", "full"])
def test_recompute_for_a_gpu_repeats_the_operations_of_a_gpu(level: str) -> None:
    with targeting("cuda"), norms_by_one_kernel():
        found = passes(make(level), 2, 2)
    assert all(kind.name != "rsqrt" for kind in found.kinds)
