"""From configuration to objects: the one place where `conf/` meets the classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from videodiff.data.decode import resize
from videodiff.diffusion.objective import Objective
from videodiff.training.checkpoint import latest_checkpoint, load_average, whole


class Model(NamedTuple):
    """What a run is made of, the parts that training and sampling share."""

    denoiser: nn.Module
    objective: Objective
    codec: Any
    text: nn.Module


def build_model(cfg: DictConfig) -> Model:
    """Instantiate the codec, the text encoder, the denoiser that fits both, and the objective; weights by cfg.seed."""
    torch.manual_seed(cfg.seed)
    codec, text = instantiate(cfg.codec), instantiate(cfg.text)
    check_patch(cfg, codec)
    denoiser = instantiate(cfg.model, channels=codec.channels, text_width=text.width)
    return Model(denoiser, instantiate(cfg.objective), codec, text)


def instantiate_partial(name: str, part: DictConfig) -> Callable[..., Any]:
    """Return what a group names, to be called later; a key that it does not take is an error now."""
    made = instantiate(part)
    taken = [key for key, value in inspect.signature(made.func).parameters.items() if value.default is not value.empty]
    for key, value in made.keywords.items():
        if key not in taken:
            raise ValueError(
                f"{name}.{key}: found {value!r}, expected one of {', '.join(taken)} for {part._target_} "
                f"(~{name}.{key} takes it away)"
            )
    return made


def check_patch(cfg: DictConfig, codec: Any) -> None:
    """Raise where a shape of the data does not divide into the codec's pixels times the patches of the model."""
    (pt, *patch), units = cfg.model.patch, codec.compression[1:]
    for where, shape in [
        ("data", cfg.data),
        *((f"data.buckets[{i}]", b) for i, b in enumerate(cfg.data.buckets or [])),
    ]:
        for name, unit, p in zip(("height", "width"), units, patch, strict=True):
            if shape[name] % (unit * p):
                valid = max(shape[name] // (unit * p), 1) * unit * p
                raise ValueError(
                    f"{where}.{name}: found {shape[name]}, expected a multiple of {unit * p} "
                    f"(codec {unit} x model.patch {p}; nearest: {valid})"
                )
        latent_frames = codec.latent_frames(shape.frames)
        if latent_frames % pt:
            raise ValueError(
                f"{where}.frames: found {shape.frames}, {latent_frames} after the codec, expected a multiple of "
                f"model.patch[0] = {pt}"
            )


def read_run(run: str | Path) -> DictConfig:
    """Return the resolved configuration of a run folder."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"run: found no {path}, expected the folder of a training run")
    return OmegaConf.load(path)


def load_run(run: str | Path, checkpoint: str | None = None) -> tuple[DictConfig, Model, Path]:
    """Return the configuration of a run, its model with averaged weights, ready to sample, and the checkpoint used."""
    cfg = read_run(run)
    model = build_model(cfg)
    found = whole(Path(checkpoint)) if checkpoint else latest_checkpoint(Path(run))
    parts = nn.ModuleDict({"denoiser": model.denoiser})
    if model.text.trainable:
        parts["text"] = model.text
    load_average(found, parts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for part in (model.denoiser, model.codec, model.text):
        part.to(device).eval()
    return cfg, model, found


def fit_frames(frames: Any, cfg: DictConfig) -> Any:
    """Bring uint8 frames `t h w c` to the size that a run was trained at."""
    return resize(frames, cfg.data.height, cfg.data.width)
