"""videodiff sample: clips from captions, and from given frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from videodiff.codec.pixels import scale_pixels
from videodiff.data.decode import decode, probe
from videodiff.data.encode import encode
from videodiff.data.files import owning
from videodiff.diffusion.generation import Generation, clip_noise
from videodiff.training.callbacks import to_frames
from videodiff.verbs.build import Model, fit_frames, load_run


def run(cfg: DictConfig) -> None:
    """Sample one clip a prompt and write it as mp4."""
    run_cfg, model, checkpoint = load_run(cfg.run, cfg.checkpoint, cfg.trust)
    prompts = list(cfg.prompts) or ([""] if cfg.given else [])
    if not prompts:
        raise ValueError(
            'prompts: found none, expected for example prompts=["a red ball moves left"], or given=<video>'
        )
    frames, fps = cfg.frames or run_cfg.data.frames, cfg.fps or 8.0
    clip, known = None, None
    if cfg.given is not None:
        clip, known, given_fps = given_clip(Path(cfg.given), list(cfg.known), frames, run_cfg, model.codec)
        fps = cfg.fps or given_fps
    shape = latent_shape(model, frames, run_cfg.data.height, run_cfg.data.width)
    out = Path(cfg.out or Path(cfg.run) / "generated")
    generation = generation_of(cfg, run_cfg)
    with owning(out, "sample"):
        for i, prompt in enumerate(prompts):
            noise = clip_noise(shape, [cfg.seed + i])
            video = sample_videos(model, generation, [prompt], fps, noise, clip, known)[0]
            path = out / f"{i:03d}.mp4"
            path.write_bytes(encode(to_frames(video), fps))
            print(f"{path}: {prompt}")
    print(f"videodiff sample: {len(prompts)} clips from {checkpoint}")


def generation_of(cfg: DictConfig, run_cfg: DictConfig) -> Generation:
    """Return the sampler of a verb, or that of the run, with the settings that the verb overrides."""
    generation = instantiate(cfg.sampler if cfg.get("sampler") else run_cfg.sampler)
    for key in ("steps", "scale", "shift"):
        if cfg[key] is not None:
            setattr(generation, key, cfg[key])
    return generation


def latent_shape(model: Model, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape `c t h w` that the denoiser works on for a video of this size."""
    _, fh, fw = model.codec.compression
    return model.codec.channels, model.codec.latent_frames(frames), height // fh, width // fw


def sample_videos(
    model: Model,
    generation: Generation,
    captions: list[str],
    fps: float,
    noise: Tensor,
    video: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Return videos `b c t h w` in [-1, 1] for these captions and noise.

    Frames marked in `known` (b, t), counted after the codec, are taken from `video` `b c t h w`.
    """
    device = next(model.denoiser.parameters()).device
    text, mask = model.text(captions)
    null_text, null_mask = model.text([""])
    condition = {"text": text, "text_mask": mask, "fps": torch.full((len(captions),), float(fps), device=device)}
    null = {"text": null_text, "text_mask": null_mask}
    clip = None if video is None else model.codec.encode(video.to(device))
    made = generation(
        model.denoiser, condition, null, model.objective.path, model.objective.prediction,
        noise.to(device), clip, None if known is None else known.to(device),
    )  # fmt: skip
    return model.codec.decode(made).cpu()


def given_clip(path: Path, known: list[int], frames: int, run_cfg: Any, codec: Any) -> tuple[Tensor, Tensor, float]:
    """Read a video and place its frames: returns the clip `1 c t h w`, the mask of known latents (1, t) and its fps."""
    if not path.is_file():
        raise FileNotFoundError(f"given: found no file {path}, expected a video")
    data = path.read_bytes()
    info = probe(data)
    indices = sorted({k + frames if k < 0 else k for k in known})
    if not indices or indices[0] < 0 or indices[-1] >= frames:
        raise ValueError(f"known: found {known}, expected frame numbers from {-frames} to {frames - 1}")
    if indices[-1] >= info.frames:
        raise ValueError(
            f"given: {path} has {info.frames} frames, expected at least {indices[-1] + 1} for known={known}"
        )
    read = fit_frames(decode(data, indices), run_cfg)
    clip = np.zeros((frames, *read.shape[1:]), dtype=np.uint8)
    clip[indices] = read
    mask = torch.zeros(1, frames, dtype=torch.bool)
    mask[0, indices] = True
    mask = latent_mask(mask, codec.compression[0])
    if not mask.any():
        raise ValueError(f"known: found {known}, expected the first frame too: this codec is causal")
    return scale_pixels(torch.from_numpy(clip)[None].permute(0, 4, 1, 2, 3)), mask, info.fps


def latent_mask(known: Tensor, compression: int) -> Tensor:
    """Return which latent frames are known, given the known video frames (b, t).

    A causal codec makes one latent of frame 0 and one of every `compression` frames after it, each from all frames up
    to its own: a latent is known if these are.
    """
    if compression == 1:
        return known
    groups = torch.cat([known[:, :1], known[:, 1:].unflatten(1, (-1, compression)).all(-1)], dim=1)
    return groups.cumprod(1).bool()
