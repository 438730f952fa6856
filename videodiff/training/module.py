"""The Lightning module, a stage manager: it brings clips, captions, objective and optimizer together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.training.encoding import encode_text, encode_video

VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
VALIDATION_SEED = 0x7A1


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
        # A frozen encoder is no part of this model: not in its checkpoints, not sharded, not averaged.
        object.__setattr__(self, "codec", codec)
        if text.trainable:
            self.text = text
        else:
            object.__setattr__(self, "text", text)
        self.make_optimizer, self.schedule = optimizer, schedule

    def condition(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the keyword arguments of the denoiser for a batch."""
        text, mask = encode_text(batch, self.text, self.device)
        return {"text": text, "text_mask": mask, "fps": batch["fps"]}

    def null(self) -> dict[str, Tensor]:
        """Return what replaces the caption where it is dropped: the empty one."""
        text, mask = self.text([""])
        return {"text": text, "text_mask": mask}

    def on_fit_start(self) -> None:
        """Bring the frozen encoders to this rank's device."""
        self.codec.to(self.device)
        self.text.to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let Lightning count micro-batches from where the stream goes on: the first one of a step.

        It would go on counting those of the run before, which may have had another number of them in a step, or have
        been cut in the middle of one.
        """
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counted in ("total", "current"):
            progress[counted] = dict.fromkeys(progress[counted], done)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """Return the mean loss of this rank's part of the global batch."""
        x = encode_video(batch, self.codec, self.device)
        seeds = clip_seeds(self.seed, batch["step"], batch["position"].tolist())
        loss = self.objective(self.denoiser, x, self.condition(batch), self.null(), seeds).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Log the loss at fixed noise, one figure for each level: the same noise in every run and at every step."""
        x = encode_video(batch, self.codec, self.device)
        condition, losses = self.condition(batch), []
        seeds = clip_seeds(VALIDATION_SEED, 0, batch["position"].tolist())
        eps = torch.stack([self.objective.draw(clip, seed)[1] for clip, seed in zip(x, seeds, strict=True)])
        for level in VALIDATION_LEVELS:
            tau = torch.full((len(x), x.shape[2]), level, device=x.device)
            losses.append(self.objective.error(self.denoiser, x, eps, tau, condition).mean())
            self.log(f"val/loss_tau_{level}", losses[-1], batch_size=len(x), sync_dist=True)
        self.log("val/loss", torch.stack(losses).mean(), batch_size=len(x), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer over groups of parameters and its schedule, stepped once an optimizer step."""
        optimizer = self.make_optimizer(parameter_groups(self.named_parameters()))
        total = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Split the trainable parameters into the weight matrices of the blocks and the rest.

    The matrices are what Muon is for (the embeddings, the head and the modulation stay with AdamW) and what weight
    decay applies to.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    matrices = [p for name, p in trainable if ".blocks." in name and name.endswith("weight") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in trainable if id(p) not in chosen]
    return [{"params": matrices, "matrix": True}, {"params": rest, "matrix": False, "weight_decay": 0.0}]
