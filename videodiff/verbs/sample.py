"""videodiff sample: clips from captions, and from given frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from videodiff import __version__
from videodiff.data.loader.trained import Trained, begun, read_trained, usual
from videodiff.data.loader.wording import fit_captions
from videodiff.data.samples.manifest import Manifest
from videodiff.data.storage.files import owning
from videodiff.data.video.decode import decode, probe, resize
from videodiff.generation.files import add_clip
from videodiff.generation.known import find_known
from videodiff.generation.sampling import Wanted, sample_clips
from videodiff.generation.settings import Generation
from videodiff.text.words import Words
from videodiff.verbs.config.build import Model, check_shape, load_run, read_run
from videodiff.verbs.printing import say

# Settings of a sampler that a verb overrides.
SETTINGS = ("steps", "scale", "shift")


class Given(NamedTuple):
    """Frames of a video that a clip keeps: their places in the clip, and uint8 `k h w c`."""

    known: tuple[int, ...]
    frames: np.ndarray


def run(cfg: DictConfig) -> None:
    """Sample one clip a prompt and write it as mp4, with a JSON beside it that makes it again."""
    read_run(cfg.run, cfg.trust)
    prompts = [cfg.prompts] if isinstance(cfg.prompts, str) else list(cfg.prompts)
    prompts = prompts or ([""] if cfg.given is not None else [])
    if not prompts:
        raise ValueError(
            'prompts: found none, expected for example prompts=["a red ball moves left"], or given=<video>'
        )
    run_cfg, model, checkpoint = load_run(cfg.run, cfg.checkpoint, cfg.trust)
    check_prompts(prompts, model)
    step = step_of(checkpoint)
    trained = begun(trained_of(Path(cfg.run), run_cfg), step)
    shape = shape_of(cfg, trained, run_cfg, model)
    generation = generation_of(cfg, run_cfg)
    video = None if cfg.given is None else read_given(Path(cfg.given))
    fps = rate_of(cfg.fps, trained, shape, None if video is None else probe(video).fps)
    given = Given((), np.empty(0)) if video is None else place(video, cfg, shape, fps, model)
    facts = {"run": str(cfg.run), "checkpoint": str(checkpoint), "step": step}
    facts |= {"fps": fps, "frames": shape[0], "height": shape[1], "width": shape[2]}
    facts |= {"sampler": settings_of(generation), "known": list(given.known), "given": None}
    if video is not None:
        facts["given"] = {"path": str(cfg.given), "sha256": hashlib.sha256(video).hexdigest()}
    facts |= {"versions": {"videodiff": __version__, "torch": torch.__version__}}
    out = Path(cfg.out or Path(cfg.run) / "generated")
    with owning(out, "sample"):
        for i, prompt in enumerate(prompts):
            wanted = Wanted(prompt, fps, cfg.seed + i, given.known, given.frames)
            (frames,) = sample_clips(model, generation, [wanted], shape)
            path = add_clip(out, frames, fps, {"prompt": prompt, "seed": wanted.seed, **facts})
            say(f"{path}: {prompt}")
    say(f"videodiff sample: {len(prompts)} clips from {checkpoint}")


def step_of(checkpoint: Path) -> int:
    """Return how many steps a checkpoint has taken."""
    return json.loads((checkpoint / "checkpoint.json").read_text())["step"]


def check_prompts(prompts: Sequence[str], model: Model) -> None:
    """Raise where a prompt is not text or has what the encoder does not take, before anything is sampled."""
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts[{number}]: found {prompt!r}, expected text")
        if isinstance(model.text, Words) and (fault := model.text.fault(prompt)):
            raise ValueError(f"prompts[{number}]: {fault}")
        if left_out := fit_captions([prompt], model.text)[1]:
            say(f"prompts[{number}]: {left_out}")
    if hasattr(model.text, "tokens"):
        for number, tokens in enumerate(model.text.tokens(prompts)):
            if tokens > model.text.max_length:
                say(f"prompts[{number}]: found {tokens} tokens, cut at text.max_length = {model.text.max_length}")


def generation_of(cfg: DictConfig, run_cfg: DictConfig) -> Generation:
    """Return the sampler of a verb, or that of the run, with the settings that the verb overrides."""
    chosen = {key: cfg[key] for key in SETTINGS if cfg[key] is not None}
    return instantiate(cfg.sampler if cfg.get("sampler") else run_cfg.sampler, **chosen)


def settings_of(generation: Generation) -> dict[str, Any]:
    """Return the settings of a sampler as plain values."""
    names = ("steps", "scale", "shift", "interval", "lead")
    return {"name": generation.sampler.__name__, **{name: getattr(generation, name) for name in names}}


def trained_of(run: Path, run_cfg: DictConfig) -> list[Trained]:
    """Return the shapes and rates of a run; what one of old does not tell is read from its configuration and data."""
    found = read_trained(run)
    if found is not None:
        return found
    data, root = run_cfg.data, run_cfg.data.get("root") or ":"
    stages = data.get("stages") or [{"buckets": data.get("buckets")}]
    shapes = stages[-1].get("buckets") or [{"frames": data.frames, "height": data.height, "width": data.width}]
    found = []
    for rule in shapes:
        strides = tuple(rule.get("strides") or (data.stride,))
        shape = rule["frames"], rule["height"], rule["width"]
        found.append(Trained(0, *shape, strides, 1 / len(shapes), rates_at(root, strides)))
    return found


def rates_at(root: str, strides: Sequence[int]) -> dict[float, float]:
    """Return the rates of a dataset, none where it is out of reach."""
    # An address that a folder names is not asked.
    if ":" in root and not Path(root).is_dir():
        return {}
    try:
        rates, count = np.unique(Manifest.load(root).column("fps"), return_counts=True)
    except (OSError, ValueError):
        return {}
    pairs = sorted(zip(count.tolist(), rates.tolist(), strict=True), reverse=True)
    return {rate / strides[0]: number / count.sum() for number, rate in pairs}


def shape_of(cfg: DictConfig, trained: Sequence[Trained], run_cfg: DictConfig, model: Model) -> tuple[int, int, int]:
    """Return the shape `t h w` to sample in: a trained one unless the command asks for another."""
    asked = {name: cfg[name] for name in ("frames", "height", "width") if cfg[name] is not None}
    # Of several trained shapes that have what is asked for, the usual one.
    matching = [one for one in trained if all(getattr(one, name) == value for name, value in asked.items())]
    shape = tuple(asked.get(name, getattr(usual(matching or trained), name)) for name in ("frames", "height", "width"))
    check_shape("", shape, run_cfg.model.patch, model.codec)
    if shape not in [one.shape for one in trained]:
        known = ", ".join(dict.fromkeys(" x ".join(map(str, one.shape)) for one in trained))
        say(f"videodiff sample: {' x '.join(map(str, shape))} is no shape of the training, which had {known}")
    return shape


def rate_of(
    asked: float | None, trained: Sequence[Trained], shape: tuple[int, int, int], given: float | None = None
) -> float:
    """Return the frames a second of a clip: as asked for, as trained, or those of a given video over the stride."""
    if asked is not None:
        if not 0 < asked < 1000:
            raise ValueError(f"fps: found {asked}, expected a number above 0 and below 1000")
        return float(asked)
    one = next((one for one in reversed(trained) if one.shape == shape), usual(trained))
    if one.rate is not None:
        return one.rate
    if given is not None:
        return given / one.strides[0]
    rates = ", ".join(f"{rate:g} ({share:.0%})" for rate, share in list(one.rates.items())[:5])
    trained_on = f"clips of {rates}" if rates else "a dataset that cannot be read now"
    raise ValueError(f"fps: found null, expected frames a second, as this run was trained on {trained_on}")


def read_given(path: Path) -> bytes:
    """Return a given video."""
    if not path.is_file():
        raise FileNotFoundError(f"given: found no file {path}, expected a video")
    return path.read_bytes()


def place(video: bytes, cfg: DictConfig, shape: tuple[int, int, int], fps: float, model: Model) -> Given:
    """Return the frames of a video that a clip of this shape and rate keeps: those that it shows at their times."""
    known, info = find_known(list(cfg.known), model.codec, shape[0]), probe(video)
    places = [round(number * info.fps / fps) for number in known]
    if len(set(places)) < len(places):
        raise ValueError(
            f"given: {cfg.given} has {info.fps:g} frames a second, expected at least {fps:g}, the rate of this clip "
            f"(fps={info.fps:g} samples at that of the video)"
        )
    if places[-1] >= info.frames:
        raise ValueError(
            f"given: {cfg.given} has {info.frames} frames, expected at least {places[-1] + 1} for "
            f"known={list(cfg.known)} of {shape[0]} frames at {fps:g} a second"
        )
    return Given(known, resize(decode(video, places), *shape[1:]))
