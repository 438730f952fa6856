"""Every recipe as it is, three steps at full size: does it fit this card, and what memory does it take?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from gpu.check import GIB, Check, settle, videodiff, watched
from gpu.footage import image_autoencoder, t5, world_dataset
from gpu.watch import Watch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.collision import Collision
from videodiff.worlds.parabola import Parabola
from videodiff.worlds.uniform import Uniform

CONF = Path(__file__).parents[3] / "conf" / "experiment"
WORLDS = {"uniform_gpu": Uniform, "collision_gpu": Collision, "parabola_gpu": Parabola, "phyworld_study": Uniform}
# Recipes that begin with the run of another one.
SOURCES = {"bouncing_flow_map": "bouncing_cpu", "bouncing_progressive": "bouncing_cpu"}
SMALL = ["model.width=32", "model.depth=2", "model.heads=2", "data.global_batch=2", "data.num_workers=0"]


def run(check: Check) -> None:
    """Try each file of conf/experiment."""
    os.chdir(check.scratch)
    shutil.rmtree("runs/recipes", ignore_errors=True)
    names = [path.stem for path in CONF.glob("*.yaml")]
    # Those for a GPU first: there may not be time for all.
    for name in sorted(names, key=lambda name: (name != "hdvila_256", not name.endswith("_gpu"), name)):
        check.part(name, lambda name=name: three_steps(check, name))


def three_steps(check: Check, name: str) -> None:
    """Train three steps on clips made for this recipe."""
    more = data_of(check, name)
    watch = Watch()
    settle(check.device)
    with watched(watch):
        videodiff(
            "train",
            f"experiment={name}",
            f"run=runs/recipes/{name}",
            "data.validation_root=null",
            *("trainer.max_steps=3", f"trainer.accelerator={check.device.type}"),
            *([] if name in SOURCES.values() else ["~callbacks.checkpoints"]),
            *([f"start_from=runs/recipes/{SOURCES[name]}"] if name in SOURCES else []),
            "~callbacks.samples",
            *more,
            *(SMALL if check.tiny else []),
        )
    curve = watch.curve()
    check.hold(f"{name}: every loss is finite", all(abs(loss) < 1e6 for loss in curve), str(curve))
    check.figure(f"{name}: losses of three steps", " ".join(f"{loss:.4f}" for loss in curve[:3]))
    check.figure(f"{name}: peak memory, GiB", watch.peak)


def data_of(check: Check, name: str) -> list[str]:
    """Return the overrides that give a recipe its data, made here."""
    if name == "hdvila_256":
        return hdvila(check)
    world, size = clips_of(name, check.tiny)
    data = world_dataset(check.scratch / f"{name}_{size}", world, 8 if check.tiny else 64, size)
    return [f"data.root={data}", "text.max_words=32", *(small_clips(recipe(name), size) if check.tiny else [])]


def small_clips(cfg: DictConfig, size: int) -> list[str]:
    """Return the overrides that make every clip of a recipe at most 8 frames of size x size pixels."""
    small = [f"data.height={size}", f"data.width={size}", "data.frames=8"]
    for place, bucket in enumerate(cfg.data.buckets or ()):
        shape = {"frames": min(bucket.frames, 8), "height": size, "width": size, "global_batch": 2}
        small += [f"++data.buckets.{place}.{key}={value}" for key, value in shape.items()]
    return small


def clips_of(name: str, tiny: bool) -> tuple[Any, int]:
    """Return a world whose clips are as long as a recipe reads them, and the size in pixels at which it reads them."""
    cfg = recipe(name)
    frames = cfg.data.stride * (cfg.data.frames - 1) + 1
    world = WORLDS[name]() if name in WORLDS else Bouncing(frames=max(16, frames))
    # About 16 pixels, in whole patches.
    return world, -(-16 // cfg.model.patch[-1]) * cfg.model.patch[-1] if tiny else max(cfg.data.height, cfg.data.width)


def recipe(name: str) -> DictConfig:
    """Return the configuration of a recipe."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF.parent)):
        return compose("train", overrides=[f"experiment={name}"])


def hdvila(check: Check) -> list[str]:
    """Return the overrides of hdvila_256: models with random weights, a batch for one GPU."""
    codec, text, data = hdvila_parts(check)
    return [
        f"data.root={data}",
        *(f"codec.path_or_name={codec}", f"text.path_or_name={text}"),
        *("text.subfolder=null", "text.tokenizer_subfolder=null"),
        *(("data.height=32", "data.width=32", "data.frames=4") if check.tiny else ("data.global_batch=8",)),
        "data.micro_batch=1" if check.tiny else f"data.micro_batch={micro_batch(check)}",
    ]


def hdvila_parts(check: Check) -> tuple[Path, Path, Path]:
    """Return an autoencoder of the size of Stable Diffusion's, a T5 of two layers but full width, and clips."""
    world = Bouncing(frames=12 if check.tiny else 48)
    channels = (8, 8, 8, 8) if check.tiny else (128, 256, 512, 512)
    codec = image_autoencoder(check.scratch / f"image_{channels[-1]}", channels)
    width = 16 if check.tiny else 4096
    text = t5(check.scratch / f"t5_{width}", list(world.words()), width)
    size = 32 if check.tiny else 256
    return codec, text, world_dataset(check.scratch / f"long_{size}", world, 8 if check.tiny else 24, size)


def micro_batch(check: Check) -> int:
    """Return 4, the recipe's own, where the card has 80 GB, less where it has less."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory / GIB if check.cuda else 80
    return 4 if total > 70 else 2 if total > 38 else 1
