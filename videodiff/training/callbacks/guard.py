"""The guard as a callback: it counts skipped steps and ends a training that has diverged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from videodiff.parallel.engine import Engine
from videodiff.parallel.launcher import AGAIN, SAID
from videodiff.parallel.ranks import gather, group_size
from videodiff.training.callbacks.checkpoints import Checkpoints
from videodiff.training.guard import Diverged, Spikes, Taken, finite, shortened, suspects
from videodiff.training.rollback import roll_back
from videodiff.training.run.logging import say
from videodiff.training.state.checkpoint import checkpoints


class Guard(Callback):
    """Report each skipped step, and end training if too many are skipped or if the weights overflow.

    A step is skipped if its loss or its gradient is not finite on any rank, or if the norm of the gradient is more than
    `spike` times the median of the last `history` norms (None: no limit). A skipped step leaves weights, moments and
    average unchanged; the data and the schedule go on. At most `budget` of any `within` steps may be skipped. If more
    are, training goes back to an older checkpoint and leaves out the batches since then, at most `rollbacks` times;
    after that it ends.

    Weights that are not finite give a gradient that is not, so the weights are looked at when a step is skipped, and
    before they are saved or validated: no other step waits for it.
    """

    def __init__(
        self,
        budget: int = 10,
        within: int = 1000,
        spike: float | None = None,
        history: int = 100,
        rollbacks: int = 0,
    ) -> None:
        if min(budget, rollbacks) < 0 or within < 1:
            raise ValueError(
                f"guard: found budget={budget} rollbacks={rollbacks} within={within}, expected at least 0, 0 and 1"
            )
        self.rollbacks = rollbacks
        if (spike is not None and not spike > 1) or history < 1:
            raise ValueError(f"guard: found spike={spike} history={history}, expected above 1, or null, and at least 1")
        self.budget, self.within, self.skipped, self.spikes = budget, within, [], Spikes(spike, history)
        # The last step that was not skipped, and its learning rate.
        self.last = 0, 0.0

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        module.engine.limit = self.spikes.limit()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if not module.step_ended():
            return
        if self.spikes.factor is not None:
            self.spikes.add(module.engine.gradient_norm())
        if module.was_skipped():
            self.prove(trainer)
            self.count(trainer, module)
        else:
            self.last = trainer.global_step, module.rate

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.prove(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.prove(trainer)

    def prove(self, trainer: lightning.Trainer) -> None:
        """End training if the last step left weights that are not finite; every rank has to call."""
        step, rate = self.last
        if not sound(trainer, trainer.lightning_module.engine):
            raise self.ended(
                trainer,
                step,
                f"step {step:,} with the learning rate {rate:g} left weights that are not finite, or beyond 1e19, "
                "expected numbers; try a lower optimizer.lr",
            )

    def count(self, trainer: lightning.Trainer, module: Any) -> None:
        """Report a skipped step, and end training if it is one too many."""
        step, engine = trainer.global_step, module.engine
        self.skipped = [s for s in self.skipped if s > step - self.within] + [step]
        where = shortened(suspects_of_all(trainer, module))
        many = f"{len(self.skipped)} of at most {self.budget} in {self.within:,} steps"
        why, norm = "loss or gradient not finite", engine.gradient_norm()
        if norm is not None and math.isfinite(norm):
            why = f"a spike: gradient of norm {norm:.3g}, expected at most {engine.limit:.3g}"
        if len(self.skipped) > self.budget:
            raise self.ended(
                trainer,
                step,
                f"step {step:,}: {why}, clips {where}; {many} "
                "(callbacks.guard.budget); try a lower optimizer.lr, or look at these clips",
            )
        if trainer.is_global_zero:
            say(f"step {step:,}: skipped, {why}, clips {where}; {many}")

    def ended(self, trainer: lightning.Trainer, step: int, why: str) -> BaseException:
        """Return the exception that ends training on this rank, as `step` diverged; the first rank says why."""
        run, back = Path(trainer.default_root_dir), None
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                # The checkpoint in progress may be the one to go back to.
                callback.finish()
        # A stream without an order has no batches that can be left out.
        data = trainer.datamodule
        if trainer.is_global_zero and data.ordered:
            back = roll_back(run, step, self.rollbacks, data.left_out)
        back = gather(trainer.world_size, back)[0]
        if not trainer.is_global_zero:
            return SystemExit(SAID if back is None else AGAIN)
        kept = checkpoints(run)
        last = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint"
        return Diverged(f"{why}; {last}" if back is None else f"{why}; {back.line()}", back)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": list(self.skipped), "norms": list(self.spikes.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = [int(step) for step in state["skipped"]]
        # Checkpoints from before there was a limit hold no norms.
        self.spikes.restore(state.get("norms", ()))


def sound(trainer: lightning.Trainer, engine: Engine) -> bool:
    """Return whether the weights are finite on all ranks; a fault of one device may spoil them there alone."""
    return trainer.strategy.reduce_boolean_decision(finite(engine.weights()), all=True)


def suspects_of_all(trainer: lightning.Trainer, module: Any) -> list[str]:
    """Return the keys of the clips without a finite loss, of all ranks; the keys of all clips if all are finite."""
    taken = [Taken(keys, losses.cpu()) for keys, losses in module.taken]
    # The ranks of a sequence group had the same clips.
    ranks = gather(trainer.world_size, taken)[:: group_size(trainer)]
    return suspects([one for rank in ranks for one in rank])
