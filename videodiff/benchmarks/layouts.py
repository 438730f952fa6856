"""The file names that benchmarks expect, by prompt and number or by scenario.

VBench: `<prompt>-<0..4>.mp4` in one folder, but 25 clips for each prompt of temporal_flickering. VBench-2.0:
`<dimension>/<the first 180 letters of the prompt>-<0..2>.mp4`, but 20 clips for each prompt of Diversity. PhyGenBench:
`output_video_<1..160>.mp4` in the order of its prompts.json. Physics-IQ: the names in its descriptions.csv, clips of
exactly 5 seconds. FVD tools: `real/` and `fake/` with equally many clips.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Clips for each prompt of dimensions that need more than the others.
VBENCH, VBENCH_MORE = 5, {"temporal_flickering": 25}
VBENCH2, VBENCH2_MORE = 3, {"Diversity": 20}
# Letters of the prompt in a file name of VBench-2.0, and the most bytes of a file name.
LETTERS, MOST_BYTES = 180, 255
SECONDS, OFF = 5.0, 0.001


@dataclass(frozen=True)
class Made:
    """A sampled clip: its file, its prompt, the video that it continues, and its length in seconds."""

    path: Path
    prompt: str
    given: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Place:
    """A file that a benchmark reads: its name, and the prompt and number of its clip."""

    name: str
    prompt: str
    number: int


def vbench(info: Sequence[Mapping[str, Any]], dimensions: Sequence[str] = ()) -> list[Place]:
    """Return the files of VBench for its VBench_full_info.json, of these dimensions, by default of all."""
    places: dict[str, Place] = {}
    for entry in chosen(info, dimensions):
        count = max(VBENCH, *(VBENCH_MORE.get(one, 0) for one in entry["dimension"]))
        # Dimensions that share a prompt share its clips.
        places |= {place.name: place for place in numbered("", entry["prompt_en"], entry["prompt_en"], count)}
    return list(places.values())


def vbench2(info: Sequence[Mapping[str, Any]], dimensions: Sequence[str] = ()) -> list[Place]:
    """Return the files of VBench-2.0 for its VBench2_full_info.json, one folder for each dimension."""
    places: dict[str, Place] = {}
    for entry in chosen(info, dimensions):
        for dimension in entry["dimension"]:
            if dimensions and dimension not in dimensions:
                continue
            count = max(VBENCH2, VBENCH2_MORE.get(dimension, 0))
            stem = entry["prompt_en"][:LETTERS]
            for place in numbered(f"{dimension}/", stem, entry["prompt_en"], count):
                if places.setdefault(place.name, place) != place:
                    raise ValueError(
                        f"info: found two prompts of {dimension} that begin with the same {LETTERS} letters, "
                        f"{stem[:40]!r}..., expected a file name of its own for each"
                    )
    return list(places.values())


def phygenbench(prompts: Sequence[str]) -> list[Place]:
    """Return the files of PhyGenBench for the prompts of its prompts.json; one that is there twice has two clips."""
    before: Counter[str] = Counter()
    places = []
    for number, prompt in enumerate(prompts, 1):
        places.append(Place(f"output_video_{number}.mp4", prompt, before[prompt]))
        before[prompt] += 1
    return places


def numbered(folder: str, stem: str, prompt: str, count: int) -> Iterator[Place]:
    """Yield the files of one prompt."""
    for number in range(count):
        name = f"{stem}-{number}.mp4"
        if not can_be_name(name):
            raise ValueError(f"info: found the prompt {prompt[:60]!r}, expected one that can be the name of a file")
        yield Place(f"{folder}{name}", prompt, number)


def can_be_name(text: str) -> bool:
    """Return whether a text can be the name of a file or folder within another one."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        # JSON can hold half a character.
        return False
    return size <= MOST_BYTES and not {"/", "\0"} & set(text) and text not in ("", ".", "..")


