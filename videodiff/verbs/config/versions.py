"""The version of a run's record: which keys a configuration has, and what a key meant before records had it.

A record must be readable years later. A key that it lacks must not get today's default, which may mean something else
than what was trained.

When a class that `conf/` names takes a new key: raise `VERSION`, and give in `MEANT` what the class did before.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from videodiff import __version__

RECORD, VERSION = "record", 21
# For each version the keys that it introduced, by class, with the value that means what the class did before. Records
# without a version are of version 1.
MEANT: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "videodiff.data.loader.datamodule.clip_data": {
            "more": [],
            "weights": None,
            "window": None,
            "buckets": None,
            "stages": None,
            "batch": None,
            "captions": None,
            "fixed": False,
        },
        "videodiff.text.words.Words": {"max_words": 32, "long": "refuse", "unknown": "refuse"},
        "videodiff.generation.settings.Generation": {"lead": 0},
        "videodiff.training.optimizer.AdamW": {"fused": False},
        "videodiff.training.optimizer.Muon": {"fused": False},
    },
    3: {"videodiff.data.loader.datamodule.clip_data": {"decoder": "pyav"}},
    4: {"videodiff.training.callbacks.guard.Guard": {"spike": None, "history": 100, "rollbacks": 0}},
    5: {"videodiff.data.tars.datamodule.tar_data": {"decoder": "pyav"}},
    7: {
        "videodiff.generation.settings.Generation": {
            "rescale": 0.0,
            "history": 1.0,
            "history_level": 1.0,
            "reconstruction": 0.0,
        }
    },
    9: {"videodiff.diffusion.flow_map.FlowMap": {"steps": [], "pieces": 6, "width": 0.1}},
    10: {"videodiff.denoiser.transformer.SpaceTimeTransformer": {"captioned": [True]}},
    11: {"videodiff.generation.settings.Generation": {"guide": "caption"}},
    # No rank: all weights of the flow maps of before took steps. No clip can be sampled by them any more.
    12: {"videodiff.denoiser.transformer.SpaceTimeTransformer": {"step_rank": 0}},
    13: {"videodiff.diffusion.flow_map.FlowMap": {"own": 0.0}},
    15: {"videodiff.text.words.Words": {"near": 0}},
    16: {"videodiff.diffusion.flow_map.FlowMap": {"history": 1.0}},
    17: {"videodiff.generation.settings.Generation": {"apart": False}},
    # Errors of pixels counted by their size, which no key brings back: a run that goes on counts those of frames.
    18: {"videodiff.diffusion.flow_map.FlowMap": {"scale": 1.0, "lead": 0, "near": 0.0, "whole": 0.0}},
    19: {"videodiff.diffusion.flow_map.FlowMap": {"spread": 0.0}},
    20: {"videodiff.denoiser.transformer.SpaceTimeTransformer": {"padding": "masked"}},
    21: {"videodiff.generation.settings.Generation": {"noise": 1.0}},
}
# For each version the keys that went with it, by class.
GONE: dict[int, dict[str, tuple[str, ...]]] = {
    9: {"videodiff.diffusion.flow_map.FlowMap": ("clean", "difference")},
    12: {"videodiff.diffusion.flow_map.FlowMap": ("still", "teacher")},
    14: {"videodiff.denoiser.transformer.SpaceTimeTransformer": ("two_levels",)},
}
# Classes that have moved since folders were written.
MOVED = {
    "videodiff.data.datamodule.ClipDataModule": "videodiff.data.loader.datamodule.clip_data",
    "videodiff.data.loader.datamodule.ClipDataModule": "videodiff.data.loader.datamodule.clip_data",
    "videodiff.data.loader.webdataset.TarDataModule": "videodiff.data.tars.datamodule.tar_data",
    "videodiff.diffusion.generation.Generation": "videodiff.generation.settings.Generation",
    "lightning.pytorch.loggers.TensorBoardLogger": "videodiff.training.run.logging.Board",
    "videodiff.training.callbacks.Checkpoints": "videodiff.training.callbacks.checkpoints.Checkpoints",
    "videodiff.training.callbacks.Guard": "videodiff.training.callbacks.guard.Guard",
    "videodiff.training.callbacks.Progress": "videodiff.training.callbacks.progress.Progress",
    "videodiff.training.callbacks.SampleClips": "videodiff.training.callbacks.samples.SampleClips",
    "videodiff.training.callbacks.StopGently": "videodiff.training.callbacks.stop.StopGently",
    "videodiff.training.logging.wandb_logger": "videodiff.training.run.logging.wandb_logger",
}
# Keys of the command line that have been renamed since folders were written.
RENAMED = {"kind": "format"}


def signed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration for a record: it begins with the versions of the record and of the project."""
    return {RECORD: {"version": VERSION, "videodiff": __version__}, **config}


def modern(tree: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Return the configuration in a record of any known version, with today's names and all keys."""
    version = version_of(tree, where)
    lacking: dict[str, dict[str, Any]] = {}
    gone: dict[str, set[str]] = {}
    for number in range(VERSION, version, -1):
        for name, keys in MEANT.get(number, {}).items():
            lacking[name] = {**lacking.get(name, {}), **keys}
        for name, names in GONE.get(number, {}).items():
            gone.setdefault(name, set()).update(names)
    return completed(moved({key: value for key, value in tree.items() if key != RECORD}), lacking, gone)


def version_of(tree: Mapping[str, Any], where: str | Path) -> int:
    """Return the version of a record; one that is newer than this videodiff is an error."""
    head = tree.get(RECORD, {"version": 1})
    version = head.get("version") if isinstance(head, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{where}: {RECORD}.version: found {version!r}, expected a whole number from 1 to {VERSION}")
    if version > VERSION:
        writer = head.get("videodiff")
        newer = f"videodiff {writer}" if isinstance(writer, str) else "the videodiff that wrote it"
        raise ValueError(
            f"{where}: {RECORD}.version: found {version}, expected at most {VERSION}, which videodiff {__version__} "
            f"reads; install {newer} or newer"
        )
    return version


def moved(node: Any) -> Any:
    """Return a tree in which every `_target_` has today's name of its class."""
    if isinstance(node, dict):
        return {k: MOVED.get(v, v) if k == "_target_" and isinstance(v, str) else moved(v) for k, v in node.items()}
    return [moved(value) for value in node] if isinstance(node, list) else node


def completed(node: Any, lacking: Mapping[str, Mapping[str, Any]], gone: Mapping[str, Container[str]]) -> Any:
    """Return a tree in which each class has also the keys that it lacked, with their meaning then; some are gone."""
    if isinstance(node, dict):
        name = str(node.get("_target_"))
        kept = {key: value for key, value in node.items() if key not in gone.get(name, ())}
        return {
            **{key: completed(value, lacking, gone) for key, value in kept.items()},
            **{key: copy.deepcopy(value) for key, value in lacking.get(name, {}).items() if key not in kept},
        }
    return [completed(value, lacking, gone) for value in node] if isinstance(node, list) else node
