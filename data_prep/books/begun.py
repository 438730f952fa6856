"""The settings that a work folder was begun with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.books.work_folder import read_json
from videodiff.data.storage.files import write_whole


def check_settings(path: Path, wanted: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raise where a work folder was begun otherwise: clips made in two ways must not meet in one dataset.

    usual: what the settings were where a folder that an older version has begun does not name them.
    """
    if not path.is_file():
        write_whole(path, json.dumps(wanted, indent=1).encode())
    before = flat(usual) | flat(read_json(path))
    for key, value in flat(wanted).items():
        if before[key] != value:
            raise ValueError(f"{key}: found {value}, expected {before[key]} as in {path}, or another out")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
