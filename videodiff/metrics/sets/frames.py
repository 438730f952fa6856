"""Distances of single frames: FID over the frames of all clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from videodiff.metrics.metric import Quantity
from videodiff.metrics.networks.loading import choose_device, load_script
from videodiff.metrics.networks.pixels import squares
from videodiff.metrics.sets.moments import frechet_distance
from videodiff.metrics.sets.set_metric import SetMetric
from videodiff.metrics.sets.video import run
from videodiff.metrics.weights import Weights


def inception_features(
    clips: Sequence[np.ndarray], path: str, crop: bool = False, device: str = "auto", batch: int = 64
) -> np.ndarray:
    """Return Inception's features (clips, frames, 2048), as StyleGAN asks for them: the network itself resizes."""
    network, frames = load_script(path, device), len(clips[0])
    pixels = torch.from_numpy(np.concatenate([squares(clip, crop) for clip in clips])).permute(0, 3, 1, 2)
    rows = [
        run(lambda x: network(x, return_features=True), some.to(choose_device(device)), path)
        for some in pixels.split(batch)
    ]
    return np.concatenate(rows).reshape(len(clips), frames, -1)


fid = SetMetric(
    "fid",
    Quantity("lower", "", 0.0),
    inception_features,
    frechet_distance,
    Weights("Inception (inception-2015-12-05.pt)", "github.com/NVlabs/stylegan3, metrics", script=True),
)
