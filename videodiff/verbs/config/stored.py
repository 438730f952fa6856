"""Configuration that is stored in a folder: it may come from a stranger and is never an instruction.

A run keeps `config.yaml` and `overrides.yaml`, a preparation `.work/overrides.yaml`; folders travel. Only plain YAML of
bounded size without references is read. It may build only what `conf/` builds at the same place. Its overrides may not
reach Hydra itself, name a class, or choose where data are sent or written.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from videodiff.verbs.config.groups import conf_dir, options
from videodiff.verbs.config.versions import RENAMED, modern

CONFIG = "config.yaml"
MOST_BYTES, MOST_NODES, DEEPEST = 8 * 2**20, 500_000, 32
KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*([./][A-Za-z0-9_]+)*")
# The only reference that a stored override may hold: another key of the same configuration.
REFERENCE = re.compile(r"\$\{(?!hydra\b)[A-Za-z][\w.]*\}")
# A pattern for dotted keys, such as `callbacks.*.folder`, with any name for the star.
ONLY_HERE = (
    *("trust", "resume", "source", "out", "takedown", "retry"),
    *("callbacks.*.folder", "callbacks.*.mirror", "logger.*.*", "data.quarantine", "data.disk_cache", "data.pipes"),
    "strategy.nvme",
    *("caption.url", "caption.key", "acquire.cookies", "acquire.proxies", "acquire.storage", "acquire.private"),
    *("engine.address", "engine.scratch"),
)


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML's safe loader, with numbers as Hydra reads them and dates as text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?$|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$"
        r"|\.[0-9_]+(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Any:
    """Return the plain values in a YAML file; a reference, another kind of value or too many values are an error."""
    tree = read_plain(path)
    for place, value in leaves(tree):
        if isinstance(value, str) and "${" in value:
            raise ValueError(
                f"{path}: {dotted(place)}: found {value!r}, expected no ${{}}: references in a folder are not resolved"
            )
    return tree


def read_plain(path: Path) -> Any:
    """Return the values in a YAML file; anything but text, numbers and null in lists and mappings is an error."""
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: found more than {MOST_BYTES >> 20} MiB, expected a configuration")
    try:
        text = data.decode()
        check_events(yaml.parse(text, Loader=Loader))
        tree = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: found no plain YAML: {' '.join(str(error).split())[:200]}") from error
    for place, value in leaves(tree):
        if not isinstance(value, (str, int, float, type(None))):
            raise ValueError(
                f"{path}: {dotted(place)}: found a {type(value).__name__}, expected text, a number or null"
            )
    return tree


def check_events(events: Iterable[yaml.Event]) -> None:
    """Raise if YAML holds an alias, or is too deep or too large for a configuration."""
    depth = count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: an alias (*{event.anchor})")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        count += isinstance(event, yaml.NodeEvent)
        if depth > DEEPEST or count > MOST_NODES:
            raise ValueError(f"more than {DEEPEST} levels or {MOST_NODES:,} values")


def no_run(missing: Path) -> str:
    """Return what to say to a folder that lacks this file of a run: what it is instead, where that can be seen."""
    folder, said = missing.parent, f"found no {missing}, expected the folder of a training run"
    # The record of a checkpoint; the module that has its name imports torch.
    if (folder / "checkpoint.json").is_file():
        run = folder.absolute().parent.parent
        return f"{said}: this is a checkpoint, which checkpoint={folder.name} chooses beside its run {run}"
    if missing.name != CONFIG and (folder / CONFIG).is_file():
        return (
            f"{said}: this is a run to share, without its state; start_from={folder} begins a new one with its weights"
        )
    return said


def read_config(path: Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Return the configuration in a record of any version, after `check_built` has allowed every class in it."""
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: found a {type(tree).__name__}, expected keys and values")
    tree = modern(tree, path)
    check_built(tree, str(path), trust)
    return tree


def check_built(tree: Mapping[str, Any], where: str, trust: Sequence[str] = ()) -> None:
    """Raise if a configuration builds or calls anything that `conf/` does not build or call at the same place.

    `trust` names classes, or modules with classes, that the user of this command line trusts.
    """
    known, twins = built_by_conf(conf_dir())
    for place, node in mappings(tree):
        target = node.get("_target_")
        if isinstance(target, str) and is_trusted(target, trust):
            continue
        for key, value in node.items():
            if is_magic(key) and canonical(value) not in known.get((*original(place, twins), key), ()):
                expected = sorted(known.get((*original(place, twins), key), ())) or ["no such key"]
                raise ValueError(
                    f"{where}: {dotted((*place, key))}: found {value!r}, expected {' or '.join(expected)} as in conf/"
                    + (f"; trust=[{value}] allows it, if you trust its author" if key == "_target_" else "")
                )
        # This target is not one of our classes: it looks a class up by name.
        if isinstance(target, str) and target.startswith("hydra.") and canonical(node) not in known[WHOLE]:
            raise ValueError(f"{where}: {dotted(place)}: found {dict(node)!r}, expected what conf/ has of {target}")


def is_trusted(target: str, trust: Sequence[str]) -> bool:
    """Return whether a class is one of these, or lies in one of these modules."""
    return any(target == name or target.startswith(f"{name}.") for name in trust)


def is_magic(key: Any) -> bool:
    """Return whether a key has a meaning for Hydra: _target_, _partial_, _args_ and so on."""
    return isinstance(key, str) and key.startswith("_") and key.endswith("_")


WHOLE = ("hydra.*",)
Place = tuple[str, ...]


