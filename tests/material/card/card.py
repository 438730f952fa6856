"""A card where there is none: tensors that say they are on `cuda:0`, whose numbers are on the host.

Whatever a GPU would run runs here, with numbers, forward and backward, and under autocast of CUDA. What a card refuses
is refused: an operation on tensors of two devices, a generator of the other device. What makes the host wait for a card
is counted by place: a number read from a tensor, a copy that is not from pinned memory, an index by a mask.

`with Emulated() as card` in a process of its own: torch's own tables change for good.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).parents[3]
CARD = torch.device("cuda", 0)
HOST = torch.device("cpu")
aten = torch.ops.aten

# What has as many numbers as its input's values say: the host waits to learn how many.
COUNTING = {
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.equal,
    aten._linalg_check_errors,
}
# What takes a single number of the host beside the operations on each number.
FILLED = {aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_, aten.where}
# Operations with an index by tensors, which may be on the host.
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Placed(Tensor):
    """A tensor on the card; `host` has its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> Placed:
        made = Tensor._make_wrapper_subclass(
            cls, host.shape, host.stride(), host.storage_offset(), dtype=host.dtype, device=CARD
        )
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Reached where no mode is: in a thread of its own.
        return Emulated.now.compute(operation, args, dict(kwargs or {}))

    def __repr__(self, **_: Any) -> str:
        Emulated.now.wait()
        return f"Placed({tuple(self.shape)}, {self.dtype})"


# The class itself: its name in torch stands for another one, also where the project has imported it.
Generator = torch.Generator


class CardGenerator(Generator):
    """A generator of the host that knows which device it was made for, by the address of its state."""

    homes: ClassVar[dict[int, torch.device]] = {}

    def __new__(cls, device: Any = "cpu") -> CardGenerator:
        made = super().__new__(cls, "cpu")
        cls.homes[made._cdata] = CARD if torch.device(device).type == "cuda" else HOST
        return made

    @property
    def device(self) -> torch.device:
        return self.homes[self._cdata]


torch.Generator = CardGenerator
# A module that moves gets new parameters: their numbers do not lie where torch would exchange them.
torch.__future__.set_overwrite_module_params_on_conversion(True)


