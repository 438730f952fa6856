"""videodiff evaluate: sample a run on the clips of a dataset and measure the samples."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.loader.quarantine import Quarantine
from videodiff.data.loader.settings import Reading
from videodiff.data.loader.trained import Trained, begun, usual
from videodiff.data.loader.wording import fit_captions
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.storage.files import owning, write_whole
from videodiff.data.tars.clips import first_clips
from videodiff.data.tars.source import TARS, find_tars, shown
from videodiff.data.video.decode import DecodeError
from videodiff.generation.files import write_clip
from videodiff.generation.known import check_given, first_frames, usual_given
from videodiff.generation.sampling import going_on, sample_all
from videodiff.generation.settings import Generation
from videodiff.generation.shape import shapes_of_run
from videodiff.metrics.evaluation import evaluate as measure
from videodiff.metrics.evaluation import of_clips, usable
from videodiff.metrics.metric import CONTINUATION, TASKS, Case
from videodiff.printing import say
from videodiff.report.leaderboard import BOARD, add_row
from videodiff.report.markdown import write_markdown
from videodiff.shipped.runs import find_run
from videodiff.training.state.checkpoint import read_record
from videodiff.verbs.config.build import Model, build_generation, load_run, read_run
from videodiff.verbs.config.measuring import build_metrics
from videodiff.worlds.truth import TruthError, read_scene

# The default number of given frames of a continuation.
GIVEN = 3
# The dataset counts as unreadable if more clips fail than this number plus the clips that could be read.
LOST = 100


def run(cfg: DictConfig) -> None:
    """Evaluate; the run may still be training, but only one evaluation may run at a time."""
    cfg.run = str(find_run(cfg.run))
    with owning(Path(cfg.run) / "evaluation", "evaluate"):
        evaluate(cfg)


def evaluate(cfg: DictConfig) -> None:
    """Check all that can be checked, sample every task, keep some clips for the report, measure, write the figures."""
    unknown = [task for task in cfg.tasks if task not in TASKS]
    if unknown or not cfg.tasks:
        raise ValueError(f"tasks: found {list(cfg.tasks)}, expected some of {', '.join(TASKS)}")
    for name, least in (("clips", 1), ("batch", 1), ("keep", 0)):
        if cfg[name] < least:
            raise ValueError(f"{name}: found {cfg[name]}, expected at least {least}")
    metrics, left_out = usable(build_metrics(cfg.get("metric")))
    folder, run_cfg = Path(cfg.run), read_run(cfg.run, cfg.trust)
    held_out = held_out_of(cfg, run_cfg)
    run_cfg, model, checkpoint = load_run(cfg.run, cfg.checkpoint, cfg.trust)
    generation = build_generation(cfg, run_cfg)
    shape = usual(begun(shapes_of_run(folder, run_cfg.data), read_record(checkpoint)["step"]))
    tasks, given = list(cfg.tasks), given_of(cfg, model, shape)
    if not given and CONTINUATION in tasks:
        tasks.remove(CONTINUATION)
        remark(f"continuation: left out, as a clip of {shape.frames} frames has none to continue")
    if not tasks:
        raise ValueError(f"tasks: found {list(cfg.tasks)}, expected text_to_video, the only task of this run")
    read = read_clips if isinstance(held_out, Manifest) else read_tars
    clips = [case._replace(given=given) for case in read(held_out, cfg.clips, shape)]
    if len(clips) < cfg.clips:
        remark(f"clips: found {len(clips)} in {name_of(held_out)}, fewer than {cfg.clips}: all of them are used")
    captions, cut = fit_captions([clip.caption for clip in clips], model.text)
    if cut:
        remark(f"{name_of(held_out)}: {cut}")
    # Measure the truth first: a figure that fails here would fail for the samples too, after hours of sampling.
    metrics, unfit = usable(metrics, clips)
    left_out |= unfit
    for reason in left_out.values():
        remark(f"left out: {reason}")
    measure(of_clips(metrics), clips, {task: [clip.truth for clip in clips] for task in tasks})
    sampled = {}
    for task in tasks:
        known = given if task == CONTINUATION else 0
        sampled[task] = sample_task(clips, captions, known, shape, generation, model, cfg, task)
    keep_clips(folder, clips, sampled, given, cfg.keep)
    result = {"checkpoint": str(checkpoint), "clips": len(clips), "given_frames": given, "seed": cfg.seed}
    result |= measure(metrics, clips, sampled, remark)
    result["targets"] = reachable(run_cfg.get("targets") or {}, result)
    result |= {"left_out": left_out} if left_out else {}
    write_whole(folder / "evaluation.json", json.dumps(result, indent=1).encode())
    write_markdown(folder / "evaluation.md", result)
    board = add_row(board_of(cfg), folder, result, {"dataset": name_of(held_out), "sampler": generation.settings()})
    say(format_result(result))
    say(f"{'leaderboard':<44}{board.with_suffix('.md')}")


def board_of(cfg: DictConfig) -> Path:
    """Return the leaderboard that gets a row: `leaderboard=`, or the one beside the run folder."""
    return Path(cfg.leaderboard) if cfg.leaderboard is not None else Path(cfg.run).resolve().parent / BOARD


def reachable(targets: Mapping[str, float], result: Mapping[str, Any]) -> dict[str, float]:
    """Return the targets of figures that were measured; name each target whose figure was not."""
    for name in targets.keys() - result["metrics"].keys():
        remark(f"targets.{name}: found no measured figure of this name")
    return {name: value for name, value in targets.items() if name in result["metrics"]}


def held_out_of(cfg: DictConfig, run_cfg: DictConfig) -> Manifest | list[str]:
    """Return what to measure on: a dataset, or tars without a manifest; `dataset=` may name either."""
    root, urls = cfg.dataset, None
    if root is None:
        root, urls = run_cfg.data.validation_root, run_cfg.data.get("validation_urls")
        for name in [root] if root is not None else listed(urls):
            refuse_address(name, cfg.run)
    elif root.partition("?")[0].endswith(TARS):
        root, urls = None, root
    if root is None and urls is None:
        raise ValueError(
            "dataset: found none, and the run has neither data.validation_root nor data.validation_urls: expected "
            "dataset=<a dataset folder, or tars>"
        )
    if root is not None:
        return Manifest.load(root)
    return find_tars(listed(urls), where="data.validation_urls" if cfg.dataset is None else "dataset")


def listed(urls: str | Sequence[str] | None) -> list[str]:
    """Return the addresses of tars as a list."""
    return [urls] if isinstance(urls, str) else list(urls or [])


def refuse_address(name: str, run: str) -> None:
    """Raise if a name in the configuration of a run is an address: nobody allowed it on this command line."""
    if ":" in name and not os.path.exists(name):
        raise ValueError(
            f"dataset: found none, and {run}/config.yaml names {name}, an address that only this folder gives, so it "
            f"is not contacted; expected dataset={name} on this command line to allow it"
        )


def name_of(held_out: Manifest | list[str]) -> str:
    """Return the name of what is measured on, for messages."""
    if isinstance(held_out, Manifest):
        return str(held_out.root)
    return shown(held_out[0]) + (f" and {len(held_out) - 1} more" if len(held_out) > 1 else "")


def remark(line: str) -> None:
    """Print a line about something that differs from what was asked for."""
    say(f"videodiff evaluate: {line}")


def given_of(cfg: DictConfig, model: Model, shape: Trained) -> int:
    """Return the number of given frames of a continuation; 0 if there can be none and none are asked for."""
    if cfg.given is None:
        return usual_given(model.codec, shape.frames, GIVEN)
    if CONTINUATION in cfg.tasks:
        check_given("given", cfg.given, model.codec, shape.frames)
    return cfg.given if cfg.given in first_frames(model.codec, shape.frames) else 0


def read_clips(manifest: Manifest, count: int, shape: Trained) -> list[Case]:
    """Read the first clips of a dataset that fit and can be read, in the shape of the run."""
    dataset = Clips(manifest, [shape.bucket], fixed=True, skip=True, any_size=True)
    reader, clips, lost = Reader([manifest.root]), [], {}
    for line in dataset.said:
        remark(f"{manifest.root}: {line}")
    for index in dataset.fitting():
        task = dataset.task(index)
        try:
            clips.append(as_case(reader.alone(task)))
        except (DecodeError, ManifestError, TruthError) as error:
            lost[task.row["key"]] = str(error)
        if len(clips) == count or len(lost) > LOST + len(clips):
            break
    if lost and clips:
        remark(f"{manifest.root}: {len(lost)} clips cannot be read, the first one: {next(iter(lost.values()))}")
    if not clips or len(lost) > LOST + len(clips):
        raise ValueError(
            f"{manifest.root}: found {len(lost)} clips that cannot be read and {len(clips)} that can, expected a "
            f"dataset of videos; the first one: {next(iter(lost.values()))}"
        )
    return clips


def read_tars(tars: list[str], count: int, shape: Trained) -> list[Case]:
    """Read the first clips of tars without a manifest that fit and can be read, in the shape of the run."""
    lost = Quarantine(budget=LOST)
    clips = first_clips(tars, shape.bucket, count, Reading(), lost)
    if lost.losses:
        sample, loss = next(iter(lost.losses.items()))
        said = f"{sample.shard}: {sample.key}: {loss.reason}"
        remark(f"{name_of(tars)}: {len(lost.losses)} clips cannot be read, the first one: {said}")
    return [as_case(clip) for clip in clips]


def as_case(sample: dict[str, Any]) -> Case:
    """Return a sample with its scene if the truth of all its frames is known; no frame is given yet."""
    scene, frames = read_scene(sample["truth"], sample["caption"]) if sample["truth"] else None, sample["video"]
    scene = scene if scene is not None and len(scene.position) == len(frames) else None
    return Case(sample["key"], frames, frames, sample["caption"], float(sample["fps"]), 0, scene)


def sample_task(
    clips: Sequence[Case],
    captions: Sequence[str],
    given: int,
    shape: Trained,
    generation: Generation,
    model: Model,
    cfg: DictConfig,
    name: str,
) -> list[np.ndarray]:
    """Return the sampled frames of each clip, uint8 `t h w c`: clip i from seed + i; `name` stands on the bar."""
    wanted = [
        going_on(caption, clip.fps, cfg.seed + i, given, clip.truth)
        for i, (clip, caption) in enumerate(zip(clips, captions, strict=True))
    ]
    batches = sample_all(model, generation, wanted, shape.shape, cfg.batch)
    bar = tqdm(batches, desc=name, unit="batch", total=math.ceil(len(wanted) / cfg.batch))
    return [frames for batch in bar for frames in batch]


def keep_clips(
    folder: Path, clips: Sequence[Case], sampled: dict[str, list[np.ndarray]], given: int, keep: int
) -> None:
    """Write the first clips of each task, with their truth, as mp4, and list them in evaluation/clips.json.

    They get a new folder, so the clips of the previous evaluation stay complete until the list names the new ones.
    """
    out, records = folder / "evaluation", []
    former = [path for path in out.glob("[0-9]*") if path.is_dir()] if out.is_dir() else []
    own = out / f"{1 + max((int(path.name) for path in former if path.name.isdecimal()), default=0):04d}"
    own.mkdir(parents=True)
    try:
        for task, videos in sampled.items():
            for i, (clip, frames) in enumerate(zip(clips[:keep], videos[:keep], strict=True)):
                record = {"task": task, "key": clip.key, "caption": clip.caption, "fps": clip.fps}
                record |= {"given_frames": given if task == CONTINUATION else 0}
                for name, shown in (("sampled", frames), ("truth", clip.truth if task == CONTINUATION else None)):
                    path = own / f"{task}_{i:03d}_{name}.mp4"
                    record[name] = None if shown is None else path.relative_to(folder).as_posix()
                    if shown is not None:
                        write_clip(path, shown, clip.fps, crf=10)
                records.append(record)
        # Remove the figures of the previous evaluation: they do not belong to these clips.
        for name in ("evaluation.json", "evaluation.md"):
            (folder / name).unlink(missing_ok=True)
        write_whole(out / "clips.json", json.dumps(records, indent=1).encode())
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    for path in former:
        shutil.rmtree(path)
    for path in out.glob("*.mp4"):
        path.unlink()


def format_result(result: dict[str, Any]) -> str:
    """Return the numbers as lines, each with its standard error."""
    lines = []
    for name, value in result.items():
        if isinstance(value, float) and not name.endswith("_stderr"):
            error, ends = result.get(f"{name}_stderr"), result.get("intervals", {}).get(name)
            target = result["targets"].get(name)
            lines.append(
                f"{name:<44}{value:10.4f}{f' ± {error:.4f}' if error is not None else ''}"
                f"{f' [{ends[0]:.4f}, {ends[1]:.4f}]' if ends is not None else ''}"
                f"{f'   target {target}' if target is not None else ''}"
            )
    return "\n".join(lines)
