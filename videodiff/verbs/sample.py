"""videodiff sample: clips from captions, around given frames, from another video, and of any length."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from videodiff import __version__
from videodiff.data.loader.trained import Trained, begun
from videodiff.data.storage.files import write_whole
from videodiff.generation.files import add_clip, next_number
from videodiff.generation.given import Footage, read_footage, read_known, read_mask, read_whole, remarks
from videodiff.generation.known import known_latents, mixed
from videodiff.generation.prompts import check_prompts, find_prompts
from videodiff.generation.rollout import KINDS, Rollout, overlap_of, with_keys
from videodiff.generation.sampling import NotFiniteError, Wanted, check_memory, needing_less, sample_each
from videodiff.generation.settings import Generation, check_seeds
from videodiff.generation.shape import (
    SIDES,
    choose_rate,
    choose_shape,
    least_frames,
    shapes_of_run,
    unlike_rate,
    unlike_training,
)
from videodiff.generation.sharing import choose_gpu, sharing
from videodiff.metrics.motion.drift import Drift
from videodiff.printing import say
from videodiff.shipped.runs import take_run
from videodiff.training.state.checkpoint import read_record
from videodiff.verbs.config.build import Model, build_generation, check_shape, load_run, read_run
from videodiff.verbs.config.groups import conf_dir
from videodiff.words import count_text

EVALUATION = "evaluation.json"
# The prompts of a run that is sampled without any.
EXAMPLES = "prompts.txt"


class Order(NamedTuple):
    """What is sampled with which model: everything of a call but prompts and seeds."""

    model: Model
    generation: Generation
    shape: tuple[int, int, int]
    fps: float
    given: dict[str, Any]
    roll: str | None
    rollout: Rollout

    def clips(self, jobs: Sequence[tuple[str, int]], batch: int) -> list[Iterable[np.ndarray] | NotFiniteError]:
        """Return the frames of each clip, given as prompt and seed."""
        wanted = [Wanted(prompt, self.fps, seed, **self.given) for prompt, seed in jobs]
        if self.roll is not None:
            return [KINDS[self.roll](self.model, self.generation, one, self.shape, self.rollout) for one in wanted]
        return sample_each(self.model, self.generation, wanted, self.shape, batch)


@needing_less("fewer frames=, a smaller height= and width=, or a smaller batch= need less")
def run(cfg: DictConfig) -> None:
    """Sample the clips and write each as mp4, with poster, contact sheet and a JSON that makes it again."""
    cfg.run = str(take_run(cfg.run))
    read_run(cfg.run, cfg.trust)
    given = [read_footage("given", name) for name in names_of(cfg.given)]
    asked = plain(cfg.prompts)
    if not asked and not given and (Path(cfg.run) / EXAMPLES).is_file():
        asked = str(Path(cfg.run) / EXAMPLES)
    prompts = find_prompts(asked, list(cfg.dimensions)) or ([""] if given else [])
    if not prompts:
        raise ValueError(
            'prompts: found none, expected for example prompts=["a red ball moves left"], or given=<video>'
        )
    count = len(prompts) * cfg.samples
    check_seeds(cfg.seed, count)
    choose_gpu()
    run_cfg, model, checkpoint = load_run(cfg.run, cfg.checkpoint, cfg.trust)
    step = read_record(checkpoint)["step"]
    trained = begun(shapes_of_run(Path(cfg.run), run_cfg.data), step)
    notes: list[str] = []
    order = order_of(cfg, run_cfg, model, trained, given, notes)
    later = [caption for _, caption in order.rollout.later]
    notes += check_prompts("prompts", prompts, model.text) + check_prompts("captions", later, model.text)
    notes += strange_rates(trained, order) + remarks(given, order.shape) + idle(cfg, order, any(prompts))
    notes += mixed(clean_of(order), model.denoiser)
    if spare := max(0, cfg.batch - count):
        notes.append(
            f"batch: found {cfg.batch} for {count_text(count, 'clip')}: the network makes the last one "
            f"{count_text(spare, 'time')} more"
        )
    out = Path(cfg.out or Path(cfg.run) / "generated")
    with sharing(out, "sample") as ranks:
        base = ranks.gather(next_number(out) if ranks.first else 0)[0]
        if ranks.first:
            tell(notes)
        facts = facts_of(cfg, order, given, {"checkpoint": str(checkpoint), "step": step})
        batches, mine = range(0, count, cfg.batch), {}
        for place in ranks.share(len(batches)):
            numbers = range(batches[place], min(batches[place] + cfg.batch, count))
            jobs = [(prompts[number // cfg.samples], cfg.seed + number) for number in numbers]
            mine |= dict(zip(numbers, make(cfg, order, out, base, numbers, jobs, facts), strict=True))
        made = [one for _, one in sorted(chain.from_iterable(each.items() for each in ranks.gather(mine)))]
        drifts = [one for one in made if one]
        if ranks.first and drifts:
            write_whole(out / EVALUATION, json.dumps(together(drifts), indent=1).encode())
    if failed := made.count(None):
        raise ValueError(f"{failed} of {count} clips were not written, for the reasons above")
    if ranks.first:
        say(f"videodiff sample: {count_text(count, 'clip')} from {checkpoint}")


def make(
    cfg: DictConfig,
    order: Order,
    out: Path,
    base: int,
    numbers: range,
    jobs: Sequence[tuple[str, int]],
    facts: dict[str, Any],
) -> list[dict[str, Any] | None]:
    """Sample the clips of a batch and write each; return how each drifts, None for one that was not written."""
    return [
        write(cfg, order, out, base + number, {"prompt": prompt, "seed": seed, **facts}, frames)
        for number, (prompt, seed), frames in zip(numbers, jobs, order.clips(jobs, cfg.batch), strict=True)
    ]


def write(
    cfg: DictConfig,
    order: Order,
    out: Path,
    number: int,
    facts: dict[str, Any],
    frames: Iterable[np.ndarray] | NotFiniteError,
) -> dict[str, Any] | None:
    """Write one clip and return how it drifts, empty if that is not measured; say why, where the sample is not one."""
    prompt = facts["prompt"]
    drift = Drift(prompt, order.fps, order.rollout.later) if cfg.drift else None
    try:
        if isinstance(frames, NotFiniteError):
            raise frames
        shown = drift(frames) if drift else frames
        path = add_clip(out, shown, facts["frames"], order.fps, facts, number, cfg.lossless)
    except NotFiniteError as error:
        say(f"videodiff sample: {error}")
        return None
    say(f"{path}: {prompt or 'without a caption'}")
    if not drift:
        return {}
    found = drift.result() | {"clip": path.name, "prompt": prompt, "peak_memory_gib": peak_memory()}
    tell([f"{name:<24}{value:10.4f}" for name, value in found.items() if isinstance(value, float)])
    return found


def together(drifts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the drift of the clips of a call: of one clip alone its figures, of several their means and each."""
    if len(drifts) == 1:
        return drifts[0]
    names = [name for name, value in drifts[0].items() if isinstance(value, float)]
    shared = [name for name in names if all(name in one for one in drifts)]
    return {name: float(np.mean([one[name] for one in drifts])) for name in shared} | {"clips": list(drifts)}


