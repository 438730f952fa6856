"""A memory for Hydra: what it makes of the files in `conf/` before it applies overrides of keys, it makes once.

A command composes three times, from thirty files each: more than half of the CPU time of a tiny training. The list of
files depends only on the chosen options, and the merged files depend only on the list. Hydra has no public place
between these two and the overrides of keys. With files from another folder, nothing is remembered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from videodiff.verbs.config.groups import conf_dir

CONF = str(conf_dir())
MEMORY: dict[tuple[Any, ...], Any] = {}
# Hydra's own: list the files that the chosen options name, merge them, load one.
LIST, MERGE = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
LOAD = FileConfigSource.load_config


def remember() -> None:
    """Let Hydra remember, in this process and its forks."""
    config_loader_impl.create_defaults_list = listed
    ConfigLoaderImpl._compose_config_from_defaults_list = merged
    FileConfigSource.load_config = loaded


def forget() -> None:
    """Let Hydra compose from files again."""
    config_loader_impl.create_defaults_list = LIST
    ConfigLoaderImpl._compose_config_from_defaults_list = MERGE
    FileConfigSource.load_config = LOAD


def recalled(key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """Return a copy of what was made under this key."""
    if key not in MEMORY:
        MEMORY[key] = make()
    return copy.deepcopy(MEMORY[key])


def is_from_conf(repo: Any) -> bool:
    """Return whether all files come from `conf/`."""
    return {source.path for source in repo.get_sources() if source.scheme() == "file"} == {CONF}


def listed(repo: Any, config_name: str, overrides_list: Sequence[Override], **how: bool) -> Any:
    """Do what `create_defaults_list` does: overrides of keys are only passed on."""
    options = [override for override in overrides_list if repo.group_exists(override.key_or_group)]
    if not is_from_conf(repo) or any(isinstance(option.value(), dict) for option in options):
        return LIST(repo, config_name, overrides_list, **how)
    key = ("list", config_name, *(option.input_line for option in options), *sorted(how.items()))
    found = recalled(key, lambda: LIST(repo, config_name, options, **how))
    found.config_overrides[:] = [o for o in overrides_list if o not in options and not o.is_sweep_override()]
    return found


def merged(self: ConfigLoaderImpl, defaults: Sequence[Any], repo: Any) -> DictConfig:
    """Do what `_compose_config_from_defaults_list` does."""
    if not is_from_conf(repo):
        return MERGE(self, defaults, repo)
    return recalled(("merge", repr(defaults)), lambda: MERGE(self, defaults, repo))


def loaded(self: FileConfigSource, config_path: str) -> Any:
    """Do what `load_config` of a folder does."""
    if self.path != CONF:
        return LOAD(self, config_path)
    return recalled(("load", config_path, self.provider), lambda: LOAD(self, config_path))
