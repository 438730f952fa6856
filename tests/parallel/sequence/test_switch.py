"""Processes that share a clip give the numbers of one process, send what the formula says, and hold half of the memory.

Four processes do everything once, in groups of two and of four; the tests look at what they found.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.sequence import Asked, Counted, clips, memory, network, sent, step, together
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.path import RectifiedFlow
from videodiff.diffusion.sampler import heun
from videodiff.generation.settings import Generation, Network, nothing_given
from videodiff.parallel.compile import compile_blocks
from videodiff.parallel.recompute import recompute_blocks
from videodiff.parallel.sequence.group import SequenceGroup, shares
from videodiff.parallel.sequence.switch import share_with
from videodiff.planning.forecast.traffic import of_tokens


class Case(NamedTuple):
    """A network and clips: its kinds of block, heads, frames, rows and columns of pixels, and frames of a patch."""

    axes: tuple[str, ...]
    heads: int
    t: int
    h: int
    w: int
    pt: int = 1
    recompute: str = "none"
    steps: bool = False
    captioned: tuple[bool, ...] = (True,)
    padding: str = "masked"


ALL = ("space", "time", "spacetime")
CASES = {
    "all divide": Case(("space", "time"), 4, 8, 16, 16),
    "nothing divides": Case(ALL, 3, 7, 12, 12),
    "a picture": Case(ALL, 1, 1, 8, 12),
    "begins over time": Case(("time", "spacetime", "space"), 3, 5, 8, 8),
    "one position": Case(("spacetime", "time"), 2, 3, 4, 4),
    "patches of two frames": Case(ALL, 2, 6, 8, 8, pt=2),
    "recomputed": Case(ALL, 3, 3, 8, 8, recompute="full"),
    "told where a step ends": Case(ALL, 3, 5, 8, 8, recompute="full", steps=True),
    "a block without the caption": Case(ALL, 3, 5, 8, 8, captioned=(True, False)),
    "learned padding": Case(ALL, 3, 5, 8, 8, padding="learned"),
}
SMALL = Asked(width=16, depth=6, frames=8, side=16)
LARGE = Asked(width=128, depth=4, frames=16, side=32)


def built(case: Case) -> SpaceTimeTransformer:
    """Return the network of a case, the same each time."""
    made = SpaceTimeTransformer(
        patch=(case.pt, 4, 4),
        width=24,
        depth=3,
        heads=case.heads,
        axes=case.axes,
        text_width=8,
        step_rank=4 * case.steps,
        captioned=case.captioned,
        padding=case.padding,
    )
    torch.manual_seed(0)
    for p in made.parameters():
        nn.init.normal_(p, std=0.1)
    return made


def given(case: Case) -> dict[str, Tensor]:
    """Return two clips with captions of different lengths."""
    torch.manual_seed(1)
    told = {"rho": torch.zeros(2, case.t)} if case.steps else {}
    return told | {
        "z": torch.randn(2, 3, case.t, case.h, case.w),
        "tau": torch.rand(2, case.t),
        "text": torch.randn(2, 5, 8),
        "text_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool),
        "fps": torch.tensor([8.0, 0.0]),
    }


def compared(case: Case, group: SequenceGroup) -> dict[str, Any]:
    """Return how far output and gradients lie from those of one process, in parts of them, and the collectives."""
    alone, shared = built(case), built(case)
    names = list(shared.state_dict())
    recompute_blocks(shared, case.recompute)
    share_with(shared, group)
    # What a process draws for itself must not matter.
    wanted, parts = step(alone, given(case)), given(case)
    torch.manual_seed(dist.get_rank())
    with Counted() as counted:
        found = step(shared, parts)
    apart = {"output": ((found - wanted).norm() / wanted.norm()).item()}
    for (name, p), q in zip(alone.named_parameters(), shared.named_parameters(), strict=True):
        mean = q[1].grad.clone()
        dist.all_reduce(mean)
        scale = max(p.grad.norm().item(), 1e-4)
        apart[name] = ((mean / dist.get_world_size() - p.grad).norm() / scale).item()
    return {"apart": apart, "collectives": len(counted.bytes), "names": names == list(shared.state_dict())}


def sampled(denoiser: SpaceTimeTransformer, apart: bool) -> Tensor:
    """Return two clips, of which one knows a frame, in which the first frame leads, apart or beside the others."""
    inputs = given(CASES["nothing divides"])
    condition = {name: inputs[name] for name in ("text", "text_mask", "fps")}
    null = {"text": torch.zeros(1, 1, 8), "text_mask": torch.ones(1, 1, dtype=torch.bool)}
    noise, how = inputs["z"], Generation(heun, steps=2, scale=2.0, lead=1, apart=apart)
    known = torch.zeros(2, noise.shape[2], dtype=torch.bool)
    known[1, 3] = True
    network = Network(denoiser, condition, null, RectifiedFlow(), "v")
    return how(network, noise, nothing_given(noise)._replace(known=known))


def sampled_as_alone(group: SequenceGroup) -> dict[bool, float]:
    """Return how far clips of processes that share them lie from those of one process, in parts of them."""
    alone, shared = built(CASES["nothing divides"]), built(CASES["nothing divides"])
    share_with(shared, group)
    wanted, found = ({apart: sampled(one, apart) for apart in (False, True)} for one in (alone, shared))
    return {apart: ((found[apart] - one).norm() / one.norm()).item() for apart, one in wanted.items()}


def batch_of(rank: int) -> dict[str, Any]:
    """Return a batch that tells which rank read it, of every type that a batch holds."""
    return {
        "step": rank,
        "key": [f"clip {rank}"],
        "position": torch.tensor([rank]),
        "video": torch.full((1, 2, 2, 4, 3), rank, dtype=torch.uint8).permute(0, 4, 1, 2, 3),
        "latent": torch.full((1, 4), rank + 0.5),
        "text_mask": torch.tensor([[rank % 2 == 0]]),
    }


def plain(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch as plain values."""
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in batch.items()}


