"""Check a command line by its composed configuration, before anything is built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from videodiff.shipped.runs import find_run
from videodiff.verbs.config.arguments import (
    Arguments,
    escape_hint,
    fitting,
    kinds_of,
    option_exists,
    parse,
    quoted,
    shell,
    swept,
    taken_by,
)
from videodiff.verbs.config.groups import conf_dir, groups, options
from videodiff.verbs.config.kinds import MISSING, Fault
from videodiff.verbs.config.names import answer
from videodiff.verbs.config.schema import VERBS, faults
from videodiff.verbs.config.stored import key_of, no_run, read_config
from videodiff.verbs.config.versions import RENAMED

# The number of combinations of a sweep that are checked beforehand; the others are checked when they run.
MOST_COMPOSED = 16
# Keys of folders that a verb reads: if one is missing on this machine, nothing else is checked.
READ = {
    "train": ("data.root", "data.validation_root"),
    "inspect": (),
    "cache": ("root",),
}
ENDS = ("--cfg", "--info", "--hydra-help")


def check(verb: str, arguments: Arguments) -> None:
    """Raise if a configuration cannot be composed, or has an unknown key or a wrong value."""
    overrides = [parse(override, taken_by(verb, key_of(override))) for override in arguments.overrides]
    check_launcher(overrides, arguments)
    for override in overrides:
        key = override.key_or_group
        if override.is_sweep_override() and not arguments.has("--multirun"):
            meant = as_a_list(verb, key, override.input_line)
            said = f"a list: {meant}" if meant else "one"
            raise ValueError(
                f"override {override.input_line!r}: found several values, expected {said}, or --multirun for a sweep"
            )
        if key in groups(verb) and override.value() is None and not override.is_delete():
            known = options(key, config_dirs(arguments))
            raise ValueError(f"override {override.input_line!r}: found null, expected one of {', '.join(known)}")
    for folder in config_dirs(arguments):
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"--config-dir: found no folder {folder}, expected one with files like those of conf/"
            )
    runs, ids = [], []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        for lines in combinations([list(swept(override)) for override in overrides]):
            cfg = composed(verb, lines, config_dirs(arguments))
            if not any(arguments.has(flag) for flag in ENDS):
                check_composed(verb, cfg, lines)
                check_folders(verb, cfg, arguments.has("--multirun"))
                runs.append(cfg.get("run"))
                ids.append(tracked_as(cfg))
    if verb == "train" and arguments.has("--multirun"):
        check_sweep(runs, overrides)
        check_ids(ids)


def check_sweep(runs: Sequence[str], overrides: Sequence[Override]) -> None:
    """Raise if two trainings of a sweep would write into one folder: the second would fail when its turn comes.

    Jobs without a name are numbered, and a run that is resumed has its folder.
    """
    keys = [override.key_or_group for override in overrides]
    twice = [run for i, run in enumerate(runs) if run in runs[:i]]
    if twice and {"name", "run"} & set(keys) and "resume" not in keys:
        swept_keys = [override.key_or_group for override in overrides if override.is_sweep_override()]
        name = "_".join(f"${{{key}}}" for key in swept_keys if key not in ("name", "run"))
        raise ValueError(
            f"run: found {twice[0]} for several jobs of the sweep, expected a folder for each: 'name={name}', or no "
            f"name=, which numbers them"
        )


def tracked_as(cfg: DictConfig) -> str | None:
    """Return the id that a training is told to have at Weights & Biases; None: it makes its own."""
    logger = (cfg.get("logger") or {}).get("wandb")
    return (logger.get("id") or os.environ.get("WANDB_RUN_ID") or None) if logger else None


def check_ids(ids: Sequence[str | None]) -> None:
    """Raise if two trainings of a sweep would be one run at Weights & Biases: the curves of all would be one."""
    told = [one for one in ids if one]
    twice = [one for i, one in enumerate(told) if one in told[:i]]
    if twice:
        raise ValueError(
            f"logger.wandb.id or WANDB_RUN_ID: found {twice[0]!r} for several jobs of the sweep, expected neither: "
            f"each job makes its own"
        )


def check_launcher(overrides: Sequence[Override], arguments: Arguments) -> None:
    """Raise if jobs should be launched but the launcher is not installed, or would not be used."""
    launchers = {str(override.value()) for override in overrides if override.key_or_group == "hydra/launcher"}
    if any(arguments.has(flag) for flag in ENDS):
        return
    if launchers and not arguments.has("--multirun"):
        raise ValueError(
            f"hydra/launcher={min(launchers)}: found no --multirun, expected it: otherwise the run starts here"
        )
    if "local" in launchers and None in map(find_spec, ("submitit", "hydra_plugins.hydra_submitit_launcher")):
        raise ModuleNotFoundError("hydra/launcher=local: found no package submitit", name="submitit")
    if "slurm" in launchers and shutil.which("sbatch") is None:
        raise FileNotFoundError(
            "hydra/launcher=slurm: found no sbatch, expected Slurm's commands; submit from a machine that has them"
        )


def config_dirs(arguments: Arguments) -> list[str]:
    """Return the configuration folders that the user adds."""
    return [value for flag, value in zip(arguments.flags, arguments.flags[1:], strict=False) if flag == "--config-dir"]


def searching(folders: Sequence[str]) -> list[str]:
    """Return the override with which Hydra reads these folders, too."""
    places = ",".join(quoted(f"file://{Path(folder).absolute()}") for folder in folders)
    return [f"hydra.searchpath=[{places}]"] if folders else []


def combinations(choices: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Yield the first choice of each key together, then each other choice once with the rest as in the first."""
    choices = [values for values in choices if values]
    first = [values[0] for values in choices]
    yield first
    others = [
        [*first[:place], value, *first[place + 1 :]] for place, values in enumerate(choices) for value in values[1:]
    ]
    yield from others[: MOST_COMPOSED - 1]