def order_of(
    cfg: DictConfig,
    run_cfg: DictConfig,
    model: Model,
    trained: Sequence[Trained],
    given: Sequence[Footage],
    notes: list[str],
) -> Order:
    """Return what is to be sampled, when everything of it is checked; what differs from what was asked goes to `notes`.

    Every process calls this, and one of them prints the notes.
    """
    window = shape_of(cfg, trained, run_cfg, model)
    notes += remarks_on(trained, window)
    rate = given[0].fps if given else None
    fps = choose_rate(cfg.fps, trained, window, rate)
    roll, shape, total = cfg.rollout, window, window[0]
    if cfg.seconds is not None or roll is not None:
        if cfg.seconds is not None and cfg.frames is not None:
            raise ValueError(f"seconds: found {cfg.seconds:g} beside frames={cfg.frames}, expected one of them")
        total = cfg.frames if cfg.seconds is None else round(cfg.seconds * fps)
        if total == 0:
            raise ValueError(
                f"seconds: found {cfg.seconds:g}, expected at least {1 / fps:g}, one frame at {fps:g} a second"
            )
        usual = choose_shape(trained, {name: cfg[name] for name in SIDES[1:] if cfg[name] is not None})[0]
        if total is None:
            raise ValueError(f"rollout: found {roll} without a length, expected seconds= or frames=")
        patch = run_cfg.model.patch
        frames = cfg.window or (usual if roll else least_frames(total, usual, patch[0], model.codec))
        shape = frames, *window[1:]
        check_shape("window: ", shape, patch, model.codec)
        if roll is None and total != frames:
            roll, more = "continue", "more" if total > frames else "fewer"
            notes.append(f"{total} frames are {more} than the {frames} of a window: made by rollout=continue")
        notes += remarks_on(trained, shape) if frames != window[0] else []
    for name in ("window", "overlap"):
        if cfg[name] is not None and cfg.seconds is None and roll is None:
            raise ValueError(f"{name}: found {cfg[name]} without a rollout, expected rollout= or seconds=")
    if roll is not None and (cfg.strength is not None or cfg.mask is not None):
        raise ValueError(f"rollout: found {roll} with strength= or mask=, expected one window of frames=")
    if roll is not None and cfg.batch > 1:
        raise ValueError(f"batch: found {cfg.batch} with a rollout, expected 1: a long clip is made by itself")
    overlap = overlap_of(model.codec, model.denoiser, shape[0], cfg.overlap) if roll else 0
    if roll is not None and not overlap:
        raise ValueError(f"rollout: found a window of {shape[0]} frame, expected more: it has none to go on from")
    later = captions_of(cfg, total, fps, roll)
    later = at_keys(later, total, fps, shape[0], overlap, notes) if roll == "keys" else later
    rollout = Rollout(total, overlap, cfg.history_noise, later, cfg.rollout_caption)
    check_known(cfg, roll)
    known, generation = given_to(cfg, given, model, shape, fps), build_generation(cfg, run_cfg)
    if roll is not None and generation.history_level <= cfg.history_noise:
        raise ValueError(
            f"history_level: found {generation.history_level:g} with history_noise={cfg.history_noise:g}, expected "
            "more: guidance pushes away from known frames with more noise than they have"
        )
    return Order(model, generation, shape, fps, known, roll, rollout)


