"""A network that is born without memory and gets the weights that it would have had, one tensor at a time.

Under ZeRO 3 and FSDP2 no process should hold the whole network, not even at the beginning. So its constructor runs on
the meta device, and what it does to its weights is written down: which numbers are drawn, and what becomes of them.
When the processes know each other, each draws the numbers in the same order, a weight at a time, and keeps its part.
The weights are those of a network that was built whole with the same seed, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
# Operations that make a tensor, and what they fill it with, given their arguments.
MADE: dict[Any, Callable[[Any], Any]] = {
    aten.empty.memory_format: lambda given: None,
    aten.zeros.default: lambda given: 0,
    aten.ones.default: lambda given: 1,
    aten.full.default: lambda given: given[1],
}
DRAWN = {aten.uniform_.default, aten.normal_.default, aten.bernoulli_.float, aten.random_.default}
# Where a network that was born so keeps the record.
RECORD = "_birth"


class Act(NamedTuple):
    """An operation in place on a view of a tensor."""

    operation: Any
    view: tuple[tuple[int, ...], tuple[int, ...], int]
    given: tuple[Any, ...]

    def do(self, memory: Tensor) -> None:
        """Do it to the memory of the tensor."""
        self.operation(memory.as_strided(*self.view), *self.given)

    @property
    def draws(self) -> bool:
        """Tell whether it moves on the generator of random numbers."""
        return self.operation in DRAWN


class Home(NamedTuple):
    """A weight or a buffer of a network: whose it is, what it is called there, and where its values lie."""

    module: nn.Module
    name: str
    place: int
    view: tuple[tuple[int, ...], tuple[int, ...], int]


class Birth(TorchDispatchMode):
    """The record of what is done to the tensors that are made, without memory, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        # Kept, so that no other tensor takes the place of one that is forgotten.
        self.made: dict[int, Tensor] = {}
        self.acts: dict[int, list[Act]] = {}
        self.order: list[int] = []
        self.random = torch.get_rng_state()
        self.homes: list[Home] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        if operation in MADE:
            self.made[place(made)], self.acts[place(made)] = made, []
            if (value := MADE[operation](args)) is not None:
                self.write_down(aten.fill_.Scalar, made, value)
        elif operation._schema.is_mutable:
            if (
                any(isinstance(value, Tensor) for value in tree_iter((args[1:], kwargs)))
                or place(args[0]) not in self.acts
            ):
                raise unknown(operation)
            self.write_down(operation, *args)
        elif any(isinstance(t, Tensor) and place(t) not in self.acts for t in tree_iter(made)):
            raise unknown(operation)
        return made

    def write_down(self, operation: Any, t: Tensor, *given: Any) -> None:
        """Write down an operation in place."""
        act = Act(operation, view_of(t), given)
        self.acts[place(t)].append(act)
        if act.draws:
            self.order.append(place(t))

    def tensors(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the memory of each tensor, filled, one at a time, in the order in which their numbers are drawn."""
        left = {key: list(acts) for key, acts in self.acts.items()}
        begun: dict[int, Tensor] = {}
        drawn = set(self.order)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            for key in [*self.order, *(key for key in self.acts if key not in drawn)]:
                memory = begun.pop(key) if key in begun else empty_like(self.made[key])
                draws = 0
                # Up to its next draw, which may have to wait for another tensor's.
                while left[key] and (draws := draws + left[key][0].draws) < 2:
                    left[key].pop(0).do(memory)
                if left[key]:
                    begun[key] = memory
                else:
                    yield key, memory


def empty_like(made: Tensor) -> Tensor:
    """Return memory for a tensor of the meta device, flat, on the host."""
    return torch.empty(made.untyped_storage().nbytes() // made.element_size(), dtype=made.dtype)


def place(t: Tensor) -> int:
    """Return what tells the memory of a tensor from any other."""
    return t.untyped_storage()._cdata


def unknown(operation: Any) -> TypeError:
    """Return the error of an operation that cannot be done later, a tensor at a time."""
    return TypeError(
        f"model: found {operation} in the constructor of the network, expected weights that are made empty or constant "
        "and filled in place; under ZeRO 3 and FSDP2 a network is born without memory, so choose zero2 or ddp for it"
    )


def view_of(t: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return shape, strides and offset of a tensor in its memory."""
    return tuple(t.shape), tuple(t.stride()), int(t.storage_offset())


def unborn(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network on the meta device that keeps the record of how its weights are to be filled."""
    # Tensors of the meta device would say what they are, and some of torch's initialisers then do nothing.
    with FakeTensorMode(), Birth() as birth:
        network = make()
    bare: dict[int, Tensor] = {}
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for name, t in own.items():
                if t is not None:
                    birth.homes.append(Home(module, name, place(t), view_of(t)))
                    own[name] = bare.setdefault(id(t), without_memory(t))
    object.__setattr__(network, RECORD, birth)
    return network


def without_memory(t: Tensor) -> Tensor:
    """Return a parameter or buffer of the same shape on the meta device."""
    empty = torch.empty(t.shape, dtype=t.dtype, device="meta")
    return nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty


def fill(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield module, name and whole tensor for each weight and buffer of an unborn network, one tensor at a time.

    A tensor that is not kept by the caller takes no memory after its turn.
    """
    birth, homes = network.__dict__.pop(RECORD), {}
    for home in birth.homes:
        homes.setdefault(home.place, []).append(home)
    for key, memory in birth.tensors():
        for home in homes.get(key, ()):
            yield home.module, home.name, memory.as_strided(*home.view)


def is_unborn(network: nn.Module) -> bool:
    """Tell whether a network has no memory yet."""
    return RECORD in network.__dict__
