"""Copy sampled clips into the folder of a benchmark; the folder is complete or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from videodiff.benchmarks.layouts import Made
from videodiff.data.storage.files import write_alone
from videodiff.data.video.decode import DecodeError, decode, probe
from videodiff.generation.files import replacing_folder
from videodiff.metrics.consistency import temporal_flickering


def read_made(source: Path, timed: bool = False) -> tuple[list[Made], list[str]]:
    """Return the clips in a folder of `videodiff sample`, and the names of clips without a JSON that has a prompt.

    timed: also read the length of each clip.
    """
    made, strange = [], []
    for path in sorted(source.glob("*.mp4")):
        try:
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            given = facts.get("given")
            given = given["path"] if isinstance(given, Mapping) else None
            made.append(Made(path, str(facts["prompt"]), given, length(path) if timed else None))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DecodeError):
            strange.append(path.name)
    return made, strange


def length(path: Path) -> float:
    """Return the seconds of a video: its frames over their rate."""
    info = probe(path.read_bytes())
    return info.frames / info.fps


def read_pairs(run: Path) -> list[tuple[Path, Path]]:
    """Return the sampled and the true clip of each continuation that an evaluation of a run kept."""
    listed = run / "evaluation" / "clips.json"
    if not listed.is_file():
        raise FileNotFoundError(f"source: found no {listed}, expected a run that was evaluated, with keep= clips")
    pairs = []
    for record in json.loads(listed.read_text(encoding="utf-8")):
        if record.get("truth"):
            paths = tuple((run / record[name]).resolve() for name in ("sampled", "truth"))
            if not all(path.is_relative_to(run.resolve()) and path.is_file() for path in paths):
                raise ValueError(f"{listed}: found {record['sampled']}, expected a video in this folder")
            pairs.append(paths)
    if not pairs:
        raise ValueError(f"{listed}: found no continuation with its true clip, expected tasks=[continuation] keep=...")
    return pairs


def lay_out(files: Mapping[str, Path], out: Path) -> None:
    """Write each file under its name into a folder that holds nothing else and appears when it is complete.

    VBench assumes that all files have the extension of the first one.
    """
    with replacing_folder(out) as partial:
        for name, source in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            copy(source, partial / name)


def copy(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if the file system has no hard links."""
    try:
        # A link to a symbolic link would point from another folder to nowhere.
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_results(files: Mapping[str, Path], out: Path, prompt_of: Callable[[str], str]) -> dict[str, Any]:
    """Write temporal flickering in the format of VBench's results, for scripts that read them; return the results.

    `<out>_eval_results.json` and `<out>_full_info.json` are written beside the folder `out`, in which the clips will
    have these names. All clips are measured; VBench's own protocol leaves out clips that move.
    """
    videos = {out / name: files[name] for name in sorted(files)}
    scores = [{"video_path": str(path), "video_results": flickering(source)} for path, source in videos.items()]
    mean = sum(score["video_results"] for score in scores) / len(scores)
    results = {"temporal_flickering": [mean, scores]}
    clips: dict[str, list[str]] = {}
    for path in videos:
        clips.setdefault(prompt_of(path.name), []).append(str(path))
    dimension = ["temporal_flickering"]
    info = [{"prompt_en": one, "dimension": dimension, "video_list": paths} for one, paths in clips.items()]
    for ending, value in (("eval_results", results), ("full_info", info)):
        write_alone(
            out.with_name(f"{out.name}_{ending}.json"), json.dumps(value, indent=4, ensure_ascii=False).encode()
        )
    return results


def flickering(path: Path) -> float:
    """Return VBench's temporal flickering of a video."""
    video = path.read_bytes()
    return temporal_flickering(decode(video, range(probe(video).frames)))