def composed(verb: str, overrides: Sequence[str], folders: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration of a verb; a mistyped key is answered with the nearest valid one.

    `folders`: those of the user, beside `conf/`.
    """
    search = searching(folders)
    try:
        return compose(verb, overrides=[*overrides, *search])
    except (HydraException, OmegaConfBaseException) as error:
        parsed = [parse(override) for override in overrides]
        chosen = [o.input_line for o in parsed if o.key_or_group in groups(verb) and not o.is_delete()]
        known = valid_names(verb, chosen, folders)
        for override in parsed:
            key = override.key_or_group
            if key not in known and not override.is_add() and not key.startswith("hydra"):
                near = meant_without_option(verb, override, known)
                if near is None and may_be_added(verb, override, [*overrides, *search]):
                    near = f"+{override.input_line}"
                near = near or RENAMED.get(key)
                other = f"did you mean {near!r}?" if near else answer(key, known)
                said = f"; {other}" if other else keys_beside(key, known)
                raise ValueError(f"override {override.input_line!r}: found no key {key!r}{said}") from error
        raise


def keys_beside(key: str, known: Sequence[str]) -> str:
    """Return the keys that the group of a key has, or the verbs that have this key, as the end of a message."""
    group = key.rpartition(".")[0]
    beside = [one for one in known if group and one.rpartition(".")[0] == group and f"{group}._" not in one]
    verbs = [verb for verb, kind in VERBS.items() if not group and key in (kind.keys or {})]
    if beside:
        return f", expected one of {', '.join(beside)}"
    return f"; it is a key of videodiff {', '.join(verbs)}" if verbs else ""


def meant_without_option(verb: str, override: Override, known: Sequence[str]) -> str | None:
    """Return what a key means in a group that has no option here, as the sampler has none where the run's counts.

    None for any other key.
    """
    group, _, name = override.key_or_group.partition(".")
    if not name or group not in groups(verb) or any(one.startswith(f"{group}.") for one in known):
        return None
    return f"{name}={override.get_value_string()}" if name in known else f"{group}=<option> {override.input_line}"


def may_be_added(verb: str, override: Override, overrides: Sequence[str]) -> bool:
    """Return whether a + before an override makes it valid: a mapping such as targets takes keys that it lacks."""
    lines = [f"+{line}" if line == override.input_line else line for line in overrides]
    try:
        found = faults(verb, plain(compose(verb, overrides=lines), lines))
    except (HydraException, OmegaConfBaseException, ValueError):
        return False
    return not any(concerns(override.key_or_group, fault) for fault in found)


def valid_names(verb: str, group_choices: list[str], folders: Sequence[str] = ()) -> list[str]:
    """Return every key and group of a verb's configuration, with the group choices that exist."""
    choices = [choice for choice in group_choices if option_exists(choice, folders)]
    return [*flat_keys(compose(verb, overrides=[*choices, *searching(folders)])), *groups(verb)]


def flat_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield every key of a nested configuration, dotted; where one refers to a group, the keys of this group too."""
    for key in node:
        yield f"{prefix}{key}"
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException:
            continue
        if isinstance(value, DictConfig):
            yield from flat_keys(value, f"{prefix}{key}.")


def check_composed(verb: str, cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Raise if a value is missing, has the wrong kind, or lies outside its range."""
    tree = plain(cfg, overrides)
    found = faults(verb, tree)
    for fault in found:
        if fault.no_key and fault.place in groups(verb):
            raise ValueError(
                f"{explain(fault, overrides).partition(': found ')[0]}: found a file without the line "
                f"'# @package _global_', expected it first, as its keys belong to the whole configuration"
            )
    if found:
        raise ValueError(
            explain(found[0], overrides, left_over(found, overrides)) + list_meant(verb, found[0], overrides)
        )
    for key in missing(verb, tree):
        raise ValueError(f"{key}: found nothing, expected {key}=<{what(verb, key)}>")


def missing(verb: str, tree: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that a verb needs and that have no value."""
    for key, value in tree.items():
        if value is MISSING:
            yield key
    data = tree.get("data")
    if verb == "train" and isinstance(data, dict):
        yield from (f"data.{key}" for key in ("root", "urls") if data.get(key) is MISSING)


def what(verb: str, key: str) -> str:
    """Return in words what a key expects."""
    return next((kind.expected for kind in kinds_of(verb, key)), "a value")


def plain(node: Any, overrides: Sequence[str] = ()) -> Any:
    """Return a configuration as plain values with references resolved; `MISSING` stands for a missing value."""
    if isinstance(node, (DictConfig, ListConfig)):
        if node._is_none():
            return None
        keys = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
        values = {key: value_at(node, key, overrides) for key in keys}
        return values if isinstance(node, DictConfig) else list(values.values())
    return node


def value_at(node: Any, key: Any, overrides: Sequence[str]) -> Any:
    """Return one value of a configuration as a plain value."""
    try:
        return MISSING if OmegaConf.is_missing(node, key) else plain(node[key], overrides)
    except InterpolationToMissingValueError:
        return MISSING
    except (InterpolationKeyError, OmegaConfBaseException) as error:
        text = str(node._get_node(key)._value())
        where = f"{node._get_full_key(key)}"
        found = next((o for o in reversed(overrides) if touches(key_of(o), where)), None)
        raise ValueError(
            f"{f'override {found!r}' if found else where}: found {text!r}, a reference to a missing "
            f"key{escape_hint(text)}"
        ) from error


def left_over(found: Sequence[Fault], overrides: Sequence[str]) -> list[str]:
    """Return the keys that a recipe sets and that the chosen options do not take."""
    given = [key_of(override) for override in overrides]
    unknown = [fault.place for fault in found if fault.no_key and "[" not in fault.place]
    return [place for place in unknown if not any(touches(place, key) for key in given)]


def explain(fault: Fault, overrides: Sequence[str], left: Sequence[str] = ()) -> str:
    """Return a fault as a line that names the override behind it, and what removes all keys that are left over."""
    said = f"found {shown(fault.found)}, expected {fault.expected}"
    if fault.no_key:
        said = f"found no key {fault.place!r}; {fault.expected}"
        if fault.place in left:
            words = " ".join(f"~{place}" for place in left)
            said += f" ({words} {'removes it' if len(left) == 1 else 'remove what the recipe sets'})"
    for override in reversed(overrides):
        key = key_of(override)
        if concerns(key, fault):
            return f"override {override!r}: {'' if key == fault.place else f'{fault.place}: '}{said}"
    return f"{fault.place}: {said}"


def list_meant(verb: str, fault: Fault, overrides: Sequence[str]) -> str:
    """Return the advice to give the wrong value of an override as a list, if its key takes one."""
    given = next((override for override in reversed(overrides) if key_of(override) == fault.place), None)
    meant = "" if fault.no_key or given is None else as_a_list(verb, fault.place, given)
    return f"; did you mean {meant}?" if meant else ""


def as_a_list(verb: str, key: str, override: str) -> str:
    """Return how to write an override with its value as a list, empty if its key takes none."""
    head, _, value = override.partition("=")
    meant = fitting(head, f"[{value}]", taken_by(verb, key))
    return f"{meant}, in a shell {shell(meant)}" if meant else ""


def touches(key: str, place: str) -> bool:
    """Return whether an override of this key decides the value at a place."""
    return place == key or place.startswith((f"{key}.", f"{key}["))


def concerns(key: str, fault: Fault) -> bool:
    """Return whether an override of this key is behind a fault: an unknown key may also be above the one typed."""
    return touches(key, fault.place) or (fault.no_key and touches(fault.place, key))


def shown(value: Any) -> str:
    """Return a value short enough for a line."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def check_folders(verb: str, cfg: DictConfig, elsewhere: bool) -> None:
    """Raise if a folder that a verb reads is missing, unless `elsewhere`: the jobs run on other machines."""
    if verb in ("sample", "evaluate", "report"):
        path = find_run(cfg.run) / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"run: {no_run(path)}")
        if verb != "report":
            read_config(path, cfg.trust)
    if elsewhere:
        return
    for key in READ.get(verb, ()):
        root = OmegaConf.select(cfg, key)
        if root is not None and "://" not in root and ":" not in root and not os.path.isdir(root):
            resumed = OmegaConf.select(cfg, "resume") is not None and not os.path.isabs(root)
            where = (
                f"; a run that is resumed looks for it below the current folder, {os.getcwd()}: change to the folder "
                f"where the run began, or give {key}=<where it is now>"
            )
            raise FileNotFoundError(f"{key}: {root}: found no such folder, expected a dataset{where * resumed}")