@cache
def built_by_conf(conf: Path) -> tuple[dict[Place, set[str]], dict[Place, Place]]:
    """Return what the files of `conf/` have at each place for each key with a meaning for Hydra, as JSON.

    The second result holds places that refer to another one: `callbacks.samples.generation` is `sampler`.
    """
    known, twins = defaultdict(set), {}
    for file in conf.rglob("*.yaml"):
        folders = file.relative_to(conf).parent.parts
        if folders[:1] != ("hydra",):
            tree = yaml.load(file.read_text(), Loader=Loader) or {}
            root = () if folders == ("experiment",) else folders
            for place, node in mappings({k: v for k, v in tree.items() if k not in ("hydra", "defaults")}, root):
                for key, value in node.items():
                    if is_magic(key):
                        known[*place, key].add(canonical(value))
                    if isinstance(value, str) and REFERENCE.fullmatch(value):
                        twins[*place, key] = tuple(value[2:-1].split("."))
                if str(node.get("_target_")).startswith("hydra."):
                    known[WHOLE].add(canonical(node))
    return known, twins


def original(place: Place, twins: Mapping[Place, Place]) -> Place:
    """Return the place that this one refers to, or lies in."""
    for twin, other in twins.items():
        if place[: len(twin)] == twin:
            return (*other, *place[len(twin) :])
    return place


def canonical(value: Any) -> str:
    """Return text that is equal only for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def mappings(node: Any, place: Place = ()) -> Iterator[tuple[Place, Mapping[Any, Any]]]:
    """Yield every mapping of a tree with its place."""
    if isinstance(node, Mapping):
        yield place, node
    for key, value in children(node):
        yield from mappings(value, (*place, key))


def leaves(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every key and every plain value of a tree with its place."""
    if isinstance(node, (dict, list)):
        for key, value in children(node):
            if isinstance(node, dict):
                yield place, key
            yield from leaves(value, (*place, key))
    else:
        yield place, node


def children(node: Any) -> Iterable[tuple[Any, Any]]:
    """Return the items of a mapping or a list, by key or index."""
    if isinstance(node, Mapping):
        return node.items()
    return ((f"[{number}]", value) for number, value in enumerate(node)) if isinstance(node, (list, tuple)) else ()


def dotted(place: Sequence[Any]) -> str:
    """Return a place in the form of an override's key."""
    return ".".join(map(str, place)).replace(".[", "[") or "."


def read_overrides(path: Path, given: Iterable[str], dropped: Iterable[str] = ()) -> list[str]:
    """Return the overrides that a folder keeps, without the keys that this command line gives and without `dropped`.

    Allowed are `key=value`, and `~key` or `+key=value` for one key below a group. Not allowed are Hydra's own keys,
    classes, sweeps, options without a file in `conf/`, and the keys in `ONLY_HERE`.
    """
    lines = read_plain(path)
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{path}: found a {type(lines).__name__}, expected a list of key=value")
    superseded = {key_of(override) for override in given} | set(dropped)
    lines = [with_present_name(line) for line in lines]
    return [line for line in lines if key_of(line) not in superseded and check_override(line, path)]


def with_present_name(override: str) -> str:
    """Return an override with today's name of its key."""
    key, equals, value = override.partition("=")
    return f"{RENAMED.get(key, key)}{equals}{value}"


def key_of(override: str) -> str:
    """Return the key of an override, without the sign that adds or deletes it."""
    return override.partition("=")[0].lstrip("+~")


def names_command(override: str) -> bool:
    """Return whether an override gives a command to a shell: it counts only on the command line itself."""
    return key_of(override).startswith("data") and "pipe:" in override


def check_override(line: str, path: Path) -> bool:
    """Return True for an override that may be taken from a folder; anything else is an error."""
    try:
        override = OverridesParser.create().parse_override(line)
    except HydraException as error:
        raise ValueError(f"{path}: found the override {line!r}, expected key=value") from error
    key, value = override.key_or_group, override._value
    problem = None
    if override.package is not None or not KEY.fullmatch(key) or key.split("/")[0].split(".")[0] == "hydra":
        problem = "a key of the configuration"
    elif any(is_magic(part) for name in (key, *keys_in(value)) for part in re.split(r"[./]", name)):
        problem = "no class: name it on this command line"
    elif override.is_sweep_override() or not is_plain(value) or "${" in REFERENCE.sub("", line):
        problem = "one plain value"
    elif override.is_force_add() or ((override.is_delete() or override.is_add()) and "." not in key):
        problem = "key=value"
    elif is_group(key) and value is not None and not names_options(key, value):
        problem = f"a file of conf/{key}"
    elif any(map(is_only_here, [key, *(f"{key}.{part}" for part in keys_in(value))])) or names_command(line):
        problem = "none: only the command line may set this key, add it there if it is yours"
    if problem:
        raise ValueError(f"{path}: found the override {line!r}, expected {problem}")
    return True


def is_only_here(key: str) -> bool:
    """Return whether a key may be set on the command line only."""
    return any(re.fullmatch(re.escape(name).replace(r"\*", r"\w+") + r"(\..*)?", key) for name in ONLY_HERE)


def names_options(group: str, value: Any) -> bool:
    """Return whether a value is an option of a group, or a list of options."""
    return all(str(name) in options(group) for name in (value if isinstance(value, list) else [value]))


def is_group(key: str) -> bool:
    """Return whether a key names a folder of `conf/`."""
    return (conf_dir() / key).is_dir()


def is_plain(value: Any) -> bool:
    """Return whether the value of an override is text, a number, null, or a list or mapping of these."""
    if isinstance(value, dict):
        return all(is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(is_plain, value))
    return isinstance(value, (str, int, float, type(None), QuotedString))


def keys_in(value: Any) -> Iterator[str]:
    """Yield every key of a value, dotted."""
    for key, part in children(value):
        name = key.text if isinstance(key, QuotedString) else str(key)
        yield name
        yield from (f"{name}.{inner}" for inner in keys_in(part))
