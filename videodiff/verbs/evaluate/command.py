"""videodiff evaluate: sample a run on the clips of a dataset and measure the samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from tqdm import tqdm

import videodiff
from videodiff import __version__
from videodiff.data.loader.trained import Trained, begun, usual
from videodiff.data.loader.wording import fit_captions
from videodiff.data.samples.manifest import Manifest
from videodiff.data.storage.address import is_secret
from videodiff.data.storage.files import write_whole
from videodiff.generation.known import check_given, first_frames, known_latents, mixed, usual_given
from videodiff.generation.sampling import check_memory, going_on, needing_less, sample_clips
from videodiff.generation.settings import Generation, check_seeds
from videodiff.generation.shape import shapes_of_run, unlike_rate
from videodiff.generation.sharing import Ranks, choose_gpu, sharing
from videodiff.metrics.evaluation import (
    AnyMetric,
    Batch,
    Remark,
    applying,
    as_made,
    figures,
    measure,
    of_clips,
    remaining,
    silent,
    usable,
)
from videodiff.metrics.metric import CONTINUATION, TASKS, TEXT_TO_VIDEO, Case
from videodiff.metrics.sets.set_metric import TRUTH
from videodiff.printing import say, say_lines
from videodiff.report.leaderboard import BOARD, add_row, check_board
from videodiff.report.markdown import write_markdown
from videodiff.shipped.runs import take_run
from videodiff.training.run.record import to_tell
from videodiff.training.state.checkpoint import AVERAGE, of, read_record
from videodiff.verbs.config.build import Model, build_generation, load_run, read_run
from videodiff.verbs.config.groups import options
from videodiff.verbs.config.measuring import build_metrics
from videodiff.verbs.evaluate.held_out import (
    Chosen,
    Dataset,
    HeldOut,
    Tars,
    choose,
    clips_sha256,
    held_out_of,
    own_clips,
    read_again,
)
from videodiff.verbs.evaluate.unfinished import Unfinished, code_in, file_of, fingerprint
from videodiff.words import count_text


class Job(NamedTuple):
    """All that a process needs to sample and measure a batch of clips."""

    model: Model
    generation: Generation
    shape: Trained
    held_out: HeldOut
    chosen: Sequence[Chosen]
    captions: Sequence[str]
    tasks: Sequence[str]
    given: int
    metrics: Mapping[str, AnyMetric]
    seed: int
    batch: int
    keep: int

    @property
    def batches(self) -> list[range]:
        """The indices of the clips of each batch: the same whatever number of processes shares them."""
        clips = range(len(self.chosen))
        return [clips[start : start + self.batch] for start in range(0, len(clips), self.batch)]


@needing_less("a smaller batch= needs less")
def run(cfg: DictConfig) -> None:
    """Evaluate; the run may still be training, but only one evaluation may run at a time."""
    cfg.run = str(take_run(cfg.run))
    choose_gpu()
    with sharing(Path(cfg.run) / "evaluation", "evaluate") as ranks:
        evaluate(cfg, ranks)


def evaluate(cfg: DictConfig, ranks: Ranks) -> None:
    """Check all that can be checked, sample and measure batch by batch, write the figures."""
    remark = remark_aloud if ranks.first else silent
    check(cfg)
    metrics, left_out = usable(build_metrics(cfg.get("metric")))
    folder, run_cfg = Path(cfg.run), read_run(cfg.run, cfg.trust)
    check_board(board_of(cfg))
    found = held_out_of(cfg, run_cfg)
    run_cfg, model, checkpoint = load_run(cfg.run, cfg.checkpoint, cfg.trust)
    generation = build_generation(cfg, run_cfg)
    trained = begun(shapes_of_run(folder, run_cfg.data), read_record(checkpoint)["step"])
    shape = usual(trained)
    given = given_of(cfg, model, shape)
    tasks = tasks_of(cfg, given, shape, remark)
    for line in (*idle(cfg, generation, tasks), *mixed(clean_of(generation, model, tasks, given), model.denoiser)):
        remark(line)
    held_out = Dataset(found, shape) if isinstance(found, Manifest) else Tars(found, shape)
    # A network that cannot be loaded costs its metric, not the evaluation.
    first = next(read_again(held_out, choose(held_out, 1, ranks, lambda case: {}, silent)[0]))
    metrics, broken = usable(metrics, first)

    def check_case(case: Case) -> dict[str, str]:
        # Measure the truth first: a figure that fails here would fail for the samples too, after hours of sampling.
        fitting = applying(of_clips(metrics), [case.scene is not None])
        return measure(fitting, {task: [case._replace(given=given * (task == CONTINUATION))] for task in tasks}).failed

    chosen, failed = choose(held_out, cfg.clips, ranks, check_case, remark)
    if strange := [said for one in chosen if (said := unlike_rate(trained, one.fps))]:
        remark(f"{held_out.name}: {len(strange)} of {count_text(len(chosen), 'clip')}: {strange[0]}")
    captions, cut = fit_captions([one.caption for one in chosen], model.text)
    if cut:
        remark(f"{held_out.name}: {cut}")
    metrics, unfit = usable(remaining(metrics, failed), first, len(chosen))
    left_out |= broken | failed | unfit
    for reason in left_out.values():
        remark(f"left out: {reason}")
    metrics = measuring(applying(metrics, [bool(one.truth) for one in chosen], remark), metrics, tasks)
    batch = min(cfg.batch, len(chosen))
    check_memory(model, shape.shape, batch)
    job = Job(model, generation, shape, held_out, chosen, captions, tasks, given, metrics, cfg.seed, batch, cfg.keep)
    unfinished = Unfinished(folder)
    with ranks.together():
        if ranks.first and (there := unfinished.begin(identity(job, checkpoint))):
            remark(
                f"goes on from {there} of {count_text(len(job.batches), 'batch')} of an evaluation that was interrupted"
            )
    make(job, unfinished, ranks)
    ranks.wait()
    if ranks.first:
        finish(cfg, job, unfinished, {"checkpoint": str(checkpoint)}, targets_of(cfg, run_cfg), left_out)


def measuring(
    applied: Mapping[str, AnyMetric], asked: Mapping[str, AnyMetric], tasks: Sequence[str]
) -> Mapping[str, AnyMetric]:
    """Return the metrics that these clips take, of those asked for; ValueError if none of them measures a task."""
    if any(set(metric.tasks) & set(tasks) for metric in applied.values()):
        return applied
    own = {key: f"measures {', '.join(metric.tasks)}" for key, metric in asked.items()}
    own |= {key: f"measures clips of {metric.clips}" for key, metric in asked.items() if key not in applied}
    needs = [f"metric.{key} {what}" for key, what in own.items()]
    raise ValueError(f"metric: found nothing that measures {', '.join(tasks)} of these clips: {'; '.join(needs)}")


def check(cfg: DictConfig) -> None:
    """Raise if a setting cannot be."""
    unknown = [task for task in cfg.tasks if task not in TASKS]
    if unknown or not cfg.tasks:
        raise ValueError(f"tasks: found {list(cfg.tasks)}, expected some of {', '.join(TASKS)}")
    for name, least in (("clips", 1), ("batch", 1), ("keep", 0)):
        if cfg[name] < least:
            raise ValueError(f"{name}: found {cfg[name]}, expected at least {least}")
    check_seeds(cfg.seed, cfg.clips)
    if not cfg.get("metric"):
        raise ValueError(f"metric: found none, expected some of {', '.join(options('metric'))}")


def tasks_of(cfg: DictConfig, given: int, shape: Trained, remark: Remark) -> list[str]:
    """Return the tasks that the run can do."""
    tasks = list(dict.fromkeys(cfg.tasks))
    if not given and CONTINUATION in tasks:
        tasks.remove(CONTINUATION)
        remark(f"continuation: left out, as a clip of {count_text(shape.frames, 'frame')} has none to continue")
    if not tasks:
        raise ValueError(f"tasks: found {list(cfg.tasks)}, expected text_to_video, the only task of this run")
    return tasks


def idle(cfg: DictConfig, generation: Generation, tasks: Sequence[str]) -> list[str]:
    """Return a line for each setting of this call that changes nothing."""
    why = {}
    if generation.guide == "history" and generation.history != 1 and list(tasks) == [CONTINUATION]:
        why["scale"] = f"the known frames guide by history={generation.history:g}"
    if CONTINUATION not in tasks:
        why["guide"] = "no frame is known"
    return [f"{key}: found {cfg[key]}, which changes nothing: {reason}" for key, reason in why.items() if cfg[key]]


def clean_of(generation: Generation, model: Model, tasks: Sequence[str], given: int) -> dict[str, Sequence[int]]:
    """Return the latents that are clean before the others, by the setting that says so."""
    known = {"given": known_latents(model.codec, range(given))} if CONTINUATION in tasks else {}
    return known | ({"sampler.lead": range(generation.lead)} if TEXT_TO_VIDEO in tasks else {})


def identity(job: Job, checkpoint: Path) -> dict[str, Any]:
    """Return what the measurements of a clip follow from: an evaluation with another identity does not go on."""
    files = read_record(checkpoint)["files"]
    chosen = json.dumps([job.chosen, job.captions]).encode()
    return {
        "checkpoint": {str(checkpoint / name): files[name].sha256 for name in of(files, AVERAGE)},
        "clips": [job.held_out.name, len(job.chosen), hashlib.sha256(chosen).hexdigest()],
        "tasks": job.tasks,
        "given": job.given,
        "shape": job.shape.shape,
        "sampler": job.generation.settings(),
        "metrics": fingerprint(job.metrics),
        **{name: getattr(job, name) for name in ("seed", "batch", "keep")},
        "versions": {"videodiff": __version__, "torch": torch.__version__},
        "code": code_in(Path(videodiff.__file__).parent),
    }


def make(job: Job, unfinished: Unfinished, ranks: Ranks) -> None:
    """Sample and measure this process's batches; no more than one of them is in memory."""
    batches = job.batches
    mine = [number for number in ranks.share(len(batches)) if not unfinished.has(number)]
    cases = read_again(job.held_out, [job.chosen[i] for number in mine for i in batches[number]])
    for number in tqdm(mine, desc="evaluate", unit="batch", disable=not ranks.first):
        clips = [next(cases)._replace(given=job.given) for _ in batches[number]]
        unfinished.write(number, make_batch(job, batches[number], clips, unfinished))