class Emulated(TorchDispatchMode):
    """Torch with one card. `waits` counts what made the host wait, by file and function of this project."""

    now: Emulated

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.counting = True
        self.pinned: weakref.WeakSet[Any] = weakref.WeakSet()
        self.patches = ExitStack()
        Emulated.now = self

    def __enter__(self) -> Emulated:
        self.lifted = torch._C._only_lift_cpu_tensors()
        # `torch.tensor(numbers, device="cuda")` is to make a tensor of the host first, and then to move it.
        torch._C._set_only_lift_cpu_tensors(True)
        for target, name, value in replaced(self):
            self.patches.enter_context(mock.patch.object(target, name, value, create=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()
        torch._C._set_only_lift_cpu_tensors(self.lifted)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(operation, args, dict(kwargs or {}))

    def compute(self, operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation with the numbers of the host, once it is known that a card would run it."""
        packet = operation.overloadpacket
        if packet is aten._fused_sdp_choice:
            return 0
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        asked = kwargs.get("device")
        placed = any(isinstance(t, Placed) for t in given)
        on_card = placed if asked is None else torch.device(asked).type == "cuda"
        pin = kwargs.pop("pin_memory", None) and not on_card
        self.examine(operation, packet, args, kwargs, given, on_card)
        if asked is not None and on_card:
            kwargs["device"] = HOST
        made = operation(*bare(args), **bare(kwargs))
        if pin:
            self.pinned.add(made.untyped_storage())
        if not on_card:
            return made
        made = tree_map_only(Tensor, Placed, made)
        return return_and_correct_aliasing(operation, args, kwargs, made) if placed and shares(operation) else made

    def examine(self, operation: Any, packet: Any, args: Any, kwargs: Any, given: list[Tensor], on_card: bool) -> None:
        """Raise where a card would, and count what waits."""
        cards = [t for t in given if isinstance(t, Placed)]
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Generator):
                home = CardGenerator.homes.get(leaf._cdata, HOST)
                if (home.type == "cuda") != on_card:
                    raise RuntimeError(f"{operation}: expected a generator of the tensor's device, found one of {home}")
        if packet is aten._to_copy or packet is aten.copy_:
            self.move(args, kwargs, on_card, packet is aten._to_copy)
        elif not cards:
            return
        elif packet is aten._local_scalar_dense or packet in COUNTING:
            self.wait()
        elif packet in INDEXED:
            indices = [i for i in args[1] if i is not None]
            # One number for all that a mask chooses needs no count of them.
            filled = len(args) > 2 and args[2].numel() == 1
            masked = any(i.dtype in (torch.bool, torch.uint8) for i in indices)
            if (masked and not filled) or any(not isinstance(i, Placed) for i in indices):
                self.wait()
        elif packet is aten.repeat_interleave and kwargs.get("output_size") is None and len(args) == 1:
            self.wait()
        else:
            check_one_device(operation, given)

    def move(self, args: Any, kwargs: Any, on_card: bool, copied: bool) -> None:
        """Count a copy between the devices that makes the host wait."""
        to, source = (on_card, args[0]) if copied else (isinstance(args[0], Placed), args[1])
        target = None if copied else args[0]
        if isinstance(source, Placed) == to:
            return
        queued = kwargs.get("non_blocking") or (not copied and len(args) > 2 and args[2])
        host = source if to else target
        if not queued or host is None or host.untyped_storage() not in self.pinned:
            self.wait()

    def wait(self) -> None:
        """Count a wait at the innermost place of this project, or of a library."""
        if self.counting:
            self.waits[place()] += 1

    def pin(self, host: Tensor) -> Tensor:
        """Return a copy in pinned memory."""
        made = host.clone()
        self.pinned.add(made.untyped_storage())
        return made


def numbers_of(card: Emulated, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return `Tensor.tolist` for tensors of both devices."""

    def tolist(tensor: Tensor) -> Any:
        if not isinstance(tensor, Placed):
            return plain(tensor)
        card.wait()
        return plain(tensor.host)

    return tolist


def address_of(plain: Callable[..., int]) -> Callable[..., int]:
    """Return `UntypedStorage.data_ptr` for memory of both devices: on the card an address that no other memory has."""
    return lambda memory: plain(memory) if memory.device.type != "cuda" else memory._cdata


@cache
def shares(operation: Any) -> bool:
    """Tell whether a result of an operation is one of its inputs, or a view of one."""
    return any(made.alias_info is not None for made in operation._schema.returns)


def bare(tree: Any) -> Any:
    """Return arguments with tensors of the host in the place of those of the card."""
    return tree_map_only(Placed, lambda t: t.host, tree)


def check_one_device(operation: Any, given: list[Tensor]) -> None:
    """Raise unless all tensors are on one device; a single number of the host may stand beside those of the card."""
    others = [t for t in given if not isinstance(t, Placed)]
    number = torch.Tag.pointwise in operation.tags or operation.overloadpacket in FILLED
    if any(t.ndim or not number for t in others):
        raise RuntimeError(f"{operation}: expected all tensors on one device, found those of cuda:0 and cpu")


def place() -> str:
    """Return file and function of the innermost frame of this project, else of a library."""
    frame, first = sys._getframe(2), None
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not any(part in name for part in ("_python_dispatch", "/_pytree", "/_dynamo/")):
            first = first or frame
            if name.startswith(f"{ROOT}/videodiff/") and "/verbs/" not in name and not name.endswith("/cli.py"):
                return f"{os.path.relpath(name, ROOT)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return f"{'/'.join(Path(first.f_code.co_filename).parts[-3:])}:{first.f_code.co_name}"


class Event:
    """What there was to wait for has happened."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class Properties(NamedTuple):
    """What a card says of itself."""

    name: str = "NVIDIA H100 80GB HBM3"
    major: int = 9
    minor: int = 0
    total_memory: int = 80 * 2**30
    multi_processor_count: int = 132


def replaced(card: Emulated) -> list[tuple[Any, str, Any]]:
    """Return the parts of torch that ask for a card, and what answers instead."""
    cuda: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda *_: True,
        "get_device_name": lambda *_: Properties().name,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: Properties(),
        "max_memory_allocated": lambda *_: 2**30,
        "memory_allocated": lambda *_: 2**30,
        "memory_stats": lambda *_: {},
        "mem_get_info": lambda *_: (80 * 2**30, 80 * 2**30),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "synchronize": lambda *_: card.wait(),
        "Event": Event,
    }
    return [
        *((torch.cuda, name, value) for name, value in cuda.items()),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch._C, "_cuda_clearCublasWorkspaces", lambda: None),
        (Tensor, "pin_memory", lambda self, *_: card.pin(self)),
        (torch.UntypedStorage, "data_ptr", address_of(torch.UntypedStorage.data_ptr)),
        (Tensor, "tolist", numbers_of(card, Tensor.tolist)),
        (Tensor, "is_pinned", lambda self, *_: self.untyped_storage() in card.pinned),
    ]
