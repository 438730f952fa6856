"""How long a checkpoint holds up training: written while it waits, and by a thread.

A network of linear layers with AdamW and its average takes steps; after every few of them its state is saved, in turns
by a save that is waited for and by one that is not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning
import torch
from subjects.harness import Figure, Settings, figure, ratio
from torch import Tensor, nn

from videodiff.training.optimizer import AdamW
from videodiff.training.state.saving import Buffers, Saving

TITLE = "Checkpoint"
WIDTH, DEPTH, EVERY = 1024, 24, 3


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield the share of a save that training waits for, and the seconds of both."""
    width, depth = (16, 2) if settings.tiny else (WIDTH, DEPTH)
    slow, fast = waits(width, depth, settings.rounds)
    size = 16 * depth * width * (width + 1) / 2**20
    yield ratio("wait for a save by a thread, divided by that for a whole save", fast, slow, "asynchronous_share")
    yield figure(f"seconds of a save of {size:,.0f} MiB that is waited for", slow)
    yield figure("seconds of one by a thread", fast)


def waits(width: int, depth: int, saves: int) -> tuple[list[float], list[float]]:
    """Return the seconds that training waited for each save, for whole ones and for those by a thread."""
    # The first save of each kind gets its memory, and is not counted.
    steps = (saves + 1) * EVERY
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(Path(folder))
        trainer = lightning.Trainer(
            max_steps=steps,
            callbacks=[timed],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        batches = torch.randn(steps, 8, width)
        trainer.fit(Layers(width, depth), torch.utils.data.DataLoader(batches, batch_size=None))
    slow, fast = timed.waited.values()
    return slow[1:], fast[1:]


class Layers(lightning.LightningModule):
    """Linear layers of one width, trained on noise."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Return a loss that depends on all weights."""
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW with an average."""
        return AdamW(self.parameters(), lr=1e-4)


class Timed(lightning.Callback):
    """Save after every few steps, and take the time that training waits for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.buffers = folder, Buffers()
        self.saving: Saving | None = None
        self.waited: dict[str, list[float]] = {"waited for": [], "by a thread": []}

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step % EVERY == 0:
            self.ended()
            for name in self.waited:
                self.waited[name].append(seconds(lambda name=name: self.save(trainer, name)))

    def save(self, trainer: lightning.Trainer, name: str) -> None:
        """Save in one of the two ways."""
        self.saving = Saving(trainer, self.folder / name, self.buffers)
        if name == "waited for":
            self.ended()

    def ended(self) -> None:
        """Wait for a save that is in progress."""
        if self.saving is not None:
            self.saving.finish()
            self.saving = None

    def on_train_end(self, *_: object) -> None:
        self.ended()


def seconds(call: Callable[[], None]) -> float:
    """Return the seconds that a call takes by the clock: most of a save is waiting."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