def idle(cfg: DictConfig, order: Order, prompted: bool) -> list[str]:
    """Return a line for each setting of this call that changes nothing; `prompted`: a clip has a caption."""
    how, after = order.generation, order.rollout.after
    told = how.guide == "history" and bool(order.given.get("known")) and not order.roll
    unguided = "" if prompted or order.rollout.later else "there is no prompt"
    unguided = "guide=history: no caption guides" if told else unguided
    # The scale of the caption is that of the history where this guides and has none of its own.
    led = how.history == 1 and (told or (order.roll is not None and after != "guide"))
    unscaled = "" if led or not unguided else f"the frames guide by history={how.history:g}" if told else unguided
    unguided = unguided or ("" if how.scale != 1 else "scale=1 is no guidance")
    unknown = "" if order.roll or order.given.get("known") else "no frame is known"
    single = "" if order.roll else "the clip is made at once"
    why = {
        "scale": unscaled,
        "interval": unguided,
        "rescale": unguided,
        "guide": unknown or ("" if order.given.get("known") else "rollout_caption= says what guides later windows"),
        "history": unknown,
        "history_level": unknown or ("" if how.history_scale != 1 else "history=1 is no guidance"),
        "reconstruction": "" if "new" in order.given else "there is no mask=",
        "noise": "" if order.given.get("strength", 1) == 1 else "the clip begins with the given video",
        "rollout_caption": single,
        "history_noise": single,
    }
    usual = OmegaConf.load(conf_dir() / "sample.yaml")
    asked = [name for name in why if cfg[name] != usual[name]]
    return [f"{name}: found {plain(cfg[name])}, which changes nothing: {why[name]}" for name in asked if why[name]]


