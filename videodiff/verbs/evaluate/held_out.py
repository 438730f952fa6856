"""What a run is measured on: the first clips of a dataset, or of tars without a manifest, that fit and can be read.

Clips are read one by one, and a second time for their samples: they are never all in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from omegaconf import DictConfig

from videodiff.data.loader.clips import Clips, Reader, Task
from videodiff.data.loader.trained import Trained
from videodiff.data.samples.manifest import NAME, Manifest, ManifestError
from videodiff.data.samples.members import one_video
from videodiff.data.tars.clips import Decode, TarTask, keep_faults, tasks_of, view
from videodiff.data.tars.source import TARS, Fault, find_tars, read_tars, shown
from videodiff.data.video.decode import DecodeError
from videodiff.generation.sharing import Ranks
from videodiff.metrics.metric import Case
from videodiff.metrics.settings import DIGITS
from videodiff.words import count_text
from videodiff.worlds.truth import TruthError, read_scene

# The dataset counts as unreadable if more clips fail than this number plus the clips that could be read.
LOST = 100
# Each process looks at so many clips, and then says what it found.
ROUND = 32
# Errors of a clip, which is left out.
UNREADABLE = (DecodeError, ManifestError, TruthError)
Remark = Callable[[str], None]


class Candidate(NamedTuple):
    """A clip that may be measured: its name, and functions that read it and sum up its video as it is stored.

    read: None for a clip that does not fit.
    """

    key: str
    read: Callable[[], Case | None]
    sha256: Callable[[], str]


class HeldOut(Protocol):
    """The candidates, in the same order each time; `faults`: lines about what is no candidate."""

    name: str

    @property
    def faults(self) -> list[str]: ...

    def __iter__(self) -> Iterator[Candidate]: ...


class Chosen(NamedTuple):
    """A clip that is measured: its index among the candidates, and what is known of it without its frames.

    truth: the checksum of its scene, empty where none is known; sha256: that of its video.
    """

    index: int
    key: str
    caption: str
    fps: float
    truth: str
    sha256: str


class Seen(NamedTuple):
    """What a process found at a candidate: the clip, or why it is left out; neither if it does not fit.

    failed: the metrics that could not measure the clip, each with the reason.
    """

    chosen: Chosen | None = None
    lost: tuple[str, str] | None = None
    failed: tuple[tuple[str, str], ...] = ()


class Dataset:
    """The clips of a dataset that fit a shape."""

    def __init__(self, manifest: Manifest, shape: Trained) -> None:
        self.name = str(manifest.root)
        self.clips = Clips(manifest, [shape.bucket], fixed=True, skip=True, any_size=True)
        self.faults, self.reader = list(self.clips.said), Reader([manifest.root])

    def __iter__(self) -> Iterator[Candidate]:
        for index in self.clips.fitting():
            task = self.clips.task(index)
            yield Candidate(task.row["key"], partial(self.read, task), partial(task.row.__getitem__, "sha256"))

    def read(self, task: Task) -> Case:
        """Return the clip of a task."""
        return as_case(self.reader.alone(task))


class Tars:
    """The samples of tars, which are read from their beginning each time."""

    def __init__(self, tars: list[str], shape: Trained) -> None:
        self.name = shown(tars[0]) + (f" and {len(tars) - 1} more" if len(tars) > 1 else "")
        self.tars, self.shape, self.noted = tars, shape, []

    @property
    def faults(self) -> list[str]:
        """Lines about what is wrong with the tars, as far as they were read the last time."""
        return [describe(fault) for fault in self.noted]

    def __iter__(self) -> Iterator[Candidate]:
        decode, self.noted = Decode([self.shape.bucket]), []
        samples = keep_faults(read_tars(self.tars, range(len(self.tars))), self.noted)
        for task in tasks_of(samples, self.tars, decode.bytes):
            name, video = f"{task.sample.shard}: {task.sample.key}", partial(sum_of, task.members)
            yield Candidate(name, partial(self.read, decode, task), video)

    def read(self, decode: Decode, task: TarTask) -> Case | None:
        """Return the clip of a sample."""
        memory = np.empty(task.shape, dtype=np.uint8)
        try:
            found = decode(task, memory)
        except (OSError, *UNREADABLE):
            raise
        except Exception as error:
            raise ManifestError(f"{type(error).__name__}: {error}") from error
        clip = {**found, "key": task.sample.key, "video": view(memory, self.shape.bucket)}
        return as_case(clip) if "bucket" in found else None


def sum_of(members: Mapping[str, bytes]) -> str:
    """Return the checksum of a sample's video."""
    return hashlib.sha256(members[one_video(members)]).hexdigest()


def describe(fault: Fault) -> str:
    """Return what is wrong with a tar or a sample in it."""
    return f"{fault.tar}: {fault.key} {fault.reason}" if fault.key else f"{fault.tar}: {fault.reason}"


def held_out_of(cfg: DictConfig, run_cfg: DictConfig) -> Manifest | list[str]:
    """Return what to measure on: a dataset, or tars without a manifest; `dataset=` may name either."""
    root, urls = cfg.dataset, None
    if root is None:
        root, urls = run_cfg.data.validation_root, run_cfg.data.get("validation_urls")
        for name in own_clips(run_cfg):
            refuse_address(name, cfg.run)
    elif names_tars(root):
        root, urls = None, root
    if root is None and urls is None:
        raise ValueError(
            "dataset: found none, and the run has neither data.validation_root nor data.validation_urls: expected "
            "dataset=<a dataset folder, or tars>"
        )
    if root is None:
        return find_tars(listed(urls), where="data.validation_urls" if cfg.dataset is None else "dataset")
    try:
        return Manifest.load(root)
    except OSError as error:
        where = "dataset" if cfg.dataset is not None else f"dataset: found none, and data.validation_root of {cfg.run}"
        raise FileNotFoundError(f"{where}: {error}") from error