def make_batch(job: Job, indices: range, clips: Sequence[Case], unfinished: Unfinished) -> Batch:
    """Sample clips in every task and measure them: the clip at index i of the evaluation from seed + i."""
    made = {TRUTH: list(clips)}
    for task in job.tasks:
        given = job.given if task == CONTINUATION else 0
        wanted = [
            going_on(job.captions[i], clip.fps, job.seed + i, given, clip.truth)
            for i, clip in zip(indices, clips, strict=True)
        ]
        made[task] = as_made(task, clips, sample_clips(job.model, job.generation, wanted, job.shape.shape, job.batch))
        for i, case in zip(indices, made[task], strict=True):
            if i < job.keep:
                unfinished.keep(task, i, case, truth=task == CONTINUATION)
    return measure(job.metrics, made)


def finish(
    cfg: DictConfig,
    job: Job,
    unfinished: Unfinished,
    origin: dict[str, Any],
    targets: Mapping[str, float],
    left_out: Mapping[str, str],
) -> None:
    """Make the figures of all batches, and publish them with the kept clips."""
    folder, batch = Path(cfg.run), unfinished.read(len(job.batches))
    result: dict[str, Any] = {
        **origin,
        "dataset": job.held_out.name,
        "clips": len(job.chosen),
        "clips_sha256": clips_sha256(job.chosen),
        "shape": described(job.shape),
        "given_frames": job.given,
    }
    result |= {"seed": job.seed, "batch": job.batch}
    result |= figures(job.metrics, batch, remark_aloud)
    if not result["metrics"]:
        # Nothing would replace the former figures.
        raise ValueError(
            f"metric: found no figure of these {count_text(len(job.chosen), 'clip')} by {', '.join(job.metrics)}, for "
            "the reasons above, expected at least one"
        )
    result["metrics"] = {name: to_publish(record) for name, record in result["metrics"].items()}
    result["targets"] = reachable(targets, result)
    left_out = {**left_out, **result.get("left_out", {})}
    result |= {"left_out": left_out} if left_out else {}
    unfinished.publish(list(kept(job)))
    write_whole(folder / "evaluation.json", json.dumps(result, indent=1).encode())
    write_markdown(folder / "evaluation.md", result)
    board = add_row(board_of(cfg), folder, result, {"sampler": job.generation.settings()})
    unfinished.remove()
    say_lines(format_result(result))
    say(f"{'leaderboard':<44}{board.with_suffix('.md')}")


