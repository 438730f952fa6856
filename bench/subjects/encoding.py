"""A training step from cached latents and text, beside one that decodes and encodes clips and captions itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu.footage import image_autoencoder, t5, world_dataset
from subjects.harness import Figure, Settings, figure, ratio, turns
from torch import nn

from videodiff.codec.autoencoder import Autoencoder
from videodiff.data.encoded.precompute import Plan, precompute
from videodiff.data.loader.datamodule import clip_data
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import RectifiedFlow
from videodiff.text.transformers import Transformers
from videodiff.training.encoding import encode_text, encode_video
from videodiff.worlds.bouncing import Bouncing

TITLE = "Cached latents and text beside encoding in the step"
FRAMES, BATCH = 4, 4


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield how many times as fast a step from the cache is, and what each takes; an autoencoder of SD's size."""
    side, width, channels, words = 64, 512, (128, 256, 512, 512), 512
    if settings.tiny:
        side, width, channels, words = 16, 32, (8, 8, 8, 8), 16
    world = Bouncing(balls={1: 1, 2: 0, 3: 0}, split="all")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = world_dataset(root / "clips", world, 8, side)
        models = image_autoencoder(root / "vae", channels), t5(root / "t5", list(world.words()), words)
        sizes, cached = [(side, side)], root / "cached"
        precompute(Plan(str(data), cached, partial(encoders, *models), sizes, decoders=0), workers=1)
        network = SpaceTimeTransformer(4, (1, 2, 2), width, 4, width // 16, text_width=words)
        works = {
            "online": step(network, data, side, ["video"], encoders(*models)),
            "cached": step(network, cached, side, ["latent", "text"], encoders(*models)),
        }
        taken = turns(works, settings.rounds)
    yield ratio("a step from the cache: times as fast", taken["online"], taken["cached"], "cached_vs_online")
    yield figure(f"milliseconds of a step of {BATCH} clips from the cache", [1000 * one for one in taken["cached"]])
    yield figure("of one that encodes", [1000 * one for one in taken["online"]])


def encoders(vae: Path, text: Path) -> tuple[nn.Module, nn.Module]:
    """Return both frozen encoders in float32."""
    return Autoencoder(str(vae), dtype="float32"), Transformers(str(text), dtype="float32", max_length=24)


def step(
    network: nn.Module, data: Path, side: int, deliver: list[str], both: tuple[nn.Module, nn.Module]
) -> Callable[[], None]:
    """Return a training step without the optimizer, reading included."""
    shape = {"frames": FRAMES, "height": side, "width": side, "global_batch": BATCH}
    batches = iter(clip_data(root=str(data), **shape, num_workers=0, deliver=deliver).train_dataloader())
    objective = Objective(RectifiedFlow(), NoiseLevels())
    codec, encoder = both

    def one() -> None:
        batch: dict[str, Any] = next(batches)
        text, mask = encode_text(batch, encoder, "cpu")
        condition = {"text": text, "text_mask": mask, "fps": batch["fps"]}
        x = encode_video(batch, codec, "cpu")
        network.zero_grad()
        objective(network, x, condition, {}, clip_seeds(0, 0, range(len(x)))).mean().backward()

    return one
