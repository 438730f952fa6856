"""The identity codec: the denoiser works on pixels."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from videodiff.pretrained import fingerprint


def scale_pixels(video: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in [-1, 1], on the device where they are."""
    if video.dtype != torch.uint8:
        raise ValueError(f"video: found pixels of type {video.dtype}, expected torch.uint8")
    # The loader permutes axes only as a view, so make the memory contiguous here.
    return video.contiguous().float() / 127.5 - 1


class Pixels(nn.Module):
    """The identity on clips `b c t h w` in [-1, 1]."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels, self.compression, self.causal = channels, (1, 1, 1), False
        self.name = f"Pixels of {channels} channels"

    @staticmethod
    def read_shape(channels: int = 3) -> tuple[int, tuple[int, int, int]]:
        """Return channels and compression `t h w` of the codec with these settings."""
        return channels, (1, 1, 1)

    @cached_property
    def fingerprint(self) -> str:
        """Return a sha-256 of everything that decides the latents."""
        return fingerprint({"codec": "Pixels", "channels": self.channels}, self)

    def latent_frames(self, t: int) -> int:
        """Return the number of latent frames of a clip of t frames."""
        return t

    def frames(self, latent_t: int) -> int:
        """Return the number of frames of a clip of `latent_t` latent frames."""
        return latent_t

    def encode(self, video: Tensor) -> Tensor:
        """Return the clip itself."""
        return video

    def decode(self, latent: Tensor) -> Tensor:
        """Return the clip itself."""
        return latent
