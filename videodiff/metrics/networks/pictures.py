"""Metrics of single clips by image networks: does each frame show the caption, and do frames show the same thing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videodiff.metrics.metric import Case, Quantity, metric
from videodiff.metrics.networks.loading import choose_device, load_folder, read_normalisation
from videodiff.metrics.networks.pixels import normalised, resized, squares
from videodiff.metrics.weights import Weights, said

HUB = "the Hugging Face hub"
CLIP = Weights("CLIP (openai/clip-vit-base-patch32)", HUB, folder=True, modules=("transformers",))
DINO = Weights("DINO (facebook/dino-vitb16 or facebook/dinov2-base)", HUB, folder=True, modules=("transformers",))
CONSISTENCY = Quantity("higher", "", 0.0, 1.0)


@metric(
    {"clip_similarity": Quantity("higher", "", -1.0, 1.0), "caption_cut_share": Quantity("lower", "", 0.0, 1.0)},
    weights=CLIP,
)
def clip_similarity(
    case: Case, path: str | None = None, crop: bool = False, device: str = "auto", batch: int = 64
) -> dict[str, float]:
    """Return CLIP's mean cosine of caption and frames, and whether CLIP truncates the caption."""
    words, network = tokenizer(path), load_folder(path, ("CLIPModel",), device)
    most = network.config.text_config.max_position_embeddings
    given = words(case.caption, truncation=True, max_length=most, return_tensors="pt")
    with torch.inference_mode():
        text = tensor_of(network.get_text_features(**given.to(choose_device(device))))
    frames = clip_pictures(case.frames, path, crop, device, batch)
    cut = len(words(case.caption, verbose=False)["input_ids"]) > most
    return {
        "clip_similarity": float((frames @ F.normalize(text, dim=-1).double().cpu().T).mean()),
        "caption_cut_share": float(cut),
    }


@metric({"background_consistency_score": CONSISTENCY}, weights=CLIP)
def background(
    case: Case, path: str | None = None, crop: bool = False, device: str = "auto", batch: int = 64
) -> dict[str, float]:
    """Return how alike CLIP finds the frames (VBench's background consistency)."""
    return {"background_consistency_score": alike(clip_pictures(case.frames, path, crop, device, batch))}


@metric({"subject_consistency_score": CONSISTENCY}, weights=DINO)
def subject(
    case: Case, path: str | None = None, crop: bool = False, device: str = "auto", batch: int = 64
) -> dict[str, float]:
    """Return how alike DINO finds the frames (VBench's subject consistency)."""
    network = load_folder(path, ("ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"), device)

    def features(pixels: Tensor) -> Tensor:
        return network(pixels).last_hidden_state[:, 0]

    pictures = by_batch(case.frames, path, network.config.image_size, crop, device, batch, features)
    return {"subject_consistency_score": alike(pictures)}


def alike(features: Tensor) -> float:
    """Return VBench's consistency of features (frames, width) of length 1.

    For each frame but the first: the mean of its cosines with the one before and with the first, none below 0.
    """
    if len(features) < 2:
        return 1.0
    before, first = (features[1:] * features[:-1]).sum(-1), features[1:] @ features[0]
    # Rounding may leave the cosine of equal frames a little above 1.
    return min(float((before.clamp(min=0) + first.clamp(min=0)).mean() / 2), 1.0)


def clip_pictures(frames: np.ndarray, path: str, crop: bool, device: str, batch: int) -> Tensor:
    """Return CLIP's features (frames, width) of length 1."""
    network = load_folder(path, ("CLIPModel",), device)
    side = network.config.vision_config.image_size
    return by_batch(
        frames, path, side, crop, device, batch, lambda pixels: tensor_of(network.get_image_features(pixels))
    )


@torch.inference_mode()
def by_batch(frames: np.ndarray, path: str, side: int, crop: bool, device: str, batch: int, features: Any) -> Tensor:
    """Return the features (frames, width) of length 1 of frames uint8 `t h w c`, float64."""
    pixels = normalised(resized(squares(frames, crop), side, "bicubic"), **read_normalisation(path))
    made = [features(some.to(choose_device(device))) for some in pixels.split(batch)]
    return F.normalize(torch.cat(made).double().cpu(), dim=-1)


@lru_cache(maxsize=2)
def tokenizer(path: str) -> Any:
    """Load the tokenizer of a folder."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the libraries raise errors of any class for a damaged file
        raise ValueError(f"{path}: found no tokenizer that works ({said(error)})") from error


def tensor_of(features: Any) -> Tensor:
    """Return projected features: transformers 5 wraps what 4 returned bare."""
    return features if isinstance(features, Tensor) else features.pooler_output
