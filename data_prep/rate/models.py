"""Models that the user gives, as files on this disk."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# What each kind of model gives; the aesthetic head works on the features of the CLIP.
SCORES = {"clip": ("clip_similarity",), "aesthetic": ("aesthetic",), "nsfw": ("nsfw",)}
RATED = frozenset(name for names in SCORES.values() for name in names)
# Files of a repository on a hub: weights without pickles, and what says how to use them.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


class Models(NamedTuple):
    """Models on this disk: folders of a whole CLIP and of an image classifier, the file of a head; None for none."""

    clip: Path | None = None
    aesthetic: Path | None = None
    nsfw: Path | None = None

    def names(self) -> list[str]:
        """Return the scores that there will be."""
        return [name for kind in self._fields if getattr(self, kind) for name in SCORES[kind]]

    def identities(self) -> dict[str, str]:
        """Return for each run of a model over a clip what its scores follow from."""
        found = {}
        if self.clip:
            found["clip"] = hash_files(self.clip) + (hash_files(self.aesthetic) if self.aesthetic else "")
        return found | ({"nsfw": hash_files(self.nsfw)} if self.nsfw else {})


def find_models(models: Mapping[str, str | None], limits: Iterable[str] = ()) -> Models:
    """Return the models of these folders, files or hub names; one that is missing, or has no model, is an error.

    limits: names of the scores that a filter asks for.
    """
    if unknown := models.keys() - SCORES.keys():
        raise ValueError(f"models: found {min(unknown)!r}, expected some of {', '.join(SCORES)}")
    given = {kind: str(name) for kind, name in models.items() if name}
    for kind, scores in SCORES.items():
        if kind not in given and (asked := set(scores) & set(limits)):
            raise ValueError(f"filter.{min(asked)}: found no model for it, expected models.{kind}=<path>")
    if given and find_spec("transformers") is None:
        raise ModuleNotFoundError(f"models.{min(given)}: found no package transformers", name="transformers")
    if "aesthetic" in given:
        if "clip" not in given:
            raise ValueError("models.aesthetic: found no models.clip, expected the CLIP whose features the head rates")
        if not Path(given["aesthetic"]).is_file():
            raise ValueError(f"models.aesthetic: found no file {given['aesthetic']!r}, expected a .safetensors file")
    folders = {kind: find_folder(kind, name) for kind, name in given.items() if kind != "aesthetic"}
    return Models(**folders, **({"aesthetic": Path(given["aesthetic"]).resolve()} if "aesthetic" in given else {}))


def find_folder(kind: str, name: str) -> Path:
    """Return the folder of a model, brought from the hub where it is a name there."""
    if Path(name).is_dir():
        if not Path(name, "config.json").is_file():
            raise ValueError(f"models.{kind}: found no config.json in {name!r}, expected the folder of a model")
        return Path(name).resolve()
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"models.{kind}: found no folder {name!r}, expected one, or a name on the Hugging Face hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"models.{kind}: found neither a folder nor a readable model of the Hugging Face hub named {name!r} "
            f"({type(error).__name__})"
        ) from error


def hash_files(path: Path) -> str:
    """Return a sha-256 over the files of a model, wherever it lies."""
    files = [path] if path.is_file() else sorted({file for pattern in FILES for file in path.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            digest.update(f"{file.name} {hashlib.file_digest(data, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
