"""Any autoencoder of the diffusers library as a codec: an image model frame by frame, or a causal video model.

A causal model turns 1 + k ft frames into 1 + k latent frames (Yu et al. 2023, arXiv 2310.05737): its first latent frame
is a picture, so one frame is a video. Latents are normalised by channel, (raw - mean) / std, so that the noise of the
path has their size.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from videodiff.pretrained import essential, fingerprint, load_frozen, read_config
from videodiff.printing import no_warnings_logged
from videodiff.words import count_text


class Autoencoder(nn.Module):
    """A frozen diffusers autoencoder between clips `b 3 t h w` in [-1, 1] and normalised latents `b c t' h' w'`.

    `path_or_name` is a folder or a hub name. `mean` and `std`, one number per channel, replace the model's statistics.
    Larger clips are cut into tiles with a side of `tile` pixels; neighbours share the part `tile_overlap`. At most
    `slice_frames` frames pass the network at once, but a causal model always gets a whole clip. None: no limit.
    """

    def __init__(
        self,
        path_or_name: str,
        subfolder: str | None = None,
        dtype: str = "bfloat16",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        tile: int | None = None,
        tile_overlap: float = 0.25,
        slice_frames: int | None = None,
        revision: str = "main",
    ) -> None:
        super().__init__()
        config = read_config("codec", str(path_or_name), subfolder, revision)
        cls = autoencoder_class(config, Path(path_or_name, subfolder or ""))
        self.vae = load_frozen("codec", cls, str(path_or_name), subfolder, revision, dtype, low_cpu_mem_usage=False)
        self.kind, self.slice_frames = cls.__name__, slice_frames
        self.name = f"{self.kind} {Path(path_or_name, subfolder or '')}"
        self.settings: dict[str, Any] = {"codec": self.kind, "config": essential(config), "tile": tile}
        self.settings |= {"tile_overlap": tile_overlap} if tile is not None else {}
        self.causal = convolves_over_time(self.vae)
        self.channels, self.compression = latent_shape(self.vae)
        self.add_statistics(mean, std)
        if slice_frames is not None and slice_frames < 1:
            raise ValueError(f"codec.slice_frames: found {slice_frames}, expected at least 1, or null")
        if tile is not None:
            enable_tiling(self.vae, tile, tile_overlap, self.compression[1])

    @cached_property
    def fingerprint(self) -> str:
        """Return a sha-256 of everything that decides the latents; `slice_frames` does not."""
        return fingerprint(self.settings, self)

    def train(self, mode: bool = True) -> Autoencoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def latent_frames(self, t: int) -> int:
        """Return the number of latent frames of a clip of t frames; ValueError if t does not fit."""
        ft = self.compression[0]
        k, rest = divmod(t - 1, ft)
        if t < 1 or rest:
            near = f"{max(k, 0) * ft + 1}" + (f" or {(k + 1) * ft + 1}" if k >= 0 else "")
            raise ValueError(
                f"codec {self.kind}: found {count_text(t, 'frame')}, expected 1 + {ft} k (nearest: {near})"
            )
        return 1 + k

    def frames(self, latent_t: int) -> int:
        """Return the number of frames of a clip of `latent_t` latent frames."""
        return 1 + (latent_t - 1) * self.compression[0]

    @staticmethod
    def read_shape(
        path_or_name: str, subfolder: str | None = None, revision: str = "main", **other: Any
    ) -> tuple[int, tuple[int, int, int]]:
        """Return channels and compression `t h w` of the codec with these settings; only config.json is read."""
        config = read_config("codec", path_or_name, subfolder, revision)
        cls = autoencoder_class(config, Path(path_or_name, subfolder or ""))
        with torch.device("meta"):
            return latent_shape(cls.from_config(config))

    def encode(self, video: Tensor, generator: Generator | None = None) -> Tensor:
        """Return normalised latents, float32: the mode of the posterior, or a draw from it with a generator."""
        return (self.raw(video, generator) - self.mean) / self.std

    def raw(self, video: Tensor, generator: Generator | None = None) -> Tensor:
        """Return latents as the model gives them, before normalisation."""
        _, c, t, h, w = video.shape
        latent_t, (_, fh, fw) = self.latent_frames(t), self.compression
        if c != 3 or h % fh or w % fw:
            raise ValueError(
                f"codec {self.kind}: found clips of {count_text(c, 'channel')}, {h} x {w}, expected 3 channels, a "
                f"height divisible by {fh} and a width divisible by {fw}"
            )

        def network(part: Tensor) -> Tensor:
            posterior = self.vae.encode(part, return_dict=False)[0]
            if isinstance(posterior, Tensor):
                return posterior
            return posterior.mode() if generator is None else posterior.sample(generator)

        return self.run(network, video, t, (self.channels, latent_t, h // fh, w // fw))

    def decode(self, latent: Tensor) -> Tensor:
        """Return clips in [-1, 1], float32, of normalised latents."""
        _, c, latent_t, h, w = latent.shape
        if c != self.channels:
            raise ValueError(
                f"codec {self.kind}: found latents of {count_text(c, 'channel')}, expected {self.channels}"
            )
        t, (_, fh, fw) = self.frames(latent_t), self.compression

        def network(part: Tensor) -> Tensor:
            # CogVideoX decodes the latent frames after the first in pairs; the last one of an odd number is repeated.
            if self.kind == "AutoencoderKLCogVideoX" and latent_t % 2 == 0:
                part = torch.cat([part, part[:, :, -1:]], dim=2)
            # LTX decoders that were trained as the last denoising step take the remaining noise level: 0.
            last = {"temb": part.new_zeros(len(part))} if self.vae.config.get("timestep_conditioning") else {}
            made = self.vae.decode(part, return_dict=False, **last)[0]
            return made[:, :, :t] if self.causal else made

        return self.run(network, latent * self.std + self.mean, t, (3, t, h * fh, w * fw)).clamp(-1, 1)

    @torch.no_grad()
    def run(self, network: Callable[[Tensor], Tensor], clip: Tensor, t: int, expected: tuple[int, ...]) -> Tensor:
        """Pass a clip of t frames, or its latents, through a network in slices; check the shape of the result."""
        length, clip = clip.shape[2], clip.to(self.vae.dtype)
        limit = self.slice_frames or len(clip) * t
        rows = max(1, limit // t) if self.causal else limit
        clip = clip if self.causal else rearrange(clip, "b c t h w -> (b t) c h w")
        # The dtype of the codec also counts inside a trainer's autocast.
        with torch.autocast(clip.device.type, enabled=False):
            made = torch.cat([network(part) for part in clip.split(rows)])
        made = made if self.causal else rearrange(made, "(b t) c h w -> b c t h w", t=length)
        if tuple(made.shape[1:]) != expected:
            raise ValueError(
                f"codec {self.kind}: found {tuple(made.shape[1:])} (c t h w), expected {expected}: neither an image "
                f"nor a causal video autoencoder, or its tiles do not fit"
            )
        return made.float()

    def add_statistics(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Register the mean and standard deviation of each channel, (c, 1, 1, 1)."""
        if (mean is None) != (std is None):
            raise ValueError("codec.mean, codec.std: found only one of them, expected both or neither")
        if mean is None or std is None:
            mean, std = model_statistics(self.vae, self.channels)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != self.channels or not all(math.isfinite(v) for v in values):
                raise ValueError(f"codec.{name}: found {list(values)}, expected {self.channels} numbers, one a channel")
            self.register_buffer(name, torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1, 1))
        if min(std) <= 0:
            raise ValueError(f"codec.std: found {min(std)}, expected numbers above 0")


