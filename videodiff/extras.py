"""Which extra of the project brings a package that is not installed."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from videodiff.data.storage.causes import chain

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Modules that have another name than the distribution that brings them, of those that are optional.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "scenedetect": "scenedetect-headless",
    "huggingface_hub": "huggingface-hub",
    "hydra_plugins": "hydra-submitit-launcher",
}
# Extras that bring others.
WHOLE = ("dev",)


def missing(error: BaseException) -> str | None:
    """Return, of an error that comes from a package of an extra that is not installed, what to do; None of others."""
    for cause in chain(error):
        name = cause.name if isinstance(cause, ModuleNotFoundError) else None
        extra = extra_of(name.partition(".")[0]) if name else None
        if extra:
            return f"found no package {name.partition('.')[0]}, expected it: pip install 'videodiff[{extra}]'"
    return None


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module; None where the plain install does, or nothing."""
    wanted = normal(DISTRIBUTIONS.get(module, module))
    if any(normal(name) == wanted for name in extras()[""]):
        return None
    return next((extra for extra, names in extras().items() if wanted in map(normal, names)), None)


def normal(name: str) -> str:
    """Return the name of a distribution as all spellings of it have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def extras() -> dict[str, list[str]]:
    """Return the distributions of the plain install, as "", and of each extra that brings some itself."""
    found: dict[str, list[str]] = {"": []}
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text())["project"]
        lines = {"": project["dependencies"], **project["optional-dependencies"]}
        found |= {extra: [distribution(line) for line in each] for extra, each in lines.items()}
    else:
        for line in installed():
            extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
            found.setdefault(extra[1] if extra else "", []).append(distribution(line))
    # An extra that brings others names the project itself.
    ours = {extra: [name for name in names if normal(name) != "videodiff"] for extra, names in found.items()}
    return {extra: names for extra, names in ours.items() if extra not in WHOLE}


def installed() -> list[str]:
    """Return what the installed project asks for."""
    try:
        return requires("videodiff") or []
    except PackageNotFoundError:
        return []


def distribution(line: str) -> str:
    """Return the name of the distribution that a requirement begins with."""
    return re.match(r"[\w.-]+", line)[0]
