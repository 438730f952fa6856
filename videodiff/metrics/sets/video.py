"""Distances of videos: FVD, content-debiased FVD and JEDi. The user gives each network as a file or folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from videodiff.metrics.metric import Quantity
from videodiff.metrics.networks.loading import (
    choose_device,
    is_script,
    load_folder,
    load_script,
    read_normalisation,
    to_features,
)
from videodiff.metrics.networks.pixels import batches, normalised, resized, squares
from videodiff.metrics.sets.kernel import jedi_distance
from videodiff.metrics.sets.moments import frechet_distance
from videodiff.metrics.sets.set_metric import SetMetric
from videodiff.metrics.weights import Weights
from videodiff.words import count_text

# With fewer frames, I3D's pooling over time leaves nothing.
LEAST_FRAMES = 10
SIDE = 224
LOWER = Quantity("lower", "", 0.0)


def i3d_features(
    clips: Sequence[np.ndarray], path: str, crop: bool = False, device: str = "auto", batch: int = 8
) -> np.ndarray:
    """Return I3D's features (clips, 1, 400) of clips `t h w c`, as StyleGAN-V asks for them.

    The network itself scales 0 to 255 to -1 to 1 and resizes to 224 x 224, bilinear and unfiltered.
    """
    frames = clips[0].shape[0]
    if frames < LEAST_FRAMES:
        raise ValueError(f"found clips of {count_text(frames, 'frame')}, expected at least {LEAST_FRAMES} for I3D")
    network, made = load_script(path, device), []
    for some in batches(clips, batch):
        video = np.stack([squares(clip, crop) for clip in some])
        pixels = torch.from_numpy(video).permute(0, 4, 1, 2, 3).float().to(choose_device(device))
        made.append(run(lambda x: network(x, rescale=True, resize=True, return_features=True), pixels, path))
    return np.concatenate(made)[:, None]


def videomae_features(
    clips: Sequence[np.ndarray], path: str, crop: bool = False, device: str = "auto", batch: int = 8
) -> np.ndarray:
    """Return VideoMAE's features (clips, 1, width): the mean over its tokens.

    A TorchScript file takes `b c t 224 224` in [0, 1], as in cd-fvd's VideoMAE v2; for a folder of transformers its
    preprocessor_config.json says how pixels are normalised.
    """
    if is_script(path):
        return scripted(clips, path, crop, device, batch, lambda pixels: pixels)
    network = load_folder(path, ("VideoMAEModel", "VideoMAEForVideoClassification", "VideoMAEForPreTraining"), device)
    config, how = network.config, read_normalisation(path)
    check_frames(clips, config.num_frames, path)
    base = network if hasattr(network, "embeddings") else network.videomae
    norm = getattr(network, "fc_norm", None)

    def features(pixels: Tensor) -> Tensor:
        # The encoder of the library ends in a norm or, for classification, leaves it to `fc_norm` after the mean.
        mean = base(pixels.transpose(1, 2)).last_hidden_state.mean(dim=1)
        return mean if norm is None else norm(mean)

    return fed(clips, config.image_size, features, path, crop, device, batch, how)


def vjepa_features(
    clips: Sequence[np.ndarray], path: str, crop: bool = False, device: str = "auto", batch: int = 4
) -> np.ndarray:
    """Return V-JEPA's features (clips, 1, width): of the attentive pooler where the folder has one, else the mean.

    A TorchScript file takes `b c t 224 224` normalised by ImageNet's mean and deviation: V-JEPA ViT-H/16 with the
    pooler of its probe on Something-Something v2 gives JEDi's published figures. A folder is a V-JEPA 2.
    """
    if is_script(path):
        return scripted(clips, path, crop, device, batch, normalised)
    network = load_folder(path, ("VJEPA2Model", "VJEPA2ForVideoClassification"), device)
    config, how = network.config, read_normalisation(path)
    tubes = config.tubelet_size
    if clips[0].shape[0] % tubes:
        raise ValueError(
            f"{path}: found clips of {count_text(clips[0].shape[0], 'frame')}, expected a multiple of {tubes}"
        )
    pooler, base = getattr(network, "pooler", None), getattr(network, "vjepa2", network)

    def features(pixels: Tensor) -> Tensor:
        tokens = base(pixel_values_videos=pixels.transpose(1, 2), skip_predictor=True).last_hidden_state
        return tokens.mean(dim=1) if pooler is None else pooler(tokens).flatten(1)

    return fed(clips, config.crop_size, features, path, crop, device, batch, how)


def check_frames(clips: Sequence[np.ndarray], frames: int, path: str) -> None:
    """Raise if clips do not have the number of frames that a network was trained with."""
    if clips[0].shape[0] != frames:
        raise ValueError(f"{path}: found clips of {count_text(clips[0].shape[0], 'frame')}, expected {frames}")


def scripted(
    clips: Sequence[np.ndarray], path: str, crop: bool, device: str, batch: int, scale: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Return the features (clips, 1, width) that a TorchScript file gives for `b c t 224 224`."""
    network = load_script(path, device)
    made = [run(network, as_input(some, SIDE, crop, scale, device), path) for some in batches(clips, batch)]
    return np.concatenate(made)[:, None]


def fed(
    clips: Sequence[np.ndarray],
    side: int,
    features: Callable[[Tensor], Tensor],
    path: str,
    crop: bool,
    device: str,
    batch: int,
    how: dict[str, list[float]],
) -> np.ndarray:
    """Return the features (clips, 1, width) of a network that takes normalised pixels of this side."""
    made = [
        run(features, as_input(some, side, crop, lambda pixels: normalised(pixels, **how), device), path)
        for some in batches(clips, batch)
    ]
    return np.concatenate(made)[:, None]


def as_input(
    clips: Sequence[np.ndarray], side: int, crop: bool, scale: Callable[[Tensor], Tensor], device: str
) -> Tensor:
    """Return clips as float32 `b c t side side`."""
    pixels = torch.stack([scale(resized(squares(clip, crop), side)) for clip in clips])
    return pixels.transpose(1, 2).to(choose_device(device))


@torch.inference_mode()
def run(features: Callable[[Tensor], Tensor], pixels: Tensor, path: str) -> np.ndarray:
    """Return features (clips, width); ValueError, with the file's name, if the network fails on these pixels."""
    try:
        return to_features(features(pixels), len(pixels), path)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: cannot read {tuple(pixels.shape)}: {last_line(error)}") from error


def last_line(error: Exception) -> str:
    """Return the last line of a message, where TorchScript says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:160]


fvd = SetMetric(
    "fvd",
    LOWER,
    i3d_features,
    frechet_distance,
    Weights("I3D (i3d_torchscript.pt)", "github.com/universome/stylegan-v, src/metrics", script=True),
)
cdfvd = SetMetric(
    "cdfvd",
    LOWER,
    videomae_features,
    frechet_distance,
    Weights(
        "VideoMAE (vit_g_hybrid_pt_1200e_ssv2_ft, or MCG-NJU/videomae-base)",
        "github.com/songweige/content-debiased-fvd or the Hugging Face hub",
        script=True,
        folder=True,
        modules=("transformers",),
    ),
)
jedi = SetMetric(
    "jedi",
    LOWER,
    vjepa_features,
    jedi_distance,
    Weights(
        "V-JEPA (vith16 with ssv2-probe, or facebook/vjepa2-vitl-fpc64-256)",
        "github.com/facebookresearch/jepa or the Hugging Face hub",
        script=True,
        folder=True,
        modules=("transformers",),
    ),
    fewest=200,
)
