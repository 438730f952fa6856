"""videodiff sample: clips from captions, and from given frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from videodiff import __version__
from videodiff.data.loader.trained import Trained, begun
from videodiff.data.storage.files import owning
from videodiff.data.video.decode import probe
from videodiff.generation.files import add_clip
from videodiff.generation.known import NONE, read_known
from videodiff.generation.prompts import check_prompts
from videodiff.generation.sampling import Wanted, sample_clips
from videodiff.generation.shape import SIDES, choose_rate, choose_shape, shapes_of_run, unlike_training
from videodiff.printing import say
from videodiff.training.state.checkpoint import read_record
from videodiff.verbs.config.build import Model, build_generation, check_shape, load_run, read_run


def run(cfg: DictConfig) -> None:
    """Sample one clip per prompt and write it as mp4, with a JSON file that allows to repeat it."""
    read_run(cfg.run, cfg.trust)
    prompts = [cfg.prompts] if isinstance(cfg.prompts, str) else list(cfg.prompts)
    prompts = prompts or ([""] if cfg.given is not None else [])
    if not prompts:
        raise ValueError(
            'prompts: found none, expected for example prompts=["a red ball moves left"], or given=<video>'
        )
    run_cfg, model, checkpoint = load_run(cfg.run, cfg.checkpoint, cfg.trust)
    for remark in check_prompts("prompts", prompts, model.text):
        say(remark)
    step = read_record(checkpoint)["step"]
    trained = begun(shapes_of_run(Path(cfg.run), run_cfg.data), step)
    shape = shape_of(cfg, trained, run_cfg, model)
    generation = build_generation(cfg, run_cfg)
    video = None if cfg.given is None else read_given(Path(cfg.given))
    fps = choose_rate(cfg.fps, trained, shape, None if video is None else probe(video).fps)
    known = NONE if video is None else read_known(str(cfg.given), video, list(cfg.known), model.codec, shape, fps)
    facts = {"run": str(cfg.run), "checkpoint": str(checkpoint), "step": step}
    facts |= {"fps": fps, "frames": shape[0], "height": shape[1], "width": shape[2]}
    facts |= {"sampler": generation.settings(), "known": list(known.numbers), "given": None}
    if video is not None:
        facts["given"] = {"path": str(cfg.given), "sha256": hashlib.sha256(video).hexdigest()}
    facts |= {"versions": {"videodiff": __version__, "torch": torch.__version__}}
    out = Path(cfg.out or Path(cfg.run) / "generated")
    with owning(out, "sample"):
        for i, prompt in enumerate(prompts):
            wanted = Wanted(prompt, fps, cfg.seed + i, *known)
            (frames,) = sample_clips(model, generation, [wanted], shape)
            path = add_clip(out, frames, fps, {"prompt": prompt, "seed": wanted.seed, **facts})
            say(f"{path}: {prompt}")
    say(f"videodiff sample: {len(prompts)} clips from {checkpoint}")


def shape_of(cfg: DictConfig, trained: Sequence[Trained], run_cfg: DictConfig, model: Model) -> tuple[int, int, int]:
    """Return the shape `t h w` to sample in: a trained one, or one that the command asks for and the model allows."""
    shape = choose_shape(trained, {name: cfg[name] for name in SIDES if cfg[name] is not None})
    check_shape("", shape, run_cfg.model.patch, model.codec)
    if remark := unlike_training(trained, shape):
        say(f"videodiff sample: {remark}")
    return shape


def read_given(path: Path) -> bytes:
    """Return a given video."""
    if not path.is_file():
        raise FileNotFoundError(f"given: found no file {path}, expected a video")
    return path.read_bytes()
