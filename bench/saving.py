"""How long a checkpoint holds up training, written while it waits and by a thread: `python bench/saving.py`.

A network of linear layers with AdamW and its average takes steps; after every few of them its state is saved, in turns
by a save that is waited for and by one that is not. Printed are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn

from videodiff.training.optimizer import AdamW
from videodiff.training.state.saving import Buffers, Saving


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

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every, self.buffers = folder, every, Buffers()
        self.saving: Saving | None = None
        self.waited: dict[str, list[float]] = {"waited for": [], "by a thread": []}

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step % self.every == 0:
            self.ended()
            for name in self.waited:
                self.waited[name].append(clock(lambda name=name: self.save(trainer, name)))

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


def clock(call: Callable[[], None]) -> float:
    """Return the seconds that a call takes, the work of the device included."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        timed = Timed(Path(folder), options.every)
        trainer = lightning.Trainer(
            max_steps=options.saves * options.every,
            callbacks=[timed],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        batches = torch.randn(options.saves * options.every, 8, options.width)
        trainer.fit(Layers(options.width, options.depth), torch.utils.data.DataLoader(batches, batch_size=None))
    # The first save of each kind gets its memory.
    slow, fast = (statistics.median(found[1:]) for found in timed.waited.values())
    size = 16 * options.depth * options.width * (options.width + 1) / 2**20
    print(f"{size:,.0f} MiB of state on {trainer.strategy.root_device}, medians of {options.saves - 1} saves")
    print(f"waited for {slow:.3f} s, by a thread {fast:.3f} s: {fast / slow:.1%}")


if __name__ == "__main__":
    main()
