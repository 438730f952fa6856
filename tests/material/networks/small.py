"""Small networks with random weights and the interfaces of metrics' networks: TorchScript files and folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

MEAN, DEVIATION = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


class SmallI3D(nn.Module):
    """The interface of StyleGAN-V's i3d_torchscript.pt: raw pixels, it scales and resizes if asked to."""

    def __init__(self, width: int = 6, side: int = 16) -> None:
        super().__init__()
        self.side = side
        self.layer = nn.Conv3d(3, width, (4, 4, 4), stride=(2, 4, 4))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if resize:
            b, c, t, h, w = x.shape
            x = F.interpolate(x.reshape(b, c * t, h, w), size=[self.side, self.side], mode="bilinear")
            x = x.reshape(b, c, t, self.side, self.side)
        if rescale:
            x = 2 * x / 255 - 1
        features = self.layer(x).relu().mean(dim=[2, 3, 4])
        return features if return_features else self.head(features).softmax(dim=1)


class SmallInception(nn.Module):
    """The interface of StyleGAN's inception-2015-12-05.pt: uint8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 4, stride=2)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        if x.dtype != torch.uint8 or not return_features:
            raise RuntimeError("expected uint8 and return_features")
        return self.layer(x.float() / 255).relu().mean(dim=[2, 3])


class MeanColour(nn.Module):
    """Features that can be computed by hand: the mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4])


class Darkness(nn.Module):
    """The logarithm of how far each channel is from white: of a white clip it is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 - x.mean(dim=[2, 3, 4])).log()


def save_script(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network.eval()).save(str(path))
    return path


def save_folder(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": DEVIATION}))
    return folder
