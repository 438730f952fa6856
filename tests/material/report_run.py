"""An invented run folder in the form that training and evaluation write: discs with slightly wrong sampled speed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from videodiff.data.video.encode import encode
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import Scene, render

FRAMES, FPS, GIVEN = 16, 8.0, 3


def sampled_like(scene: Scene, error: float) -> Scene:
    """Return the scene with its discs running `error` too fast after the given frames."""
    drift = np.cumsum(scene.velocity, axis=0) / scene.fps
    late = np.maximum(np.arange(len(drift)) - GIVEN, 0)[:, None, None] / len(drift)
    position = scene.position + error * late * (drift - drift[GIVEN])
    return Scene(position, scene.velocity, scene.radius, scene.colour, scene.fps, scene.caption, scene.law)


def write_run(root: Path, size: int = 32, clips: int = 4, steps: int = 2000, caption: str | None = None) -> Path:
    """Write a whole run folder and return it."""
    rng = np.random.default_rng(0)
    (root / "evaluation").mkdir(parents=True)
    (root / "config.yaml").write_text("model:\n  _target_: videodiff.denoiser.Transformer\n  width: 192\nseed: 0\n")
    (root / "command.txt").write_text(
        f"videodiff train experiment=bouncing name={root.name} trainer.max_steps={steps}\n"
    )
    (root / "environment.json").write_text(json.dumps(environment()))
    write_metrics(root / "metrics.csv", steps, rng)
    write_clips(root, size, clips, caption)
    for step in np.linspace(0, steps, 5).astype(int)[1:]:
        write_samples(root / "samples" / f"step_{step:08d}", step / steps, size, rng)
    labels = {f"clip_{i}": f"sample {i} of <b>{caption or 'a ball'}</b>" for i in range(3)}
    (root / "samples" / "captions.json").write_text(json.dumps(labels))
    (root / "evaluation.json").write_text(json.dumps(evaluation()))
    return root


def environment() -> dict[str, object]:
    return {
        "date": "2026-11-20T19:05:11+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "lightning": "2.6.6"},
        "git": {"commit": "4f2c1d0e9ab87c66d5e4f3a2b1c0d9e8f7a6b5c4", "changed": []},
        "machine": {"system": "Linux", "processor": "AMD EPYC 9R14", "cores": 2, "gpus": []},
    }


def evaluation() -> dict[str, object]:
    table = [
        {"name": "model", "kind": "model", "velocity_error": 0.0412, "shape_error": 0.031, "caption_accuracy": 0.94},
        {"name": "last frame held", "kind": "reference", "velocity_error": 2.5, "shape_error": 0.0},
        {"name": "training-mean speed", "kind": "reference", "velocity_error": 0.75, "shape_error": 0.0},
        {"name": "speed clamped to training", "kind": "reference", "velocity_error": 0.11, "shape_error": 0.0},
        {"name": "true video, parsed", "kind": "floor", "velocity_error": 0.0013, "shape_error": 0.004},
        {"name": "constant velocity", "kind": "floor", "velocity_error": 0.0061},
    ]
    for row in table:
        row["clips"] = 256
        row.update({f"{key}_stderr": 0.06 * value for key, value in list(row.items())[2:-1] if value})
    return {
        "dataset": "datasets/held_out",
        "velocity_error": 0.0412,
        "velocity_error_stderr": 0.0025,
        "caption_accuracy": 0.94,
        "caption_accuracy_stderr": 0.015,
        "shape_error": 0.031,
        "shape_error_stderr": 0.0019,
        "clips": 256,
        "targets": {"velocity_error": 0.05, "caption_accuracy": 0.95, "shape_error": 0.05},
        "metrics": {
            "velocity_error": {"better": "lower", "unit": "units/s", "range": [0, None]},
            "shape_error": {"better": "lower", "unit": "", "range": [0, None]},
            "caption_accuracy": {"better": "higher", "unit": "", "range": [0, 1]},
        },
        "table": table,
    }


def write_metrics(path: Path, steps: int, rng: np.random.Generator) -> None:
    """Write a table as Lightning's CSVLogger does: one row a call, most cells empty."""
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    tau = [f"val/loss_tau_{level}" for level in levels]
    header = ["epoch", "lr-AdamW", "step", "train/clips_per_s", "train/loss", *tau, "val/loss"]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, header)
        table.writeheader()
        for step in range(9, steps, 10):
            loss = (0.03 + np.exp(-step / (steps / 12)) * 0.7) * rng.lognormal(0, 0.22)
            rate = 3e-3 * min(step / (steps / 20), 1, 5 * (1 - step / steps))
            row = {"step": step, "epoch": 0, "train/loss": loss, "lr-AdamW": rate}
            table.writerow(row | ({"train/clips_per_s": 90 + rng.normal() * 2} if step % 50 == 49 else {}))
        for step in np.linspace(steps / 10, steps, 10).astype(int):
            losses = [(0.01 + 0.5 * level**2) * (0.25 + np.exp(-step / (steps / 5))) for level in levels]
            table.writerow(
                {"step": step, "epoch": 0, "val/loss": np.mean(losses), **dict(zip(tau, losses, strict=True))}
            )


def write_clips(root: Path, size: int, clips: int, caption: str | None) -> None:
    """Write evaluation/clips.json and its videos: continuations, then clips from their captions."""
    world, entries = Bouncing(frames=FRAMES, fps=FPS, balls={1: 0.7, 2: 0.3}, split="all"), []
    for i in range(2 * clips):
        scene = world.scene(i)
        videos = {"sampled": render(sampled_like(scene, 0.3), size), "truth": render(scene, size)}
        for name, frames in videos.items():
            (root / "evaluation" / f"{i}_{name}.mp4").write_bytes(encode(frames, FPS))
        task = {"task": "continuation", "given_frames": GIVEN} if i < clips else {"task": "text_to_video"}
        paths = {name: f"evaluation/{i}_{name}.mp4" for name in videos}
        if i >= clips:
            paths["truth"] = None
        entries.append({"caption": caption or scene.caption, "fps": FPS, "given_frames": 0, **task, **paths})
    (root / "evaluation" / "clips.json").write_text(json.dumps(entries))


def write_samples(folder: Path, learned: float, size: int, rng: np.random.Generator) -> None:
    """Write the samples of one step: the less was learned, the more noise."""
    folder.mkdir(parents=True)
    for i in range(3):
        clean = render(Bouncing(frames=FRAMES, fps=FPS).scene(100 + i), size).astype(float)
        noisy = clean + (1 - learned) * (rng.normal(0, 90, clean.shape) + 0.7 * (128 - clean))
        (folder / f"clip_{i}.mp4").write_bytes(encode(noisy.clip(0, 255).astype(np.uint8), FPS))
