"""What `start_from` means for a configuration: the words that its source was trained with, and where the two differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from videodiff.diffusion.flow_map import FlowMap
from videodiff.diffusion.objective import Objective
from videodiff.shipped.runs import find_run
from videodiff.text.words import read_words
from videodiff.training.start import Start, find_source
from videodiff.training.state.checkpoint import RECORD
from videodiff.verbs.config.build import fill_text, load_run, read_run, shape_of
from videodiff.words import count_text

# What makes a sample beside weights and network: other values there make other samples.
SAMPLES = (
    *("path", "objective.prediction", "sampler", "codec", "text", "data.frames", "data.height", "data.width"),
    "trainer.precision",
)
# What a network's answer means: another one teaches something else.
TAUGHT = ("objective.prediction", "path", "codec._target_", "text._target_")
# Of these settings no sample depends: they decide which captions are refused.
NO_MATTER = ("text.long", "text.unknown")


def find_start(cfg: DictConfig) -> Start | None:
    """Return what a run is to begin with, None where it begins with new weights.

    Learned words that the configuration leaves open are those of the source; others than the source's are refused.
    """
    if cfg.start_from is None:
        if cfg.fresh:
            raise ValueError(f"fresh: found {list(cfg.fresh)} without start_from=, expected it: all weights are new")
        return None
    source = find_source(str(cfg.start_from))
    if source.run is None:
        return Start(source, cfg.fresh)
    before = read_run(source.run, cfg.trust)
    if before.text._target_ == cfg.text._target_:
        fill_text(cfg, before)
        check_words(cfg, before, source.run)
    if issubclass(get_class(cfg.objective._target_), FlowMap):
        check_answers(cfg, before, "start_from")
    return Start(source, cfg.fresh, lambda: network_of(before), list(unlike(cfg, before)))


def find_teacher(cfg: DictConfig, objective: Objective) -> None:
    """Load the teacher of an objective that has one; a run that goes on needs it as a new one does."""
    check_learns(cfg, objective)
    if not objective.taught:
        return
    place = find_run(objective.teacher)
    run, checkpoint = (place.parent.parent, str(place)) if (place / RECORD).is_file() else (place, None)
    before, teacher, _ = load_run(run, checkpoint, cfg.trust)
    check_words(cfg, before, run)
    check_answers(cfg, before, "objective.teacher")
    objective.network = teacher.denoiser.requires_grad_(False)


def check_learns(cfg: DictConfig, objective: Objective) -> None:
    """Raise if an objective lacks what it learns from, or the weights that are to learn."""
    if objective.taught and objective.teacher is None:
        raise ValueError("objective.teacher: found none, expected a run to learn from, as start_from= names it")
    if not isinstance(objective, FlowMap):
        return
    if cfg.start_from is None:
        raise ValueError(
            "start_from: found none with objective=flow_map, expected a trained run, whose velocity it follows"
        )
    if not objective.steps:
        raise ValueError(
            "objective.steps: found none, expected the numbers of steps of the samplers that it is to serve"
        )


def check_answers(cfg: DictConfig, before: DictConfig, key: str) -> None:
    """Raise if the answers of the run that a key names, which are to be learned, mean something else than one's own."""
    for line in unlike(cfg, before, TAUGHT):
        raise ValueError(f"{key}: found {OmegaConf.select(cfg, key)}, whose answers mean something else: {line}")


def check_words(cfg: DictConfig, before: DictConfig, run: Path) -> None:
    """Raise where learned words are not those of the source: each would have the meaning of another one."""
    new, old = words_of(cfg), words_of(before)
    if new != old:
        first = next((n for n, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old)))
        raise ValueError(
            f"text.vocabulary: found {count_text(len(new), 'word')}, expected the {len(old)} of {run} in their order "
            f"(the first difference is at index {first}); text.vocabulary=null takes them"
        )


def words_of(cfg: DictConfig) -> list[str]:
    """Return the learned words of a configuration, none where it has no vocabulary."""
    found = cfg.text.get("vocabulary")
    return read_words(found) if isinstance(found, str) else list(found or ())


def network_of(cfg: DictConfig) -> nn.Module:
    """Return the network of a run with new weights; neither its codec nor its text encoder is loaded."""
    (channels, _), (_, width) = shape_of(cfg.codec), shape_of(cfg.text)
    return instantiate(cfg.model, channels=channels, text_width=width)


def unlike(cfg: DictConfig, before: DictConfig, keys: Sequence[str] = SAMPLES) -> Iterator[str]:
    """Yield a line for each setting, of samples where no others are named, that is not that of the source."""
    for key in keys:
        new, old = (flat(OmegaConf.select(one, key), key) for one in (cfg, before))
        for name in sorted(new.keys() | old.keys()):
            if new.get(name) != old.get(name) and name not in NO_MATTER:
                yield f"{name} {new.get(name)!r} (source: {old.get(name)!r})"


def flat(node: Any, prefix: str) -> dict[str, Any]:
    """Return a part of a configuration with dotted keys."""
    if not isinstance(node, DictConfig):
        return {prefix: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node}
    return {key: value for name in node for key, value in flat(node[name], f"{prefix}.{name}").items()}
