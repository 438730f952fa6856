"""The engine for DeepSpeed's ZeRO, which splits state, gradients or weights over the processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from videodiff.parallel.birth import fill, is_unborn
from videodiff.parallel.ranks import agree
from videodiff.parallel.whole import write
from videodiff.parallel.zero.fragments import Fragments, Partitions
from videodiff.parallel.zero.nvme import Folder
from videodiff.parallel.zero.swapped import Swapped
from videodiff.training.state.pieces import AVERAGE, Piece, kept
from videodiff.training.state.saved import Saved
from videodiff.words import count_text

# The attributes of DeepSpeed's scaler of losses that change while it trains.
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
# How many processes keep a second copy of the weights together: those of a node.
COPIES = "zero_hpz_partition_size"


class ZeroEngine:
    """Implements `parallel.engine.Engine` for DeepSpeed; every process saves the pieces that it holds.

    DeepSpeed examines the gradient within its own step; see `examine`.
    """

    def __init__(self, strategy: DeepSpeedStrategy, stage: int) -> None:
        self.strategy, self.stage = strategy, stage
        self.split = stage == 3
        # The norm of the last gradient, if there is a limit.
        self.limit, self.norm = math.inf, math.inf
        # Where this process keeps the optimizer's state, if that is a disk.
        self.folder: Folder | None = None

    @property
    def fragments(self) -> Fragments:
        """Return where the values of the parameters lie on this process."""
        kind = Fragments if self.stage < 3 else Partitions if self.folder is None else Swapped
        return kind(self.strategy.optimizers[0])

    @property
    def copied(self) -> bool:
        """Return whether pieces are copies: what lies on a disk has to be read for them."""
        return self.folder is not None

    def layout(self, world: int) -> str:
        """Return the stage and the number of processes."""
        return f"ZeRO {self.stage} over {count_text(world, 'process')}"

    def pieces(self, module: nn.Module) -> list[Piece]:
        """Return the pieces of weights and state that ZeRO assigned to this process, and its share of what all hold."""
        return self.fragments.pieces(kept(module))

    def load(self, module: nn.Module, saved: Saved) -> None:
        """Fill the pieces of this process; the other pieces of the weights come from the other processes."""
        self.fragments.load(kept(module), saved)

    def state_dict(self) -> dict[str, Any]:
        """Return where the search for a scale of the loss stands, in float16; a new search costs a step a try."""
        scaler = self.strategy.optimizers[0].loss_scaler
        return {key: getattr(scaler, key) for key in SCALE} if scaler.dynamic else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with that scale, if this precision has one."""
        scaler = self.strategy.optimizers[0].loss_scaler
        for key in SCALE if scaler.dynamic else ():
            setattr(scaler, key, type(getattr(scaler, key))(state[key]))

    def choose_optimizer(self, make: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
        """Return an optimizer that can be split: for Muon, one that DeepSpeed knows."""
        from videodiff.parallel.zero.muon import splittable

        return splittable(make, self.strategy.config)

    def examine_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: DeepSpeed examines it, because no process holds a whole gradient."""

    def skipped(self) -> bool:
        """Return whether DeepSpeed skipped the last step because its gradient was not finite or too large."""
        return bool(self.strategy.optimizers[0].overflow)

    def gradient_norm(self) -> float | None:
        """Return the norm of the gradient of the last step; under Muon DeepSpeed only knows the norm of the update."""
        optimizer = self.strategy.optimizers[0]
        if is_muon(optimizer):
            return None
        return self.norm if optimizer.overflow else float(optimizer._global_grad_norm)

    def weights(self) -> list[Tensor]:
        """Return all trainable weights, under ZeRO 3 the shard of this process."""
        if self.split:
            # On a disk are the optimizer's copies; the weights themselves are in memory.
            optimizer, on_disk = self.strategy.optimizers[0], self.folder is not None
            return list(optimizer.fp16_partitioned_groups_flat if on_disk else optimizer.fp32_partitioned_groups_flat)
        return [p for p in self.strategy.lightning_module.parameters() if p.requires_grad]

    def count(self, parameters: Iterable[nn.Parameter]) -> int:
        """Return how many weights these parameters hold when they are whole."""
        return sum(self.shape(p).numel() for p in parameters)

    def averages(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Gather the averages from all ranks, by name; before the first step the parameters themselves."""
        found = self.found_averages(parameters)
        with self.gathered([p for name, p in parameters.items() if found[name] is None]):
            return {
                name: p.detach().float().clone() if found[name] is None else found[name].reshape(self.shape(p))
                for name, p in parameters.items()
            }

    def found_averages(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
        """Gather the averages from all ranks, by name; None before the first step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if isinstance(fragments := self.fragments, Swapped):
            return fragments.averages(parameters)
        optimizer = self.strategy.optimizers[0]
        if not any(AVERAGE in state for state in optimizer.optimizer.state.values()):
            # Every step so far was skipped. DeepSpeed does not look whether there is a state.
            return dict.fromkeys(parameters)
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            # ZeRO 1 and 2 link the states of all groups when the first group has taken its first step and the others
            # have no state yet, and they link the states of a checkpoint only at the next step.
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        return {name: safe_get_full_optimizer_state(p, AVERAGE) for name, p in parameters.items()}

    def shape(self, p: nn.Parameter) -> torch.Size:
        """Return the shape of a parameter when it is whole; ZeRO 3 empties it and keeps the shape in `ds_shape`."""
        return getattr(p, "ds_shape", p.shape)

    @contextmanager
    def exchanged(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Exchange the weights for their averages, part by part where a process can.

        An error inside ends the training with the averages in place: a rank that fails alone must not wait for others.
        """
        with (self.parts_exchanged if self.by_parts(parameters) else self.whole_exchanged)(parameters):
            yield

    def by_parts(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Return whether a process can exchange its own part of each weight.

        Not if weights lie on a disk.
        """
        return all(hasattr(p, "ds_id") and p.ds_tensor.final_location != "nvme" for p in parameters.values())

    @contextmanager
    def parts_exchanged(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Exchange this process's parts; DeepSpeed then gathers averages where it would gather weights."""
        with self.released():
            weights = self.fragments.exchange(parameters)
        yield
        with self.released(), torch.no_grad():
            for name, part in weights.items():
                parameters[name].ds_tensor[: part.numel()].copy_(part)

    @contextmanager
    def whole_exchanged(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Exchange whole weights; every process holds all averages and weights, and gets what the first rank writes."""
        with self.released():
            averages = self.averages(parameters)
            with self.gathered(parameters.values()):
                weights = {name: p.detach().clone() for name, p in parameters.items()}
                write(parameters, averages)
        yield
        with self.released(), self.gathered(parameters.values()):
            write(parameters, weights)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Under ZeRO 3 release what is gathered, or on its way; at the end gather what DeepSpeed keeps gathered.

        What it has read ahead is of the old values, and so are second copies of weights (`zero_hpz_partition_size`),
        which it forgets at the end.
        """
        zero = self.strategy.optimizers[0]
        if self.split:
            zero.checkpoint_event_prologue()
        yield
        if self.split:
            zero.checkpoint_event_epilogue()

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
        """Return a context in which parameters are whole that ZeRO 3 has split; the first rank may change them."""
        parameters = list(parameters)
        if not any(hasattr(p, "ds_id") for p in parameters):
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)

    def adopt(self, module: nn.Module) -> None:
        """Under ZeRO 3, give a network without memory its weights one at a time: each process keeps its part."""
        if self.folder is not None:
            world = self.strategy.world_size
            weights = self.count(p for p in module.parameters() if p.requires_grad) // world
            agree(world, self.folder.lack_of_room(weights, self.strategy.num_processes))
        if self.split:
            check_copies(self.strategy.config["zero_optimization"], self.strategy.world_size)
        if not is_unborn(module.denoiser):
            return
        dtype, split = self.weight_type(), partial(split_weight, config=self.strategy.config)
        for owner, name, values in fill(module.denoiser):
            if name in owner._parameters:
                owner._parameters[name] = split(nn.Parameter(values.to(dtype), owner._parameters[name].requires_grad))
            else:
                owner._buffers[name] = values.to(self.strategy.root_device)
        for p in module.text.parameters() if module.text.trainable else ():
            p.data = p.data.to(dtype)
            split(p)

    def weight_type(self) -> torch.dtype:
        """Return the type of weights under DeepSpeed; the optimizer's copies are float32."""
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return next((types[key] for key in types if self.strategy.config.get(key, {}).get("enabled")), torch.float32)


def check_copies(zero: Mapping[str, Any], world: int) -> None:
    """Raise if the processes do not form equal groups, each of which keeps a second copy of the weights."""
    size = zero.get(COPIES, 1)
    if size > 1 and world % min(size, world):
        raise ValueError(
            f"strategy.{COPIES}: found {size} with {count_text(world, 'process')}, expected a number that divides them"
        )


def split_weight(p: nn.Parameter, config: dict[str, Any]) -> nn.Parameter:
    """Split a weight over all processes as ZeRO 3 does, and return it; what fills the last part up is zero.

    DeepSpeed leaves unset memory there, which would look like a weight that is not finite.
    """
    import deepspeed
    from deepspeed.utils import groups

    # The first weight makes the groups of processes that keep second copies; they may be made only once.
    copied = config["zero_optimization"].get(COPIES, 1) > 1
    made = groups._get_zero_param_intra_parallel_group() if copied else None
    deepspeed.zero.Init(module=nn.ParameterList([p]), config_dict_or_path=config, zero_param_parallel_group=made)
    part, rank = p.ds_tensor, torch.distributed.get_rank(p.ds_process_group)
    part[max(0, p.ds_numel - rank * part.numel()) :].zero_()
    return p


def is_muon(optimizer: Any) -> bool:
    """Return whether a ZeRO optimizer orthogonalises gradients before it takes their norm."""
    return any(group.get("use_muon") for group in optimizer.param_groups)


def norm_of(optimizer: Any) -> float:
    """Return the norm of the gradient over all ranks; in float16 DeepSpeed has scaled the loss, and so the gradient."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    if hasattr(optimizer, "scaled_global_norm"):
        scaled = optimizer.scaled_global_norm()
    else:
        scaled = combine_grad_norm_groups(optimizer._get_norm_groups())
    return float(scaled) / optimizer.loss_scale


def examine(engine: ZeroEngine, optimizer: Any) -> None:
    """Make a ZeRO optimizer skip a step if the gradient is not finite or larger than the engine's limit.

    By itself it skips steps in float16 only.
    """
    find_infinite = optimizer.check_overflow

    def check_overflow(*partition_gradients: Any, **how: Any) -> None:
        find_infinite(*partition_gradients, **how)
        engine.norm = math.inf
        if not optimizer.overflow and math.isfinite(engine.limit) and not is_muon(optimizer):
            engine.norm = norm_of(optimizer)
            optimizer.overflow = not engine.norm <= engine.limit

    def check(update_scale: bool = True) -> bool:
        optimizer.overflow = False
        optimizer.check_overflow()
        if optimizer.overflow:
            # Summed gradients lie in one buffer, and a value stays until the next gradient of its parameter overwrites
            # it.
            optimizer.grad_partitions_flat_buffer.zero_()
        return optimizer._loss_scale_update_and_overflow_cleanup() if update_scale else optimizer.overflow

    optimizer.check_overflow = check_overflow
    if hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = True
    else:
        optimizer._overflow_check_and_loss_scale_update = check
