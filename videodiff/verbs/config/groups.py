"""The contents of `conf/`: one file per verb, and groups, each a folder with the options that a verb chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml


def conf_dir() -> Path:
    """Return the configuration folder: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def groups(verb: str) -> list[str]:
    """Return the configuration groups that a verb chooses from."""
    return groups_of(conf_dir() / f"{verb}.yaml")


@cache
def groups_of(path: Path) -> list[str]:
    """Return the configuration groups that the file of a verb names; a command asks a dozen times."""
    defaults = yaml.safe_load(path.read_text())["defaults"]
    return [group for entry in defaults if isinstance(entry, dict) for group in entry if " " not in group]


def options(group: str, folders: Sequence[str] = ()) -> list[str]:
    """Return the options of a group, also those of further configuration folders; none if it does not exist."""
    return sorted(
        {path.stem for folder in (conf_dir(), *map(Path, folders)) for path in (folder / group).glob("*.yaml")}
    )
