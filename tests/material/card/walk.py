"""What runs on a card, walked with an emulated one: training steps, samplers, and the whole of `videodiff train`.

It prints one JSON object: for each walk what made the host wait, by place, or the error that a card would raise.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from tests.conftest import tiny
from tests.material.card.card import Emulated
from videodiff import cli
from videodiff.codec.pixels import Pixels
from videodiff.denoiser import attention
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.device import send
from videodiff.diffusion import sampler
from videodiff.diffusion.distillation import ProgressiveDistillation
from videodiff.diffusion.flow_map import FlowMap
from videodiff.diffusion.levels import POLICIES, NoiseLevels
from videodiff.diffusion.objective import Objective
from videodiff.diffusion.path import Cosine, RectifiedFlow
from videodiff.generation.settings import Generation, Network, clip_noise, nothing_given
from videodiff.parallel.recompute import recompute_blocks
from videodiff.text.words import Words
from videodiff.training.module import VideoDiffusion
from videodiff.training.optimizer import AdamW, Muon
from videodiff.verbs.train import command as train

LEVELS = NoiseLevels(dict.fromkeys(POLICIES, 1.0))
CAPTIONS = ["a red ball", "", "a ball"]
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "velocity": lambda: Objective(RectifiedFlow(), LEVELS),
    "clip predicted, loss on velocity": lambda: Objective(RectifiedFlow(), LEVELS, "x", "v"),
    "noise predicted, cosine path": lambda: Objective(Cosine(), LEVELS, "eps", "x"),
    "flow map": lambda: FlowMap(RectifiedFlow(), LEVELS, "x", "x", pieces=2, history=1.5, scale=2.0),
    "progressive distillation": lambda: ProgressiveDistillation(RectifiedFlow(), LEVELS, "x", "x"),
}
SAMPLERS = ("euler", "heun", "ddim", "dpm_solver_2m", "flow_map")
# The steps of a run that are watched: the first ones make the states of the optimizer.
FIRST, LAST = 2, 4


def denoiser(rank: int = 0) -> SpaceTimeTransformer:
    """Return a network with all kinds of blocks and all gates open."""
    torch.manual_seed(0)
    made = SpaceTimeTransformer(3, (1, 4, 4), 16, 3, 2, ("space", "time", "spacetime"), 16, gate=1.0, step_rank=rank)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return made


def batch() -> dict[str, Any]:
    """Return a batch as the loader gives it, on the card."""
    b = len(CAPTIONS)
    video = send(torch.randint(0, 256, (b, 4, 8, 8, 3), dtype=torch.uint8), "cuda").permute(0, 4, 1, 2, 3)
    given = {"step": 3, "position": torch.arange(b), "caption": CAPTIONS, "key": list("abc")}
    return {**given, "fps": send(torch.full((b,), 8.0), "cuda"), "video": video}


def step(card: Emulated, objective: Objective, optimizer: Any, recompute: str = "none") -> None:
    """Take two training steps; watch the second one."""
    network = denoiser(4 if objective.takes_steps else 0)
    recompute_blocks(network, recompute)
    words = Words(["a", "red", "ball"], 16, 6)
    parts = VideoDiffusion(network, objective, Pixels(), words, optimizer, lambda step, total: 1.0)
    parts.to("cuda")
    if isinstance(objective, ProgressiveDistillation):
        objective.network = copy.deepcopy(denoiser()).to("cuda").requires_grad_(False)
    for name, p in parts.named_parameters():
        p.requires_grad_(objective.learns(name))
    groups = [
        {"params": [p for p in parts.parameters() if p.requires_grad and (p.ndim == 2) == two], "matrix": two}
        for two in (True, False)
    ]
    made, given = optimizer(groups), batch()
    for _ in range(2):
        card.waits.clear()
        with torch.autocast("cuda", torch.bfloat16):
            loss = parts.training_step(given, 0)
        loss.backward()
        made.step()
        made.zero_grad()


def sample(card: Emulated, name: str, **how: Any) -> None:
    """Make clips by two steps with guidance by the caption, one of them around a known frame."""
    network, words = denoiser(4).to("cuda").eval(), Words(["a", "red", "ball"], 16, 6).to("cuda")
    noise = send(clip_noise((3, 4, 8, 8), range(len(CAPTIONS))), "cuda")
    given = nothing_given(noise)
    given.known[0, 0] = True
    generation = Generation(getattr(sampler, name), 2, 2.0, 2.0, **how)
    conditions = [dict(zip(("text", "text_mask"), words(captions), strict=True)) for captions in (CAPTIONS, [""])]
    conditions[0]["fps"] = send(torch.full((len(CAPTIONS),), 8.0), "cuda")
    card.waits.clear()
    with torch.autocast("cuda", torch.bfloat16):
        generation(Network(network, *conditions, RectifiedFlow(), "v"), noise, given)


def inpaint(card: Emulated) -> None:
    """Make clips that keep some pixels of others."""
    network = denoiser().to("cuda").eval()
    text = {"text": torch.zeros(1, 2, 16, device="cuda"), "text_mask": torch.ones(1, 2, device="cuda") > 0}
    noise = send(clip_noise((3, 4, 8, 8), [0]), "cuda")
    given = nothing_given(noise)
    given.kept[..., :4] = True
    asked = Network(network, {**text, "fps": send(torch.full((1,), 8.0), "cuda")}, text, RectifiedFlow(), "v")
    card.waits.clear()
    Generation(sampler.euler, 1, reconstruction=1.0)(asked, noise, given)


class Watched(Callback):
    """Keep what made the host wait in some steps of a run."""

    def __init__(self, card: Emulated) -> None:
        self.card, self.waits = card, Counter()

    def on_train_batch_start(self, trainer: Any, module: Any, given: Any, index: int) -> None:
        if index == FIRST:
            self.card.waits.clear()
        if index == LAST:
            self.waits = self.card.waits.copy()


def run(card: Emulated, dataset: Path, *more: str) -> None:
    """Run `videodiff train` on the card, and leave what made the host wait in the steps that are watched."""
    watched, build = Watched(card), train.build_callbacks
    train.build_callbacks = lambda *given: [watched, *build(*given)]
    steps = [f"trainer.max_steps={LAST + 1}", "trainer.log_every_n_steps=1000", "callbacks.progress.every=1000"]
    how = ["trainer.accelerator=gpu", "trainer.precision=bf16-mixed", "callbacks.checkpoints.every=3", "name=card"]
    sys.argv = ["videodiff", "train", *tiny(dataset), *steps, *how, *more]
    try:
        cli.main()
    finally:
        train.build_callbacks = build
        card.waits = watched.waits


def refusals() -> dict[str, Callable[[], Any]]:
    """Return what a card refuses."""
    x = torch.ones(2, 3, device="cuda")
    return {
        "a sum over two devices": lambda: x + torch.ones(2, 3),
        "a product over two devices": lambda: x @ torch.ones(3, 2),
        "numbers of the host beside those of the card": lambda: torch.stack([x.sum(), torch.zeros(())]),
        "a number of the card beside those of the host": lambda: torch.ones(3) * x.sum(),
        "a generator of the host": lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
        "a generator of the card": lambda: torch.randn(3, generator=torch.Generator("cuda")),
    }


def acts() -> dict[str, Callable[[], Any]]:
    """Return what may make the host wait for a card."""
    x, host = torch.ones(2, 3, device="cuda"), torch.ones(3)
    return {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.any()),
        "tolist": x.tolist,
        "cpu": x.cpu,
        "print": lambda: str(x),
        "nonzero": lambda: x.nonzero(),
        "mask": lambda: x[x > 0],
        "list": lambda: x[[0, 1]],
        "tensor": lambda: torch.tensor([1.0], device="cuda"),
        "pageable": lambda: host.to("cuda", non_blocking=True),
        "blocking": lambda: host.pin_memory().to("cuda"),
        "sent": lambda: send(host, "cuda"),
        "number": lambda: x * 2 + torch.tensor(2.0),
        "fill": lambda: x[0].fill_(3.0),
        "fill where": lambda: x.masked_fill_(x > 5, 0.0),
        "made there": lambda: torch.arange(3, device="cuda"),
    }


@contextmanager
def many_sequences() -> Iterator[None]:
    """Let a card take few sequences at once."""
    rows, attention.ROWS = attention.ROWS, 5
    try:
        yield
    finally:
        attention.ROWS = rows


def walks(card: Emulated, dataset: Path) -> dict[str, Callable[[], Any]]:
    """Return all walks by name."""
    found: dict[str, Callable[[], Any]] = {}
    for number, (name, make) in enumerate(OBJECTIVES.items()):
        # Each optimizer, with the kernel of CUDA for what is no matrix.
        optimizer = partial((AdamW, Muon)[number % 2], lr=1e-3)
        found[f"step: {name}"] = lambda make=make, optimizer=optimizer: step(card, make(), optimizer)
    for level in ("selective", "full"):
        again = lambda level=level: step(card, OBJECTIVES["velocity"](), partial(AdamW, lr=1e-3), level)  # noqa: E731
        found[f"step: recompute {level}"] = again
    for name in SAMPLERS:
        found[f"sampler: {name}"] = partial(sample, card, name)
    found["sampler: lead apart"] = partial(sample, card, "euler", lead=1, apart=True, history=1.5, rescale=0.5)
    found["sampler: inpainting"] = partial(inpaint, card)
    found["train"] = partial(run, card, dataset)
    return found


def main(dataset: Path) -> None:
    """Walk, and print what was found."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder, Emulated() as card:
        os.chdir(folder)
        for name, act in refusals().items():
            try:
                act()
                found[f"refused: {name}"] = False
            except RuntimeError:
                found[f"refused: {name}"] = True
        for name, act in acts().items():
            card.waits.clear()
            act()
            found[f"waits: {name}"] = card.waits.total()
        for name, walk in walks(card, dataset).items():
            card.waits.clear()
            try:
                with many_sequences(), redirect_stdout(sys.stderr), redirect_stderr(sys.stderr):
                    walk()
                found[name] = dict(card.waits)
            except (RuntimeError, SystemExit) as error:
                found[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))