def to_publish(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a figure without the secrets among its settings, as of a metric that asks a service."""
    settings = to_tell(record.get("settings", {}))
    hidden = {name: "..." for name, value in settings.items() if isinstance(value, str) and is_secret(name)}
    return {**record, **({"settings": settings | hidden} if settings else {})}


def described(shape: Trained) -> str:
    """Return the shape of the clips as text: frames, height, width, and of which frames of the dataset they are."""
    every = ", ".join(map(str, shape.strides))
    return " x ".join(map(str, shape.shape)) + (f", stride {every}" if shape.strides != (1,) else "")


def kept(job: Job) -> list[dict[str, Any]]:
    """Return the records of the kept clips."""
    return [
        {
            "task": task,
            "key": one.key,
            "caption": one.caption,
            "fps": one.fps,
            "given_frames": job.given if task == CONTINUATION else 0,
            "sampled": file_of(task, i, "sampled"),
            "truth": file_of(task, i, "truth") if task == CONTINUATION else None,
        }
        for task in job.tasks
        for i, one in enumerate(job.chosen[: job.keep])
    ]


def board_of(cfg: DictConfig) -> Path:
    """Return the leaderboard that gets a row: `leaderboard=`, or the one beside the run folder."""
    return Path(cfg.leaderboard) if cfg.leaderboard is not None else Path(cfg.run).resolve().parent / BOARD


def targets_of(cfg: DictConfig, run_cfg: DictConfig) -> dict[str, float]:
    """Return the targets of the run: of its own validation clips, if it has any, and of no others."""
    targets, own = dict(run_cfg.get("targets") or {}), own_clips(run_cfg)
    used = own if cfg.dataset is None else [cfg.dataset]
    if targets and own and [Path(name).resolve() for name in used] != [Path(name).resolve() for name in own]:
        remark_aloud(f"targets: left out, as they are of {', '.join(own)} and not of {cfg.dataset}")
        return {}
    return targets


def reachable(targets: Mapping[str, float], result: Mapping[str, Any]) -> dict[str, float]:
    """Return the targets of figures that were measured; name each target whose figure was not."""
    for name in targets.keys() - result["metrics"].keys():
        remark_aloud(f"targets.{name}: found no measured figure of this name")
    return {name: value for name, value in targets.items() if name in result["metrics"]}


def remark_aloud(line: str) -> None:
    """Print a line about something that differs from what was asked for."""
    say(f"videodiff evaluate: {line}")


def given_of(cfg: DictConfig, model: Model, shape: Trained) -> int:
    """Return the number of given frames of a continuation; 0 if there can be none and none are asked for."""
    if cfg.given is None:
        return usual_given(model.codec, shape.frames, model.denoiser)
    if CONTINUATION in cfg.tasks:
        check_given("given", cfg.given, model.codec, shape.frames)
    return cfg.given if cfg.given in first_frames(model.codec, shape.frames) else 0


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
