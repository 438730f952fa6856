"""The Lightning module: it brings clips, captions, objective and optimizer together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.parallel.engine import Engine, engine_of
from videodiff.training.encoding import counted, encode_text, encode_video, kind_of
from videodiff.training.guard import Taken, tell_backward
from videodiff.training.run import validated
from videodiff.training.run.logging import log_figures
from videodiff.training.start import Start
from videodiff.training.state.restoring import restore
from videodiff.training.stopwatch import Stopwatch

VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
VALIDATION_SEED = 0x7A1
# The figures of a validation, all of them losses.
VALIDATED = ("val/loss", *(f"val/loss_tau_{level}" for level in VALIDATION_LEVELS))


class VideoDiffusion(lightning.LightningModule):
    """Train a denoiser on clips and captions.

    `optimizer` takes parameter groups, `schedule` a step and the total number of steps; all draws of a training step
    are keyed by (`seed`, step, position in the global batch).
    """

    def __init__(
        self,
        denoiser: nn.Module,
        objective: Objective,
        codec: nn.Module,
        text: nn.Module,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Callable[[int, int], float],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective, self.seed = objective, seed
        # A frozen encoder is not a submodule: it is not saved, not sharded and not averaged.
        object.__setattr__(self, "codec", codec)
        if text.trainable:
            self.text = text
        else:
            object.__setattr__(self, "text", text)
        self.make_optimizer, self.schedule = optimizer, schedule
        # The checkpoint that training goes on from, and what is told where an older one takes its place, if one may.
        self.checkpoint: Path | None = None
        self.fall_back: Callable[[Path], None] | None = None
        # The weights that it begins with instead of new ones, and whether its average begins with them too.
        self.start: Start | None = None
        self.continues_average = False
        # The micro-batches of the current step on this rank, and facts about the last step.
        self.taken: list[Taken] = []
        self.adopted = False
        self.validated: Tensor | None = None
        self.validated_figures: dict[str, float] = {}
        self.ended, self.began, self.rate = 0, 0, 0.0
        self.stopwatch = Stopwatch()
        # FLOPs of the encoders by the kind of micro-batch; text tokens of the last one; padding among those since the
        # progress line began to count, on the device.
        self.encoding: dict[tuple[Any, ...], int] = {}
        self.text_places: int = 0
        self.padding: Tensor | int = 0

    @property
    def engine(self) -> Engine:
        """Return what takes this process's steps."""
        return engine_of(self.trainer.strategy)

    def configure_model(self) -> None:
        """Give the network to the engine, when the process group exists; Lightning may call this twice."""
        if not self.adopted:
            self.engine.adopt(self)
            self.adopted = True

    def condition(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the keyword arguments of the denoiser for a batch."""
        text, mask = encode_text(batch, self.text, self.device)
        return {"text": text, "text_mask": mask, "fps": batch["fps"]}

    def null(self) -> dict[str, Tensor]:
        """Return what replaces a dropped caption: the empty caption."""
        text, mask = self.text([""])
        return {"text": text, "text_mask": mask}

    def on_fit_start(self) -> None:
        """Move the frozen encoders to this rank's device, and resume from the checkpoint if there is one.

        At this point every strategy has set everything up; Lightning's own restoring comes too early for most.
        """
        self.codec.to(self.device)
        self.text.to(self.device)
        if self.checkpoint is not None:
            restore(self, self.checkpoint)
        elif self.start is not None:
            self.start.begin(self)

    def on_train_start(self) -> None:
        """Begin to count steps."""
        self.ended = self.began = self.trainer.global_step
        validated.make_up(self.trainer)

    def on_train_batch_start(self, batch: dict[str, Any], index: int) -> None:
        """Count the time of a step from here on."""
        self.stopwatch.enter("compute")

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """Return the mean loss of this rank's part of the global batch."""
        x, condition = self.encode(batch)
        seeds = clip_seeds(self.seed, batch["step"], batch["position"].tolist())
        losses = self.objective(self.denoiser, x, condition, self.null(), seeds)
        self.taken.append(Taken(list(batch.get("key", ())), losses.detach()))
        return tell_backward(losses.mean())

    def encode(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return clips and conditions of a micro-batch; count the FLOPs of the first one of its kind, and padding."""

        def both() -> tuple[Tensor, dict[str, Tensor]]:
            # The text first: a library's encoder may look at its mask, and would wait until the clips are encoded.
            condition = self.condition(batch)
            return encode_video(batch, self.codec, self.device), condition

        if (kind := kind_of(batch)) in self.encoding:
            x, condition = both()
        else:
            (x, condition), self.encoding[kind] = counted(both)
        mask = condition["text_mask"]
        self.text_places, self.padding = mask.numel(), self.padding + (~mask).sum()
        return x, condition

    def encoder_flops(self, batch: dict[str, Any]) -> int:
        """Return the FLOPs of codec and text encoder for this process's micro-batch."""
        return self.encoding.get(kind_of(batch), 0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the engine examine the gradient before it is used."""
        self.rate = optimizer.param_groups[-1]["lr"]
        self.engine.examine_gradient(optimizer)

    def step_ended(self) -> bool:
        """Return whether the last micro-batch ended its step."""
        return self.trainer.global_step > self.ended

    def was_skipped(self) -> bool:
        """Return whether the step that has just ended was skipped; all ranks return the same."""
        return self.engine.skipped()

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], index: int) -> None:
        """At the end of a step log its figures; the callbacks have run already."""
        if self.step_ended():
            self.ended = self.trainer.global_step
            if self.due():
                self.log_step()
            self.taken = []
        self.stopwatch.enter("data")

    def due(self) -> bool:
        """Return whether the last step is logged: the first, the last, and every `log_every_n_steps`-th one."""
        step, trainer = self.ended, self.trainer
        ends = step in (self.began + 1, trainer.max_steps) or trainer.should_stop
        return ends or step % trainer.log_every_n_steps == 0

    def log_step(self) -> None:
        """Log loss, norm of the gradient and learning rate of the step, of the whole global batch."""
        if not self.was_skipped():
            norm = self.engine.gradient_norm()
            figures = {"train/loss": self.mean_loss(), "train/grad_norm": norm, "train/lr": float(self.rate)}
            log_figures(self.trainer, {name: value for name, value in figures.items() if value is not None})

    def mean_loss(self) -> float:
        """Return the mean loss of the clips of the step over all micro-batches and ranks; every rank has to call."""
        losses = torch.cat([losses.double() for _, losses in self.taken])
        sums = torch.stack([losses.sum(), torch.full_like(losses[0], len(losses))])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return float(sums[0] / sums[1])

    def on_validation_start(self) -> None:
        """Begin to sum losses, one sum per level, and to count clips."""
        self.stopwatch.enter("validation")
        self.validated = torch.zeros(len(VALIDATION_LEVELS) + 1, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Add the losses at fixed noise, the same in every run and at every step."""
        condition, sums = self.condition(batch), []
        x = encode_video(batch, self.codec, self.device)
        seeds = clip_seeds(VALIDATION_SEED, 0, batch["position"].tolist())
        eps = torch.stack([self.objective.draw(clip, seed)[1] for clip, seed in zip(x, seeds, strict=True)])
        for level in VALIDATION_LEVELS:
            tau = torch.full((len(x), x.shape[2]), level, device=x.device, dtype=torch.float32)
            sums.append(self.objective.error(self.denoiser, x, eps, tau, condition).double().sum())
        self.validated += torch.stack([*sums, torch.full_like(sums[0], len(x))])

    def abandon_validation(self) -> None:
        """Forget what the validation in progress has summed: it has no figures."""
        self.validated, self.validated_figures = None, {}

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss over the clips of all ranks, per level and over all levels; batch sizes do not matter."""
        self.stopwatch.enter("data")
        if self.validated is None:
            return
        *sums, clips = self.trainer.strategy.reduce(self.validated, reduce_op="sum").tolist()
        losses = [one / clips for one in sums]
        self.validated_figures = dict(zip(VALIDATED, [sum(losses) / len(losses), *losses], strict=True))
        log_figures(self.trainer, self.validated_figures)

    def on_validation_end(self) -> None:
        """Record that it has ended."""
        if self.validated is not None:
            validated.note(self.trainer)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer over groups of parameters and its schedule, stepped once an optimizer step."""
        optimizer = self.make_optimizer(parameter_groups(self.named_parameters(), self.engine.shape))
        optimizer.averages_from_start = self.continues_average
        total = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def names_in_order(self) -> list[str]:
        """Return the names of the trainable parameters in the order of the optimizer's groups."""
        names = {id(p): name for name, p in self.named_parameters()}
        return [names[id(p)] for group in parameter_groups(self.named_parameters()) for p in group["params"]]


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], shape: Callable[[nn.Parameter], torch.Size] = lambda p: p.shape
) -> list[dict[str, Any]]:
    """Split the trainable parameters into the weight matrices of the blocks, and the others.

    `shape` tells what shape a parameter has when it is whole. Muon and weight decay apply to the matrices only;
    embeddings, head and modulation stay with AdamW.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    matrices = [p for name, p in trainable if ".blocks." in name and name.endswith("weight") and len(shape(p)) == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in trainable if id(p) not in chosen]
    groups = [{"params": matrices, "matrix": True}, {"params": rest, "matrix": False, "weight_decay": 0.0}]
    # All weights of a group may be frozen.
    return [group for group in groups if group["params"]]
