"""The change of a block on a step of a flow map: beside some linear layers a product of low rank.

Only the changes learn (LoRA, Hu et al. 2021, arXiv 2106.09685), which is enough for few steps (LCM-LoRA, Luo et al.
2023, arXiv 2311.05556). So one network holds the velocity, which stays what it was, and the map, which follows it.
"""

from __future__ import annotations

from torch import Tensor, nn


class Change(nn.Sequential):
    """A product of low rank with a bias; as built, it gives zero."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))
        nn.init.zeros_(self[1].weight)
        nn.init.zeros_(self[1].bias)


class Changes(nn.ModuleDict):
    """The changes of a block: of queries, keys and values, and of the layers up and down of the feed-forward part."""

    def __init__(self, width: int, hidden: int, rank: int) -> None:
        sizes = {"qkv": (width, 3 * width), "up": (width, hidden), "down": (hidden, width)}
        super().__init__({name: Change(*size, rank) for name, size in sizes.items()})


def changed(layer: nn.Module, change: Change | None, x: Tensor) -> Tensor:
    """Return what a linear layer gives, with its change if there is one."""
    return layer(x) if change is None else layer(x) + change(x)
