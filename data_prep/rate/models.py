"""Models that the user gives, as files on this disk."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from data_prep.rate.model_score import model_scores, numbers_by_key
from videodiff.data.storage.files import no_file

# Files of a repository on a hub: weights without pickles, and what says how to use them.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


@dataclass(frozen=True)
class Models:
    """Models on this disk: the key under `models` of each folder or file, and its path."""

    paths: tuple[tuple[str, Path], ...] = ()

    def kinds(self) -> dict[str, dict[str, Path]]:
        """Return, for each kind of model that is given, its path and the paths of its parts, by key."""
        given, scores = dict(self.paths), model_scores()
        return {
            kind: {key: given[key] for key in (kind, *scores[kind].parts) if key in given}
            for kind in scores
            if kind in given
        }

    def names(self) -> list[str]:
        """Return the scores that there will be."""
        numbers = numbers_by_key()
        return [number for paths in self.kinds().values() for key in paths for number in numbers[key]]

    def identities(self) -> dict[str, str]:
        """Return, for each model, a fingerprint of the files that determine its scores."""
        return {kind: "".join(map(hash_files, paths.values())) for kind, paths in self.kinds().items()}


def find_models(models: Mapping[str, str | None], limits: Iterable[str] = ()) -> Models:
    """Return the models of these folders, files or hub names; one that is missing, or has no model, is an error.

    limits: names of the scores that a filter asks for.
    """
    numbers, owners = numbers_by_key(), {part: kind for kind, score in model_scores().items() for part in score.parts}
    if unknown := models.keys() - numbers.keys():
        raise ValueError(f"models: found {min(unknown)!r}, expected some of {', '.join(numbers)}")
    given = {key: str(name) for key, name in models.items() if name}
    for key, scores in numbers.items():
        if key not in given and (asked := set(scores) & set(limits)):
            raise ValueError(f"filter.{min(asked)}: found no model for it, expected models.{key}=<path>")
    if given and find_spec("transformers") is None:
        raise ModuleNotFoundError(f"models.{min(given)}: found no package transformers", name="transformers")
    for part in given.keys() & owners.keys():
        if owners[part] not in given:
            raise ValueError(
                f"models.{part}: found no models.{owners[part]}, expected it too, as the former is part of it"
            )
        if not Path(given[part]).is_file():
            raise ValueError(f"models.{part}: found {no_file(given[part])}, expected a .safetensors file")
    return Models(
        tuple(
            (key, Path(name).resolve() if key in owners else find_folder(key, name))
            for key, name in sorted(given.items())
        )
    )


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
