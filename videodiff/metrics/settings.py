"""What decides a metric's figures besides its code: its settings, and the content of the files that they name."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from functools import lru_cache, partial
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

    A file, or a folder of a model, is known by its content: `{"name": "i3d.pt", "sha256": "0f3c..."}`. A function of
    the user's own is known as `_target_`, by its name and its file's content: others may give a number of its name.
    """
    usual = {each.name: each.default for each in metric.parameters() if isinstance(each.default, PLAIN)}
    chosen = {**usual, **metric.settings}
    function = function_of(metric)
    own = {} if function.__module__.partition(".")[0] == "videodiff" else {"_target_": named(function)}
    return {name: told(value) for name, value in chosen.items() if name not in OTHERS} | own


def function_of(metric: Metric | SetMetric) -> Callable[..., Any]:
    """Return the function that measures, without the settings that were fixed."""
    found = metric.measure if isinstance(metric, Metric) else metric.describe
    while isinstance(found, partial):
        found = found.func
    # A call may be that of an object.
    return found if hasattr(found, "__qualname__") else type(found)


def named(function: Callable[..., Any]) -> str:
    """Return the name of a function, and the checksum of its file, if it has one."""
    file = getattr(inspect.getmodule(function), "__file__", None)
    return f"{function.__module__}.{function.__qualname__}" + (f" {content(file)}" if file else "")


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