def clean_of(order: Order) -> dict[str, Sequence[int]]:
    """Return the latents of a window that are clean before the others, by the setting that says so."""
    codec, known, found = order.model.codec, order.given.get("known"), {}
    if known:
        found["known"] = known_latents(codec, known)
    elif order.given.get("strength", 1) == 1:
        found["sampler.lead"] = range(order.generation.lead)
    if order.roll is not None:
        found["overlap"] = known_latents(codec, range(order.rollout.overlap))
    # One frame is ready after the other; a window between keys is given both ends.
    ready = {"rolling": [0], "keys": [0, order.shape[0] - 1]}
    return found | ({f"rollout={order.roll}": ready[order.roll]} if order.roll in ready else {})


def check_known(cfg: DictConfig, roll: str | None) -> None:
    """Raise if the known frames of a long clip do not lie in its first window."""
    known = plain(cfg.known) or []
    if roll is not None and any(number < 0 for number in known):
        raise ValueError(f"known: found {known} with rollout={roll}, expected frames of the first window, from 0 on")
    if roll == "keys" and known not in ([], [0]):
        raise ValueError(f"known: found {known} with rollout=keys, expected [0]: frames far apart are made first")


def captions_of(cfg: DictConfig, total: int, fps: float, roll: str | None) -> tuple[tuple[int, str], ...]:
    """Return the captions of later seconds by the frame from which on they hold."""
    asked = {float(second): caption for second, caption in (plain(cfg.captions) or {}).items()}
    if asked and roll is None:
        raise ValueError(f"captions: found {plain(cfg.captions)} without a rollout, expected seconds= and a long clip")
    found = {round(second * fps): caption for second, caption in sorted(asked.items())}
    seconds = ", ".join(f"{second:g}" for second in sorted(asked))
    if found and not 0 < min(found) <= max(found) < total:
        last = (total - 1) / fps
        raise ValueError(
            f"captions: found the seconds {seconds}, expected some from {1 / fps:g} to {last:g}, the last frame"
        )
    if len(found) < len(asked):
        raise ValueError(
            f"captions: found the seconds {seconds}, expected each in a frame of its own, {fps:g} a second"
        )
    return tuple(found.items())


def at_keys(
    later: Sequence[tuple[int, str]], total: int, fps: float, window: int, overlap: int, notes: list[str]
) -> tuple[tuple[int, str], ...]:
    """Return later captions where rollout=keys can take them up, and note where that is; raise if it is nowhere."""
    moved = with_keys(later, window, overlap)
    asked, found = (", ".join(f"{frame / fps:g}" for frame, _ in each) for each in (later, moved))
    if moved and moved[-1][0] >= total:
        raise ValueError(
            f"captions: found the seconds {asked} with rollout=keys, which can take them up at {found}, expected that "
            f"within {total / fps:g} s: its frames far apart are made first, many of them by one caption"
        )
    if asked != found:
        notes.append(
            f"captions: the seconds {asked} become {found}: rollout=keys makes its frames far apart by one caption"
        )
    return moved


