"""What decides a metric's figures besides its code: its settings, and the content of the files that they name."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from videodiff.metrics.metric import Metric
from videodiff.metrics.sets.set_metric import SetMetric

# Settings that change the error of a figure, or the figure by no more than rounding.
OTHERS = ("device", "batch", "least", "resamples")
PLAIN = (str, int, float, bool, NoneType)
# The files of a folder that a model of transformers is read from; the others there are of other libraries.
READ = (".json", ".safetensors", ".txt", ".model")
DIGITS = 16


def deciding(metric: Metric | SetMetric) -> dict[str, Any]:
    """Return the settings that decide a metric's figures, defaults among them, as JSON holds them.

    A file, or a folder of a model, is known by its content: `{"name": "i3d.pt", "sha256": "0f3c..."}`.
    """
    usual = {each.name: each.default for each in metric.parameters() if isinstance(each.default, PLAIN)}
    chosen = {**usual, **metric.settings}
    return {name: told(value) for name, value in chosen.items() if name not in OTHERS}


def told(value: Any) -> Any:
    """Return a setting as JSON holds it."""
    if isinstance(value, str) and (found := content(value)):
        return {"name": Path(value).name, "sha256": found}
    return value if isinstance(value, PLAIN) else str(value)


@lru_cache(maxsize=32)
def content(path: str) -> str:
    """Return the checksum of a file, or of a model in a folder, as this process found it first; empty for neither."""
    if os.path.isfile(path):
        return checksum(path)
    inside = sorted(file for file in Path(path).iterdir() if file.suffix in READ) if os.path.isdir(path) else []
    lines = "".join(f"{file.name} {checksum(file)}\n" for file in inside if file.is_file())
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:DIGITS] if lines else ""


def checksum(path: str | Path) -> str:
    """Return the first digits of the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
