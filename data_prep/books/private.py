"""Private: what a work folder holds is for its owner: addresses with their signatures lie there and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from videodiff.data.storage.address import without_secrets

ENVIRONMENT = "env:"
# In settings of how to fetch: a key such as `secret` with its value, but for the name of an environment variable.
SETTING = re.compile(r"(?i)(\w*(?:secret|key|token|passw|credential)\w*['\"]?\s*[:=]\s*)(?!env:|null\b)([^,{}\[\]\s]+)")


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can enter, and have its files be the owner's alone."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
    return folder


def private_file(path: str | Path) -> str:
    """Return the name of a file that only its owner can read, made if need be."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return str(path)


def from_environment(value: Any, key: str) -> Any:
    """Return settings with the values of the environment variables that they name as `env:NAME`."""
    if isinstance(value, Mapping):
        return {name: from_environment(inside, f"{key}.{name}") for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [from_environment(inside, key) for inside in value]
    if not isinstance(value, str) or not value.startswith(ENVIRONMENT):
        return value
    name = value.removeprefix(ENVIRONMENT)
    if name not in os.environ:
        raise ValueError(f"{key}: found no environment variable {name!r}, expected one with the value")
    return os.environ[name]


def without_values(overrides: Iterable[str]) -> list[str]:
    """Return overrides as they may be kept: secrets are left out of URLs and of settings of how to fetch."""
    kept = map(without_secrets, overrides)
    return [SETTING.sub(r"\1...", one) if one.lstrip("+~").startswith("acquire") else one for one in kept]