def given_to(
    cfg: DictConfig, given: Sequence[Footage], model: Model, shape: tuple[int, int, int], fps: float
) -> dict[str, Any]:
    """Return what is given of each clip, as `Wanted` takes it."""
    # Before anything of this size is read or listed.
    check_memory(model, shape, cfg.batch)
    around = cfg.strength is not None or cfg.mask is not None
    if not given:
        for name in ("known", "strength", "mask", "start"):
            # A start of 0 is the usual one.
            if cfg[name] not in (None, 0):
                raise ValueError(f"{name}: found {plain(cfg[name])} without given=, expected a video or a picture")
        return {}
    if cfg.start and all(one.fps is None for one in given):
        raise ValueError(f"start: found {cfg.start:g} with pictures alone in given=, expected a video")
    found: dict[str, Any] = {}
    if around:
        if len(given) > 1:
            raise ValueError(f"given: found {count_text(len(given), 'file')}, expected one for strength= and mask=")
        found["whole"] = read_whole(given[0], shape, fps, cfg.start)
        found["strength"] = 1.0 if cfg.strength is None else float(cfg.strength)
        if cfg.mask is not None:
            found["new"] = read_mask(cfg.mask, shape, fps, cfg.start)
    known = list(cfg.known) if cfg.known is not None else [] if around else [0]
    if known:
        found["known"], found["frames"] = read_known(given, known, model.codec, shape, fps, cfg.start)
    return found


def facts_of(cfg: DictConfig, order: Order, given: Sequence[Footage], origin: dict[str, Any]) -> dict[str, Any]:
    """Return everything that makes a clip again, but its prompt and seed."""
    facts = {"run": str(cfg.run), **origin, "fps": order.fps, "frames": order.rollout.total}
    facts |= {
        "height": order.shape[1],
        "width": order.shape[2],
        "sampler": order.generation.settings(),
        "batch": cfg.batch,
    }
    # In the order of the setting: pictures belong to these frames one by one.
    known = [number % order.shape[0] for number in cfg.known or order.given.get("known", ())]
    facts |= {"known": known or None, "given": None}
    if given:
        facts["given"] = given[0].facts() if len(given) == 1 else [one.facts() for one in given]
        facts |= {"start": cfg.start, "strength": cfg.strength}
    if cfg.mask is not None:
        facts["mask"] = read_footage("mask", cfg.mask).facts()
    if order.roll is not None:
        facts["rollout"] = {"kind": order.roll, "window": order.shape[0], **order.rollout._asdict()}
    return facts | {"versions": {"videodiff": __version__, "torch": torch.__version__}}


def shape_of(cfg: DictConfig, trained: Sequence[Trained], run_cfg: DictConfig, model: Model) -> tuple[int, int, int]:
    """Return the shape `t h w` to sample in: a trained one unless the command asks for another that the model takes."""
    long = cfg.rollout is not None or cfg.seconds is not None
    asked = {name: cfg[name] for name in SIDES if cfg[name] is not None and not (long and name == "frames")}
    shape = choose_shape(trained, asked)
    check_shape("", shape, run_cfg.model.patch, model.codec)
    return shape


def remarks_on(trained: Sequence[Trained], shape: tuple[int, int, int]) -> list[str]:
    """Return a line if no clip of the training had this shape."""
    return list(filter(None, [unlike_training(trained, shape)]))


def strange_rates(trained: Sequence[Trained], order: Order) -> list[str]:
    """Return a line for each rate that the network is told of and that lies beyond those of the training."""
    # A single frame does not move.
    usual_rate = {"fps": order.fps} if order.rollout.total > 1 else {}
    told = usual_rate | ({"rollout=keys": order.fps / (order.shape[0] - 1)} if order.roll == "keys" else {})
    return [f"{name}: {remark}" for name, rate in told.items() if (remark := unlike_rate(trained, rate))]


def peak_memory() -> float:
    """Return the most memory that this process has held, on the host or on its GPU, in GiB."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return max(host, torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0)


def tell(lines: Sequence[str]) -> None:
    """Print lines."""
    for line in lines:
        say(line)


def names_of(given: Any) -> list[str]:
    """Return the names of the given files."""
    return [] if given is None else [given] if isinstance(given, str) else list(given)


def plain(value: Any) -> Any:
    """Return a value of a configuration as a plain one."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
