"""videodiff evaluate: sample a run on the clips of a dataset and measure what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from videodiff.codec.pixels import scale_pixels
from videodiff.data.buckets import Bucket
from videodiff.data.clips import Clips, Reader
from videodiff.data.encode import encode
from videodiff.data.files import owning, write_whole
from videodiff.data.manifest import Manifest
from videodiff.diffusion.generation import clip_noise
from videodiff.metrics.consistency import consistency
from videodiff.metrics.fidelity import psnr
from videodiff.metrics.physics import continuation, text_to_video
from videodiff.metrics.reference import PREDICTORS, measure
from videodiff.metrics.summary import predictor_table, summarise
from videodiff.training.callbacks import to_frames
from videodiff.verbs.build import Model, load_run
from videodiff.verbs.sample import generation_of, latent_mask, latent_shape, sample_videos
from videodiff.worlds.scene import Scene

TASKS = ("continuation", "text_to_video")


class Clip(NamedTuple):
    """One clip of the dataset: frames uint8 `t h w c`, and the exact scene where it comes from a world."""

    key: str
    caption: str
    fps: float
    frames: np.ndarray
    scene: Scene | None


def run(cfg: DictConfig) -> None:
    """Evaluate; a run folder may be trained in meanwhile, but not evaluated twice at a time."""
    with owning(Path(cfg.run) / "evaluation", "evaluate"):
        evaluate(cfg)


def evaluate(cfg: DictConfig) -> None:
    """Sample every task, write evaluation.json, and some clips for the report."""
    unknown = [task for task in cfg.tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"tasks: found {unknown[0]!r}, expected some of {', '.join(TASKS)}")
    run_cfg, model, checkpoint = load_run(cfg.run, cfg.checkpoint, cfg.trust)
    if not 0 < cfg.given < run_cfg.data.frames:
        raise ValueError(f"given: found {cfg.given}, expected 1 to {run_cfg.data.frames - 1} of the run's frames")
    clips = read_clips(dataset_of(cfg, run_cfg), cfg.clips, run_cfg)
    sampled = {task: list(sample_task(task, clips, cfg, run_cfg, model)) for task in cfg.tasks}
    result = {"checkpoint": str(checkpoint), "clips": len(clips), "given_frames": cfg.given}
    result |= measure_all(clips, sampled, cfg.given)
    targets = dict(run_cfg.get("targets") or {})
    result["targets"] = {name: value for name, value in targets.items() if name in result}
    folder = Path(cfg.run)
    keep_clips(folder, clips, sampled, cfg)
    write_whole(folder / "evaluation.json", json.dumps(result, indent=1).encode())
    print(format_result(result))


def dataset_of(cfg: DictConfig, run_cfg: DictConfig) -> str | None:
    """Return the dataset to measure on; an address that only the run's folder names is an error, and not asked."""
    root = run_cfg.data.validation_root
    if cfg.dataset is None and root is not None and ":" in root and not Path(root).is_dir():
        raise ValueError(
            f"dataset: found none, and {cfg.run}/config.yaml names {root}, an address that is not asked because a "
            f"folder says so; expected dataset={root} on this command line if it is to be"
        )
    return root if cfg.dataset is None else cfg.dataset


def read_clips(root: str | None, count: int, run_cfg: DictConfig) -> list[Clip]:
    """Read the first clips of a dataset as a run sees them."""
    if root is None:
        raise ValueError("dataset: found none and the run has no data.validation_root, expected a dataset folder")
    manifest = Manifest.load(root)
    if len(manifest) < count:
        raise ValueError(f"clips: found {count}, expected at most the {len(manifest)} of {root}")
    data = run_cfg.data
    shape = Bucket(data.frames, data.height, data.width, strides=(data.stride,))
    dataset, reader, clips = Clips(manifest, [shape], fixed=True, any_size=True), Reader([manifest.root]), []
    for i in range(count):
        sample = reader.alone(dataset.task(i))
        truth, frames = sample["truth"], sample["video"]
        scene = Scene.from_truth(truth, sample["caption"]) if truth and len(truth["position"]) == len(frames) else None
        clips.append(Clip(sample["key"], sample["caption"], float(sample["fps"]), frames, scene))
    return clips


def sample_task(
    task: str, clips: list[Clip], cfg: DictConfig, run_cfg: DictConfig, model: Model
) -> Iterator[np.ndarray]:
    """Yield the sampled frames of each clip, uint8 `t h w c`."""
    generation = generation_of(cfg, run_cfg)
    shape = latent_shape(model, run_cfg.data.frames, run_cfg.data.height, run_cfg.data.width)
    for start in tqdm(range(0, len(clips), cfg.batch), desc=task, unit="batch"):
        part = clips[start : start + cfg.batch]
        noise = clip_noise(shape, [cfg.seed + start + i for i in range(len(part))])
        video, known = (None, None) if task == "text_to_video" else given_frames(part, cfg.given, model)
        made = sample_videos(model, generation, [c.caption for c in part], part[0].fps, noise, video, known)
        yield from (to_frames(clip) for clip in made)