def chosen(info: Sequence[Mapping[str, Any]], dimensions: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the entries of these dimensions; raise if a dimension has no entry."""
    known = sorted({one for entry in info for one in entry["dimension"]})
    if unknown := [one for one in dimensions if one not in known]:
        raise ValueError(f"dimensions: found {unknown[0]!r}, expected some of {', '.join(known)}")
    return [entry for entry in info if not dimensions or set(entry["dimension"]) & set(dimensions)]


def by_prompt(places: Sequence[Place], made: Sequence[Made]) -> tuple[dict[str, Path], list[Place]]:
    """Return the clip of each file, and the files without a clip; a prompt's clips are numbered in order of name.

    `sample` takes the spaces around a prompt of a list away, so they do not tell prompts apart.
    """
    clips: dict[str, list[Path]] = defaultdict(list)
    # After 999.mp4 comes 1000.mp4.
    for clip in sorted(made, key=lambda one: (len(one.path.name), one.path.name)):
        clips[clip.prompt.strip()].append(clip.path)
    wanted = {place.name: clips.get(place.prompt.strip(), ())[place.number :][:1] for place in places}
    found = {name: path for name, paths in wanted.items() for path in paths}
    return found, [place for place in places if place.name not in found]


def physics_iq(descriptions: str) -> dict[str, str]:
    """Return the file name of each scenario in Physics-IQ's descriptions.csv, by its number of four digits."""
    rows = list(csv.DictReader(io.StringIO(descriptions)))
    if not rows or "generated_video_name" not in rows[0]:
        raise ValueError("info: found no column generated_video_name, expected Physics-IQ's descriptions.csv")
    # Models continue only the first of the two takes.
    names = {
        row["generated_video_name"][:4]: row["generated_video_name"] for row in rows if row["generated_video_name"]
    }
    wrong = next((name for name in names.values() if not re.fullmatch(r"\d{4}_[^/\0]+\.mp4", name)), None)
    if wrong is not None:
        raise ValueError(f"info: found the name {wrong[:60]!r}, expected <four digits>_<view>_<scenario>.mp4")
    return names


def by_scenario(names: Mapping[str, str], made: Sequence[Made]) -> tuple[dict[str, Path], list[Place]]:
    """Return the clip of each file of Physics-IQ, and the files without a clip.

    The name of the video that a clip continues, or its own name, begins with the number of its scenario. All clips must
    be 5 seconds long, because the benchmark compares frames by their number.
    """
    found: dict[str, Path] = {}
    for clip in sorted(made, key=lambda one: one.path.name):
        number = next(
            (name[:4] for name in (Path(clip.given or "").name, clip.path.name) if re.match(r"\d{4}_", name)), ""
        )
        if number not in names:
            continue
        if clip.seconds is None or abs(clip.seconds - SECONDS) > OFF:
            length = "unknown" if clip.seconds is None else f"{clip.seconds:g}"
            raise ValueError(f"{clip.path}: found a length of {length} s, expected {SECONDS:g} s as Physics-IQ does")
        if names[number] in found:
            raise ValueError(
                f"{clip.path}: found a clip of scenario {number} beside {found[names[number]]}, expected one"
            )
        found[names[number]] = clip.path
    return found, [Place(name, number, 0) for number, name in names.items() if name not in found]


def read_info(path: Path) -> list[dict[str, Any]]:
    """Return the list of prompts of a suite: objects with prompt_en and dimension."""
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"info: {path} is not JSON: {error}") from error
    for number, entry in enumerate(info if isinstance(info, list) else [None]):
        known = isinstance(entry, dict) and isinstance(entry.get("prompt_en"), str)
        dimensions = entry.get("dimension") if known else None
        # A dimension may become the name of a folder.
        if not (isinstance(dimensions, list) and dimensions and all(map(is_dimension, dimensions))):
            found = str(entry)[:60]
            raise ValueError(f"info: {path}: entry {number}: found {found!r}, expected prompt_en and dimension")
    if not info:
        raise ValueError(f"info: {path}: found an empty list, expected the prompts of the suite")
    return info


def is_dimension(found: object) -> bool:
    """Return whether a value can be a dimension of a suite."""
    return isinstance(found, str) and can_be_name(found)
