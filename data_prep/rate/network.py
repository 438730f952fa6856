"""Scores by a pretrained network from a folder: text-video similarity and aesthetics by CLIP, NSFW by a classifier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from videodiff.words import count_text

# Frames a clip that a network looks at, evenly spread.
LOOKS = 3


class ClipScores:
    """Similarity of captions and frames, and the aesthetic head on the same features.

    path: folder of a whole CLIP with its tokenizer; aesthetic: safetensors file of a linear head or of a chain of
    linear layers on normalised image features (LAION's predictors), rating about 1 to 10.
    """

    def __init__(self, path: str | Path, aesthetic: str | Path | None = None, device: str = "cpu") -> None:
        self.model = load(transformers.CLIPModel, path, device)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.pixels = Pixels(path, self.model.config.vision_config.image_size)
        width = self.model.config.projection_dim
        self.head = None if aesthetic is None else read_head(aesthetic, width).to(device)

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
        """Score uint8 `t h w c`: clip_similarity, the best caption's cosine, -1 to 1, and aesthetic if there is a head.

        Without captions there is no similarity.
        """
        features = self.model.get_image_features(pixel_values=self.pixels(frames).to(self.model.device))
        images, scores = F.normalize(tensor_of(features), dim=-1), {}
        if captions:
            words = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
            texts = F.normalize(tensor_of(self.model.get_text_features(**words.to(self.model.device))), dim=-1)
            scores["clip_similarity"] = (texts @ images.mean(0)).max().item()
        if self.head is not None:
            scores["aesthetic"] = self.head(images).mean().item()
        return scores


class NsfwScores:
    """Any image classifier of the transformers library with a label `nsfw`, from a folder."""

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.model = load(transformers.AutoModelForImageClassification, path, device)
        labels = [label.lower() for _, label in sorted(self.model.config.id2label.items())]
        if "nsfw" not in labels:
            raise ValueError(f"score.nsfw: {path}: found the labels {', '.join(labels)}, expected nsfw among them")
        self.label, self.pixels = labels.index("nsfw"), Pixels(path, self.model.config.image_size)

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> dict[str, float]:
        """Return the largest probability over the frames of uint8 `t h w c`."""
        logits = self.model(pixel_values=self.pixels(frames).to(self.model.device)).logits
        return {"nsfw": logits.softmax(-1)[:, self.label].max().item()}


def looks(frames: int) -> list[int]:
    """Return the frames that are looked at in a clip of so many."""
    return np.unique(np.linspace(0, frames - 1, LOOKS).round().astype(int)).tolist()


class Pixels:
    """Frames to what a vision model expects: scaled, cropped to a square, normalised as preprocessor_config.json says.

    The library's own processors need torchvision, which has no build for CPU alone here.
    """

    def __init__(self, path: str | Path, size: int) -> None:
        file = Path(path) / "preprocessor_config.json"
        if not file.is_file():
            raise ValueError(f"score: found no {file}, expected the mean and deviation of the model's images in it")
        config = json.loads(file.read_text())
        self.size = size
        self.mean, self.deviation = (torch.tensor(config[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))

    def __call__(self, frames: np.ndarray) -> Tensor:
        """Return float32 `n c size size` of some frames of uint8 `t h w c`."""
        images = torch.from_numpy(frames[looks(len(frames))]).permute(0, 3, 1, 2).float() / 255
        scale = self.size / min(images.shape[2:])
        height, width = (max(self.size, round(side * scale)) for side in images.shape[2:])
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        images = images[:, :, top : top + self.size, left : left + self.size]
        return (images - self.mean) / self.deviation


def load(kind: type, path: str | Path, device: str) -> nn.Module:
    """Load a frozen model from a folder, never from elsewhere, and never from a pickle."""
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"score: found no {Path(path) / 'config.json'}, expected the folder of a model")
    return (
        kind.from_pretrained(path, local_files_only=True, use_safetensors=True).eval().requires_grad_(False).to(device)
    )


def read_head(path: str | Path, width: int) -> nn.Sequential:
    """Return the linear layers of a safetensors file in the order of their names."""
    weights = load_file(path)
    names = sorted((name.removesuffix("weight") for name in weights if name.endswith("weight")), key=layer_number)
    layers = []
    for name in names:
        weight = weights[f"{name}weight"]
        if weight.shape[1] != width:
            raise ValueError(
                f"score.aesthetic: {path}: {name}weight reads {count_text(weight.shape[1], 'feature')}, found {width}"
            )
        layer = nn.Linear(width, weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": weights[f"{name}bias"]})
        layers.append(layer)
        width = weight.shape[0]
    if width != 1 or not layers:
        raise ValueError(
            f"score.aesthetic: {path}: found {count_text(len(layers), 'layer')} that end in {width}, expected one "
            "rating"
        )
    return nn.Sequential(*layers).eval().requires_grad_(False)


def layer_number(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if part.isdigit()]


def tensor_of(features: Tensor | transformers.utils.ModelOutput) -> Tensor:
    """Return the projected features: transformers 5 wraps what 4 returned bare."""
    return features if isinstance(features, Tensor) else features.pooler_output