def names_tars(name: str) -> bool:
    """Return whether a name stands for tars without a manifest: by its extension, or as a folder that holds some."""
    if os.path.isdir(name):
        return NAME not in (held := os.listdir(name)) and any(one.lower().endswith(TARS) for one in held)
    return name.partition("?")[0].lower().endswith(TARS)


def own_clips(run_cfg: DictConfig) -> list[str]:
    """Return the validation data of a run: a dataset, or tars without a manifest; empty if it has none."""
    root = run_cfg.data.validation_root
    return [root] if root is not None else listed(run_cfg.data.get("validation_urls"))


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


def choose(
    held_out: HeldOut, count: int, ranks: Ranks, check: Callable[[Case], Mapping[str, str]], remark: Remark
) -> tuple[list[Chosen], dict[str, str]]:
    """Return the first `count` clips that can be read; each is read once, by one of the processes.

    check: returns why metrics cannot measure a clip, by their keys; the first reason of each metric is returned too.
    """
    found, lost, failed, unfit, candidates = [], [], {}, 0, enumerate(held_out)
    while len(found) < count and len(lost) <= LOST + len(found):
        some = list(itertools.islice(candidates, min(count - len(found), ROUND * ranks.world)))
        if not some:
            break
        seen: dict[int, Seen] = {}
        with ranks.together():
            seen = {place: look(*some[place], check) for place in ranks.share(len(some))}
        for _, one in sorted(itertools.chain.from_iterable(each.items() for each in ranks.gather(seen))):
            found += [one.chosen] if one.chosen else []
            lost += [one.lost] if one.lost else []
            failed = dict(one.failed) | failed
            unfit += one == Seen()
    tell(held_out, count, found, lost, unfit, remark)
    return found, failed


def look(index: int, candidate: Candidate, check: Callable[[Case], Mapping[str, str]]) -> Seen:
    """Read a candidate and check it."""
    try:
        case = candidate.read()
    except UNREADABLE as error:
        return Seen(lost=(candidate.key, str(error)))
    if case is None:
        return Seen()
    return Seen(chosen_of(index, candidate, case), failed=tuple(check(case).items()))


def chosen_of(index: int, candidate: Candidate, case: Case) -> Chosen:
    """Return what is known of a clip that was read."""
    truth = "" if case.scene is None else hashlib.sha256(json.dumps(case.scene.truth()).encode()).hexdigest()
    return Chosen(index, case.key, case.caption, case.fps, truth, candidate.sha256())


def clips_sha256(chosen: Sequence[Chosen]) -> str:
    """Return a checksum of clips with captions, rates and truth, wherever they lie; it has the first digits only."""
    return hashlib.sha256(json.dumps([one[1:] for one in chosen]).encode()).hexdigest()[:DIGITS]


def tell(
    held_out: HeldOut,
    count: int,
    found: Sequence[Chosen],
    lost: Sequence[tuple[str, str]],
    unfit: int,
    remark: Remark,
) -> None:
    """Remark what is left out; ValueError if too little is left."""
    first = [*lost[:1], *(("", fault) for fault in held_out.faults[:1])][:1]
    why = "".join(f"; the first one: {f'{key}: ' * bool(key)}{reason}" for key, reason in first)
    if not found or len(lost) > LOST + len(found):
        raise ValueError(
            f"{held_out.name}: found {count_text(len(lost), 'clip')} that cannot be read and {len(found)} that can, "
            f"expected a dataset of videos{why}"
        )
    for fault in held_out.faults:
        remark(f"{held_out.name}: {fault}")
    if unfit:
        remark(f"{held_out.name}: {count_text(unfit, 'clip does', 'clips do')} not fit the shape of the run, left out")
    if lost:
        remark(f"{held_out.name}: {count_text(len(lost), 'clip')} cannot be read, the first one: {': '.join(lost[0])}")
    if len(found) < count:
        remark(f"clips: found {len(found)} in {held_out.name}, fewer than {count}: all of them are used")


def read_again(held_out: HeldOut, chosen: Sequence[Chosen]) -> Iterator[Case]:
    """Yield clips that were chosen, in order; ValueError if one is not what it was."""
    wanted = iter(chosen)
    one = next(wanted, None)
    for index, candidate in enumerate(held_out):
        if one is None:
            return
        if index == one.index:
            case = candidate.read()
            if case is None or chosen_of(index, candidate, case) != one:
                raise ValueError(f"{held_out.name}: found another clip than {one.key} at its place: it has changed")
            yield case
            one = next(wanted, None)
    if one is not None:
        raise ValueError(f"{held_out.name}: found no {one.key} any more, expected it: the clips have changed")


def as_case(sample: dict[str, Any]) -> Case:
    """Return a sample with its scene if the truth of all its frames is known; no frame is given yet."""
    scene, frames = read_scene(sample["truth"], sample["caption"]) if sample["truth"] else None, sample["video"]
    scene = scene if scene is not None and len(scene.position) == len(frames) else None
    return Case(sample["key"], frames, frames, sample["caption"], float(sample["fps"]), 0, scene)
