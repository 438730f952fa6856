"""The engine where torch's FSDP2 splits weights, gradients and state by rows over the processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from videodiff.parallel.birth import fill, is_unborn
from videodiff.parallel.muon.rows import ShardedMuon
from videodiff.parallel.whole import Whole
from videodiff.training.optimizer import Muon
from videodiff.training.state.pieces import WEIGHT, Piece, kept, piece_of, share, state_pieces
from videodiff.words import count_text


class FsdpEngine(Whole):
    """Implements `parallel.engine.Engine` for FSDP2; `how` are the arguments of `fully_shard`.

    Each process works on its rows of a weight; norms are gathered from all ranks.
    """

    split = True

    def __init__(self, strategy: Strategy, **how: Any) -> None:
        super().__init__(strategy)
        self.how = how

    def layout(self, world: int) -> str:
        """Return how many processes hold the rows."""
        return f"FSDP2 over {count_text(world, 'process')}"

    def pieces(self, module: nn.Module) -> list[Piece]:
        """Return the rows of this process and its share of common values; the holder of the first row saves numbers."""
        state, found, alike = self.strategy.optimizers[0].state, [], []
        for name, value in kept(module).items():
            held = [piece_of(name, WEIGHT, value), *state_pieces(name, value, state.get(value, {}))]
            if not isinstance(value, DTensor):
                alike += held
            elif held[0].values.numel():
                found += [piece for piece in held if piece.shape is not None or held[0].start == 0]
        return found + share(alike, self.strategy.global_rank, self.strategy.world_size)

    def adopt(self, module: nn.Module) -> None:
        """Split the network block by block, and give the rows of this process their first values.

        A trainable text encoder is small and is called several times per step, so it is split as one unit.
        """
        device, mesh = self.strategy.root_device, self.strategy.device_mesh["data_parallel"]
        for block in module.denoiser.blocks:
            fully_shard(block, mesh=mesh, **self.how)
        fully_shard(module.denoiser, mesh=mesh, **self.how)
        if module.text.trainable:
            fully_shard(module.text.to(device), mesh=mesh, **self.how)
        if not is_unborn(module.denoiser):
            return
        module.denoiser.to_empty(device=device)
        for owner, name, values in fill(module.denoiser):
            write(getattr(owner, name), values)

    def choose_optimizer(self, make: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
        """Return the optimizer unchanged; for Muon, one whose processes share the whole matrices."""
        if isinstance(make, partial) and make.func is Muon:
            return partial(ShardedMuon, *make.args, **make.keywords)
        return make

    def examine_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Compute the norm of the gradient over all ranks; a gradient that is not finite or too large is dropped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norm = float(whole(torch.nn.utils.get_total_norm([p.grad for p in parameters])))
        if self.skipped():
            for p in parameters:
                p.grad = None

    def weights(self) -> list[Tensor]:
        """Return the rows of the trainable weights that this process holds."""
        return [local(p) for p in super().weights()]

    @contextmanager
    def exchanged(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Exchange the rows of the weights for the rows of the averages; nothing is gathered."""
        parameters = self.rows(parameters)
        averages = self.averages(parameters)
        weights = {name: local(p).detach().clone() for name, p in parameters.items()}
        self.put(parameters, averages)
        try:
            yield
        finally:
            self.put(parameters, weights)

    @torch.no_grad()
    def put(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Copy rows into parameters; gathered copies of the old rows are freed."""
        self.rows(())
        for name, p in parameters.items():
            local(p).copy_(local(values[name]))

    def rows(self, names: Collection[str]) -> dict[str, nn.Parameter]:
        """Return the parameters of these names as rows; they may be whole after a forward pass without gradients."""
        module = self.strategy.lightning_module
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        return {name: p for name, p in module.named_parameters() if name in names}


def whole(t: Tensor) -> Tensor:
    """Return the whole tensor, with the rows of all ranks; every rank has to call."""
    return t.detach().full_tensor() if isinstance(t, DTensor) else t.detach()


def local(t: Tensor) -> Tensor:
    """Return the rows of this process, without a copy."""
    return t.to_local() if isinstance(t, DTensor) else t


@torch.no_grad()
def write(p: Tensor, values: Tensor) -> None:
    """Write this process's rows of whole values, which every rank has, into a parameter or buffer."""
    if isinstance(p, DTensor):
        values = distribute_tensor(values.to(p.device), p.device_mesh, p.placements, src_data_rank=None).to_local()
    local(p).copy_(values)
