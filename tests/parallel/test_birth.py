"""A network that is born without memory gets the weights of one that was built whole, to the bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel import birth
from videodiff.parallel.birth import empty_like, fill, is_unborn, unborn


class Odd(nn.Module):
    """Weights that are made and filled in unusual order: drawn twice, in parts, shared, constant, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.empty(4, dtype=torch.int16).random_(7))
        self.wait = nn.Parameter(torch.empty(2, 3).exponential_(2.0))
        self.heads = nn.Parameter(torch.empty(5).bernoulli_(0.4))
        self.a = nn.Parameter(torch.full((3, 4), 2.0))
        self.b = nn.Linear(5, 7)
        nn.init.uniform_(self.a)
        nn.init.normal_(self.b.weight[2])
        self.c = nn.Linear(7, 5)
        nn.init.uniform_(self.b.bias)
        nn.init.constant_(self.c.bias, 0.5)
        self.c.weight.data.mul_(2)
        self.same = self.c
        self.register_buffer("m", torch.ones(3))
        self.register_buffer("none", torch.empty(0, 3))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def built(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return make().state_dict()


@pytest.mark.parametrize("make", [lambda: SpaceTimeTransformer(depth=3, gate=0.3), Odd])
def test_the_weights_are_those_of_a_network_that_is_built_whole(make: Callable[[], nn.Module]) -> None:
    wanted = built(make)
    torch.manual_seed(5)
    network = unborn(make)
    assert is_unborn(network)
    assert all(t.is_meta for t in network.state_dict().values())
    assert list(network.state_dict()) == list(wanted)
    whole = make()
    assert [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in whole.parameters()]
    # What is drawn meanwhile changes nothing, and what comes after is as it was.
    torch.manual_seed(99)
    after = torch.rand(3)
    torch.manual_seed(99)
    for owner, name, values in fill(network):
        given = owner._parameters.get(name)
        if given is not None:
            owner._parameters[name] = nn.Parameter(values.clone(), given.requires_grad)
        else:
            owner._buffers[name] = values.clone()
    assert torch.equal(torch.rand(3), after)
    assert not is_unborn(network)
    found = network.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_module_that_took_the_place_of_another_gets_the_weights() -> None:
    network = unborn(Odd)
    old = network.b
    network.b = nn.Linear(5, 7, device="meta")
    owners = [owner for owner, _, _ in fill(network)]
    assert sum(owner is network.b for owner in owners) == 2
    assert not any(owner is old for owner in owners)


def test_one_weight_at_a_time_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []

    def watched(like: Tensor) -> Tensor:
        memory = empty_like(like)
        made.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(birth, "empty_like", watched)
    network = unborn(lambda: SpaceTimeTransformer(depth=2))
    for _ in fill(network):
        assert sum(memory() is not None for memory in made) == 1
    assert len(made) >= len(list(network.parameters()))


def orthogonal() -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.init.orthogonal_(layer.weight)
    return layer


def truncated() -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.init.trunc_normal_(layer.weight)
    return layer


def copied() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight.data.copy_(torch.eye(4))
    return layer


def of_its_own_generator() -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    return layer


@pytest.mark.parametrize("make", [orthogonal, truncated, copied, of_its_own_generator])
def test_what_cannot_be_done_a_weight_at_a_time_is_refused_and_not_left_out(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(TypeError, match="expected weights that are made empty or constant and filled in place") as told:
        unborn(make)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("rows", [slice(None), slice(1)])
def test_weights_that_share_their_memory_are_refused_and_not_parted(rows: slice) -> None:
    def tied() -> nn.Module:
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        network[1].weight = network[0].weight if rows == slice(None) else nn.Parameter(network[0].weight[rows])
        return network

    with pytest.raises(TypeError, match=r"found the weights 0\.weight and 1\.weight in one memory, expected one each"):
        unborn(tied)
