"""Networks from a path that the user names: a TorchScript file, which is code, or a folder of transformers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videodiff.pretrained import load_frozen
from videodiff.words import count_text


def choose_device(device: str) -> str:
    """Return the device that `auto` means here."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


@lru_cache(maxsize=8)
def load_script(path: str, device: str) -> torch.jit.ScriptModule:
    """Load a TorchScript file. It is a program: its author decides what it computes here (docs/trust.md)."""
    try:
        return torch.jit.load(path, map_location=choose_device(device)).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: found no TorchScript ({str(error).splitlines()[0][:120]})") from error


@lru_cache(maxsize=8)
def load_folder(path: str, names: tuple[str, ...], device: str) -> nn.Module:
    """Load a model from a folder of transformers, from safetensors only.

    names: accepted classes; the first that the folder's own `architectures` lists is used, else the first of all.
    """
    import transformers

    config = read_object(Path(path) / "config.json")
    own = [name for name in config.get("architectures") or [] if name in names]
    family = getattr(transformers, (own or names)[0])
    if config.get("model_type") != family.config_class.model_type:
        raise ValueError(
            f"{path}: found a model of type {config.get('model_type')!r}, expected {family.config_class.model_type!r}"
        )
    return load_frozen("metric", family, path, None, "main", "float32", local_files_only=True).to(choose_device(device))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError if the file holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found no JSON ({str(error)[:120]}), expected an object") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found JSON {type(found).__name__}, expected an object")
    return found


def read_normalisation(path: str) -> dict[str, list[float]]:
    """Return mean and deviation of the pictures that a folder's model expects, from its preprocessor_config.json."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        file = Path(path) / name
        if file.is_file():
            config = read_object(file)
            if "image_mean" in config and "image_std" in config:
                return {"mean": config["image_mean"], "deviation": config["image_std"]}
    raise ValueError(f"{path}: found no preprocessor_config.json with image_mean and image_std, expected it")


def is_script(path: str) -> bool:
    """Tell whether a path is a file, which can only be TorchScript, or a folder."""
    return Path(path).is_file()


def to_features(output: Any, rows: int, path: str) -> np.ndarray:
    """Return the answer of a network as float64 (rows, width)."""
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != rows or not output.numel():
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{path}: found {found} for {count_text(rows, 'clip')}, expected features ({rows}, width)")
    return output.detach().flatten(1).double().cpu().numpy()