def autoencoder_class(config: dict[str, Any], where: Path) -> type:
    """Return the diffusers class that a config.json names; ValueError unless it is an autoencoder."""
    kind = config.get("_class_name")
    # A class is imported when it is asked for, and torchao with it, where that is installed: it warns of kernels that
    # no codec uses.
    with no_warnings_logged():
        cls = getattr(diffusers, kind, None) if isinstance(kind, str) and kind.startswith("Autoencoder") else None
    if not (inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin)):
        raise ValueError(
            f"codec: {where}: found the class {kind!r} in config.json, expected an autoencoder "
            f"of diffusers {diffusers.__version__}, such as AutoencoderKL or AutoencoderKLWan"
        )
    return cls


def setting(vae: nn.Module, *names: str) -> int | None:
    """Return the first of these that the model's configuration, or the model itself, has."""
    found = [vae.config.get(name) or getattr(vae, name, None) for name in names]
    return next((int(value) for value in found if value), None)


def convolves_over_time(vae: nn.Module) -> bool:
    """Return whether it is a video model."""
    return any(p.ndim == 5 for p in vae.encoder.parameters())


def latent_shape(vae: nn.Module) -> tuple[int, tuple[int, int, int]]:
    """Return the channels of a latent, and its compression: frames, rows and columns of pixels per latent."""
    over_time = convolves_over_time(vae)
    ft = setting(vae, "scale_factor_temporal", "temporal_compression_ratio") if over_time else 1
    side = setting(vae, "scale_factor_spatial", "spatial_compression_ratio")
    if side is None:
        levels = next(vae.config[k] for k in ("block_out_channels", "encoder_block_out_channels") if k in vae.config)
        side = 2 ** (len(levels) - 1)
    return setting(vae, "latent_channels", "z_dim"), (ft or 1, side, side)


def model_statistics(vae: nn.Module, channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel as the model publishes them, in any of its three ways."""
    mean, std = (vae.config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is None and isinstance(getattr(vae, "latents_mean", None), Tensor):
        mean, std = vae.latents_mean.tolist(), vae.latents_std.tolist()
    mean = [vae.config.get("shift_factor") or 0.0] * channels if mean is None else mean
    scale = vae.config.get("scaling_factor") or 1.0
    return list(mean), [s / scale for s in ([1.0] * channels if std is None else std)]


def enable_tiling(vae: nn.Module, tile: int, overlap: float, side: int) -> None:
    """Turn on diffusers' tiling in each of its three interfaces: a stride, an overlap factor, or two attributes."""
    shared = shared_pixels(tile, overlap, side)
    values = {"min": tile, "stride": tile - shared, "factor": shared / tile}
    known = [name for name in inspect.signature(vae.enable_tiling).parameters if name.endswith(("height", "width"))]
    vae.enable_tiling(**{name: next(v for key, v in values.items() if f"_{key}_" in name) for name in known})
    if not known:
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // side
        vae.tile_overlap_factor = shared / tile


def shared_pixels(tile: int, overlap: float, side: int) -> int:
    """Return the pixels that neighbouring tiles share: whole latents, near `overlap`, and exact in diffusers' rounding.

    If int(n * factor) and int(n * (1 - factor)) did not add up to n, tiles would be joined at wrong positions.
    """
    n = tile // side
    options = [k for k in range(1, n) if int(n * (k / n)) == k and int(n * (1 - k / n)) == n - k]
    if tile % side or not options:
        raise ValueError(f"codec.tile: found {tile}, expected at least {2 * side} pixels and a multiple of {side}")
    if not 0 < overlap < 1:
        raise ValueError(f"codec.tile_overlap: found {overlap}, expected a part of the tile between 0 and 1")
    return side * min(options, key=lambda k: abs(k - n * overlap))