def given_frames(clips: list[Clip], given: int, model: Model) -> tuple[Tensor, Tensor]:
    """Return the clips as `b c t h w` in [-1, 1] and the mask of known latents (b, t): the first `given` frames."""
    frames = np.stack([clip.frames for clip in clips])
    known = torch.zeros(frames.shape[:2], dtype=torch.bool)
    known[:, :given] = True
    return scale_pixels(torch.from_numpy(frames).permute(0, 4, 1, 2, 3)), latent_mask(known, model.codec.compression[0])


def measure_all(clips: list[Clip], sampled: dict[str, list[np.ndarray]], given: int) -> dict[str, Any]:
    """Return the flat numbers and the table of evaluation.json."""
    result: dict[str, Any] = {}
    for task, videos in sampled.items():
        result |= {f"{task}_{name}": value for name, value in summarise([consistency(v) for v in videos]).items()}
    result |= {f"truth_{name}": value for name, value in summarise([consistency(c.frames) for c in clips]).items()}
    if any(clip.scene is None for clip in clips):
        return result | (footage(clips, sampled["continuation"], given) if "continuation" in sampled else {})
    if "text_to_video" in sampled:
        followed = [text_to_video(v, c.caption, c.fps) for c, v in zip(clips, sampled["text_to_video"], strict=True)]
        result |= summarise(followed)
    if "continuation" in sampled:
        scenes = [clip.scene for clip in clips]
        size = clips[0].frames.shape[1]
        made = zip(sampled["continuation"], scenes, strict=True)
        predictors = {"model": [continuation(v, s, given) for v, s in made]}
        predictors |= {name: [measure(p, s, given, size) for s in scenes] for name, p in PREDICTORS.items()}
        predictors["ground truth"] = [continuation(c.frames, c.scene, given) for c in clips]
        result |= headline(predictors) | {"table": predictor_table(predictors)}
    return result


def footage(clips: list[Clip], sampled: list[np.ndarray], given: int) -> dict[str, Any]:
    """Return how close the predicted frames of continuations are to the true ones, where no scene tells the motion."""
    truth = [clip.frames[given:] for clip in clips]
    held = [np.broadcast_to(clip.frames[given - 1], t.shape) for clip, t in zip(clips, truth, strict=True)]
    rows = {"model": [frames[given:] for frames in sampled], "last frame held": held}
    predictors = {name: [{"psnr": psnr(m, t)} for m, t in zip(made, truth, strict=True)] for name, made in rows.items()}
    static = summarise(predictors["last frame held"])
    numbers = summarise(predictors["model"])
    numbers |= {"psnr_static": static["psnr"], "psnr_static_stderr": static["psnr_stderr"]}
    return numbers | {"table": predictor_table(predictors)}


def headline(predictors: dict[str, list[dict[str, float]]]) -> dict[str, float | None]:
    """Return the model's numbers and, beside its velocity error, those of the predictors to compare it with."""
    numbers = summarise(predictors["model"])
    beside = {
        "velocity_error_static": ("last frame held", "velocity_error"),
        "velocity_error_constant": ("constant velocity", "velocity_error"),
        "position_error_last_static": ("last frame held", "position_error_last"),
        "parser_floor": ("ground truth", "velocity_error"),
    }
    for name, (predictor, metric) in beside.items():
        found = summarise(predictors[predictor])
        numbers[name], numbers[f"{name}_stderr"] = found[metric], found[f"{metric}_stderr"]
    for name in ("velocity_error", "position_error_last"):
        numbers[f"{name}_of_static"] = numbers[name] / numbers[f"{name}_static"]
    return numbers


def keep_clips(folder: Path, clips: list[Clip], sampled: dict[str, list[np.ndarray]], cfg: DictConfig) -> None:
    """Write the first clips of each task, with their truth, as mp4 and list them in evaluation/clips.json."""
    out, records = folder / "evaluation", []
    out.mkdir(parents=True, exist_ok=True)
    for task, videos in sampled.items():
        for i, (clip, frames) in enumerate(zip(clips[: cfg.keep], videos[: cfg.keep], strict=True)):
            record = {"task": task, "key": clip.key, "caption": clip.caption, "fps": clip.fps}
            record |= {"given_frames": cfg.given if task == "continuation" else 0}
            for name, shown in (("sampled", frames), ("truth", clip.frames if task == "continuation" else None)):
                path = f"evaluation/{task}_{i:03d}_{name}.mp4"
                record[name] = None if shown is None else path
                if shown is not None:
                    (folder / path).write_bytes(encode(shown, clip.fps, crf=10))
            records.append(record)
    write_whole(out / "clips.json", json.dumps(records, indent=1).encode())


def format_result(result: dict[str, Any]) -> str:
    """Return the numbers as lines, each with its standard error."""
    lines = []
    for name, value in result.items():
        if isinstance(value, float) and not name.endswith("_stderr"):
            error = result.get(f"{name}_stderr")
            target = result["targets"].get(name)
            lines.append(
                f"{name:<44}{value:10.4f}{f' ± {error:.4f}' if error is not None else ''}"
                f"{f'   target {target}' if target is not None else ''}"
            )
    return "\n".join(lines)
