"""A network that is built without memory and then gets its first weights, one tensor at a time.

Under ZeRO 3 and FSDP2 no process should hold the whole network, not even at the beginning. So its constructor runs on
the meta device, and the operations on its weights are recorded: which numbers are drawn, and what is done with them.
When the process group exists, each process draws the numbers in the same order, one weight at a time, and keeps its
part. The weights equal, to the bit, the weights of a network that was built whole with the same seed.
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
# Operations that create a tensor, and the value that they fill it with, given their arguments.
MADE: dict[Any, Callable[[Any], Any]] = {
    aten.empty.memory_format: lambda given: None,
    aten.zeros.default: lambda given: 0,
    aten.ones.default: lambda given: 1,
    aten.full.default: lambda given: given[1],
}
# The attribute of an unborn network that holds the record.
RECORD = "_birth"
# What to do with a network that cannot be built so.
ELSE = "under ZeRO 3 and FSDP2 a network is born without memory, so choose zero2 or ddp for it"


class Act(NamedTuple):
    """A recorded operation in place on a view of a tensor."""

    operation: Any
    view: tuple[tuple[int, ...], tuple[int, ...], int]
    given: tuple[Any, ...]

    def do(self, memory: Tensor) -> None:
        """Apply it to the memory of the tensor."""
        self.operation(memory.as_strided(*self.view), *self.given)

    @property
    def draws(self) -> bool:
        """Return whether it draws from the random generator."""
        return torch.Tag.nondeterministic_seeded in self.operation.tags


class Home(NamedTuple):
    """A weight or a buffer of a network: the path of its module, its name there, and where its values lie.

    A path, because another module may take the place of this one before the weights get their values.
    """

    path: str
    name: str
    place: int
    view: tuple[tuple[int, ...], tuple[int, ...], int]


class Birth(TorchDispatchMode):
    """A context that records what is done to tensors that are created inside it, without memory."""

    def __init__(self) -> None:
        super().__init__()
        # Kept alive, so that no later tensor gets the address of a forgotten one.
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
            # A named value, such as a random generator of its own, would not be there when it is repeated.
            named = any(value is not None for value in (kwargs or {}).values())
            if named or any(isinstance(value, Tensor) for value in tree_iter(args[1:])):
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
        """Yield the filled memory of each tensor, one at a time, in the order of their draws."""
        left = {key: list(acts) for key, acts in self.acts.items()}
        begun: dict[int, Tensor] = {}
        drawn = set(self.order)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            for key in [*self.order, *(key for key in self.acts if key not in drawn)]:
                memory = begun.pop(key) if key in begun else empty_like(self.made[key])
                draws = 0
                # Up to its next draw: a draw of another tensor may come first.
                while left[key] and (draws := draws + left[key][0].draws) < 2:
                    left[key].pop(0).do(memory)
                if left[key]:
                    begun[key] = memory
                else:
                    yield key, memory


def empty_like(made: Tensor) -> Tensor:
    """Return flat host memory for a tensor of the meta device."""
    return torch.empty(made.numel(), dtype=made.dtype)


def place(t: Tensor) -> int:
    """Return a key for the memory of a tensor."""
    return t.untyped_storage()._cdata


def unknown(operation: Any) -> TypeError:
    """Return the error for an operation that cannot be repeated later, one tensor at a time."""
    return TypeError(
        f"model: found {operation} in the constructor of the network, expected weights that are made empty or constant "
        f"and filled in place; {ELSE}"
    )


def view_of(t: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return shape, strides and offset of a tensor in its memory."""
    return tuple(t.shape), tuple(t.stride()), int(t.storage_offset())


def unborn(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network on the meta device, with the record of how to fill its weights."""
    # Some of torch's initialisers do nothing if a tensor says that it is on the meta device.
    with FakeTensorMode(), Birth() as birth:
        network = make()
    check_untied(network)
    for path, module in network.named_modules():
        for own in (module._parameters, module._buffers):
            for name, t in own.items():
                if t is not None:
                    birth.homes.append(Home(path, name, place(t), view_of(t)))
                    own[name] = without_memory(t)
    object.__setattr__(network, RECORD, birth)
    return network


def check_untied(network: nn.Module) -> None:
    """Raise if two weights lie in one memory: each would get a memory of its own, and training would part them."""
    found: dict[int, str] = {}
    # A module in two places is met once, and stays one.
    for path, module in network.named_modules():
        for name, p in module.named_parameters(path, recurse=False, remove_duplicate=False):
            if (other := found.setdefault(place(p), name)) != name:
                raise TypeError(f"model: found the weights {other} and {name} in one memory, expected one each; {ELSE}")


def without_memory(t: Tensor) -> Tensor:
    """Return a parameter or buffer of the same shape on the meta device."""
    empty = torch.empty(t.shape, dtype=t.dtype, device="meta")
    return nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty


def fill(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield module, name and whole tensor of each weight and buffer of an unborn network, one tensor at a time.

    The memory of a tensor is free again unless the caller keeps it.
    """
    birth, homes = network.__dict__.pop(RECORD), {}
    for home in birth.homes:
        homes.setdefault(home.place, []).append(home)
    for key, memory in birth.tensors():
        for home in homes.get(key, ()):
            yield network.get_submodule(home.path), home.name, memory.as_strided(*home.view)


def is_unborn(network: nn.Module) -> bool:
    """Return whether a network has no memory yet."""
    return RECORD in network.__dict__