def everything(four: SequenceGroup, _: Any) -> dict[str, Any]:
    """Do everything on one of four processes."""
    torch.set_num_threads(1)
    two, rank = SequenceGroup(2), dist.get_rank()
    two.join()
    found: dict[str, Any] = {"shares": {}, "compared": {}, "sampled": {}}
    for group in (two, four):
        own = batch_of(rank) if group.place == 0 else {}
        found["shares"][group.size] = plain(group.share(own, torch.device("cpu")))
        for name, case in CASES.items():
            found["compared"][group.size, name] = compared(case, group)
        found["sampled"][group.size] = sampled_as_alone(group)
    found["sent"] = sent(two, SMALL)
    found["memory"] = [memory(group, LARGE) for group in (SequenceGroup(1), two)]
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What each of four processes found."""
    return together(4, everything, None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_output_and_mean_gradient_are_those_of_one_process(found: list[dict[str, Any]], size: int, name: str) -> None:
    for rank in found:
        one = rank["compared"][size, name]
        assert one["names"], "the names in checkpoints stay"
        worst = max(one["apart"], key=one["apart"].get)
        assert one["apart"][worst] < 1e-4, worst


@pytest.mark.parametrize("name", CASES)
def test_all_processes_enter_the_same_collectives_also_with_an_empty_share(
    found: list[dict[str, Any]], name: str
) -> None:
    """A process that left one out, forward or backward, would be answered with what belongs to another one."""
    for size in (2, 4):
        assert len({rank["compared"][size, name]["collectives"] for rank in found}) == 1


@pytest.mark.parametrize("size", [2, 4])
def test_sampled_clips_are_those_of_one_process_also_where_a_frame_leads_apart(
    found: list[dict[str, Any]], size: int
) -> None:
    for rank in found:
        assert max(rank["sampled"][size].values()) < 1e-4


def test_a_group_has_the_batch_of_its_first_rank(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        for size in (2, 4):
            assert one["shares"][size] == plain(batch_of(rank // size * size))


def test_a_step_sends_what_the_formula_says_and_at_most_half_of_ulysses(found: list[dict[str, Any]]) -> None:
    tokens = SMALL.frames * (SMALL.side // 4) ** 2
    held = tokens * SMALL.width * 4 // 2
    # Of the output each process hands its half to both; backward comes the gradient of the whole of it from each.
    output = 2 * tokens * 48 * 4
    kinds = [SMALL.axes[i % 2] for i in range(SMALL.depth)]
    switches = sum(one != next_ for one, next_ in pairwise(kinds))
    over_time = kinds.count("time")
    for rank in found:
        switched, by_heads = rank["sent"]
        # Once forward and once backward; Ulysses moves queries, keys and values, and what came of them.
        assert switched == 2 * switches * held + output
        # Of what a collective is given a process keeps its own half: that is what the planner does not count.
        assert switched == 2 * of_tokens(kinds, tokens, SMALL.width, 48, 2, 4).tokens
        assert by_heads == 2 * 4 * over_time * held + output
        assert switched - output <= (by_heads - output) / 2


def test_two_processes_hold_about_half_of_the_activations_each(found: list[dict[str, Any]]) -> None:
    alone, shared = (max(rank["memory"][i] for rank in found) for i in (0, 1))
    assert alone > 40 * 2**20
    assert shared <= 0.6 * alone


def test_shared_blocks_compile_whole_under_the_same_names() -> None:
    """With a group of one: what is compiled is the same for any size."""
    case, group = Case(("spacetime",), 3, 3, 8, 8), SequenceGroup(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group.group = dist.group.WORLD
        alone, shared = built(case), built(case)
        compile_blocks(shared, backend="aot_eager")
        share_with(shared, group)
        torch.testing.assert_close(step(shared, given(case)), step(alone, given(case)), rtol=1e-4, atol=1e-5)
    finally:
        dist.destroy_process_group()
        torch._dynamo.reset()
    for p, q in zip(shared.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)
    assert list(shared.state_dict()) == list(alone.state_dict())


@pytest.mark.parametrize(("count", "parts", "wanted"), [(7, 2, [4, 3]), (1, 4, [1, 0, 0, 0]), (8, 4, [2] * 4)])
def test_shares_are_as_even_as_can_be(count: int, parts: int, wanted: list[int]) -> None:
    assert shares(count, parts) == wanted


def test_a_network_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="found 2 with the model Linear, expected 1"):
        share_with(nn.Linear(2, 2), SequenceGroup(2))


def test_the_clips_of_the_measurement_reach_every_weight() -> None:
    denoiser = network(SMALL)
    step(denoiser, clips(SMALL))
    assert all(p.grad.abs().max() > 0 for p in denoiser.parameters())
