"""Read and check a run folder: a missing part is None or empty, a malformed one is an error."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from videodiff.data.storage.files import inside as within
from videodiff.words import count_text

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Clip:
    """One evaluated clip: where its videos lie and what the model was given."""

    task: str
    caption: str
    fps: float
    given: int
    sampled: Path
    truth: Path | None


@dataclass(frozen=True)
class Run:
    """A run folder.

    `metrics` maps a column to (steps, values), `samples` a step to its videos by name, `labels` the name of a video to
    what it was made from. `strange` lists files that are no part of the run.
    """

    path: Path
    config: str
    command: str | None
    environment: dict[str, Any]
    metrics: dict[str, Curve]
    evaluation: dict[str, Any] | None
    clips: list[Clip]
    samples: dict[int, dict[str, Path]]
    labels: dict[str, Any]
    strange: list[str] = field(default_factory=list)


def read_run(path: Path) -> Run:
    """Read a run folder; the one file that it must have is config.yaml."""
    path = Path(path).resolve()
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path}: found no config.yaml, expected a run folder as `videodiff train` writes it")
    for name in ("environment.json", "command.txt", "metrics", "evaluation", "evaluation.json", "samples"):
        within(path, name)
    environment = read_json(path / "environment.json", dict) or {}
    command = path / "command.txt"
    return Run(
        path=path,
        config=(path / "config.yaml").read_text("utf-8", errors="replace"),
        command=command.read_text("utf-8", errors="replace").strip() if command.is_file() else None,
        environment=environment,
        metrics=read_metrics(path / "metrics.csv", *sorted(path.glob("metrics/version_*/metrics.csv"), key=version)),
        evaluation=read_json(path / "evaluation.json", dict),
        clips=read_clips(path),
        samples=find_samples(path / "samples"),
        strange=[f"{link}: a link" for link in sorted(path.glob("samples/step_*/*.mp4")) if link.is_symlink()],
        labels=read_json(path / "samples" / "captions.json", dict) or {},
    )


def read_json(path: Path, kind: type) -> Any:
    """Return the value in a JSON file, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start}: found no UTF-8 text, expected JSON") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: found a {type(value).__name__}, expected a {kind.__name__}")
    return value


def version(path: Path) -> int:
    """Return the number of a start of the run: 0, then one more each time it was resumed."""
    digits = path.parent.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def read_metrics(*paths: Path) -> dict[str, Curve]:
    """Read tables of Lightning's CSVLogger: column -> (steps, values), empty cells left out.

    Each start of the run writes one table. From its first step on it replaces the rows of earlier tables. A header may
    repeat with other columns (after a restart of the logger), and a step may repeat (the later value counts). A last
    line without a line end is still being written and is left out.
    """
    columns: dict[str, dict[int, float]] = {}
    for path in filter(Path.is_file, paths):
        found: dict[str, dict[int, float]] = {}
        read_table(found, path)
        first = min((step for values in found.values() for step in values), default=math.inf)
        for name in columns.keys() | found.keys():
            before = {step: value for step, value in columns.get(name, {}).items() if step < first}
            columns[name] = before | found.get(name, {})
    columns = {name: values for name, values in columns.items() if values}
    return {name: as_curve(values) for name, values in columns.items()}


def read_table(columns: dict[str, dict[int, float]], path: Path) -> None:
    """Add the lines of one table to `columns`."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    reader = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    header: list[str] = []
    try:
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            if not header or "step" in cells:
                header = check_header(cells, where)
            elif cells:
                read_row(columns, header, cells, where)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error


def check_header(cells: list[str], where: str) -> list[str]:
    """Return the column names of a header line."""
    if "step" not in cells or len(set(cells)) < len(cells):
        found = ",".join(cells)[:80]
        raise ValueError(f"{where}: found {found!r}, expected a header of distinct columns, one of them step")
    return cells


def read_row(columns: dict[str, dict[int, float]], header: list[str], cells: list[str], where: str) -> None:
    """Add the filled cells of one line to `columns`."""
    if len(cells) != len(header):
        raise ValueError(f"{where}: found {count_text(len(cells), 'cell')}, expected {len(header)} as in the header")
    row = {name: as_number(cell, f"{where}, column {name}") for name, cell in zip(header, cells, strict=True) if cell}
    if not math.isfinite(row.get("step", math.nan)):
        raise ValueError(f"{where}, column step: found {row.get('step', 'nothing')}, expected a number")
    for name in row.keys() - {"step", "epoch"}:
        columns.setdefault(name, {})[int(row["step"])] = row[name]


def as_number(cell: str, where: str) -> float:
    """Return the number in a cell."""
    try:
        return float(cell)
    except ValueError as error:
        raise ValueError(f"{where}: found {cell[:40]!r}, expected a number") from error


def as_curve(values: dict[int, float]) -> Curve:
    """Sort the values of a column by step."""
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])


def read_clips(root: Path) -> list[Clip]:
    """Read evaluation/clips.json; every video it names must lie in the run folder."""
    path = root / "evaluation" / "clips.json"
    entries = read_json(path, list) or []
    return [read_clip(root, entry, f"{path}: entry {i}") for i, entry in enumerate(entries)]


def read_clip(root: Path, entry: Any, where: str) -> Clip:
    """Check one entry of clips.json."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found a {type(entry).__name__}, expected an object")
    for key in ("task", "caption", "sampled"):
        if not isinstance(entry.get(key), str):
            raise ValueError(f"{where}.{key}: found {entry.get(key)!r}, expected text")
    given, truth, fps = entry.get("given_frames") or 0, entry.get("truth"), entry.get("fps")
    if not isinstance(given, int) or given < 0:
        raise ValueError(f"{where}.given_frames: found {given!r}, expected a number of frames")
    if not isinstance(fps, (int, float)) or not fps > 0:
        raise ValueError(f"{where}.fps: found {fps!r}, expected frames a second")
    return Clip(
        task=entry["task"],
        caption=entry["caption"],
        fps=float(fps),
        given=given,
        sampled=inside(root, entry["sampled"], f"{where}.sampled"),
        truth=None if truth is None else inside(root, truth, f"{where}.truth"),
    )


def inside(root: Path, name: Any, where: str) -> Path:
    """Return the file of this name in the run folder; ValueError if the path leaves the folder."""
    path = (root / str(name)).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{where}: found {name!r}, expected a path inside the run folder")
    if not path.is_file():
        raise FileNotFoundError(f"{where}: found no file {name!r} in the run folder")
    return path


def find_samples(folder: Path) -> dict[int, dict[str, Path]]:
    """Return the videos sampled during training: step -> name -> file."""
    steps = {int(path.name[5:]): path for path in folder.glob("step_*") if path.name[5:].isdigit()}
    videos = {
        step: {
            video.stem: within(folder, str(video.relative_to(folder)))
            for video in sorted(path.glob("*.mp4"))
            if not video.is_symlink()
        }
        for step, path in steps.items()
    }
    return {step: videos[step] for step in sorted(videos) if videos[step]}


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the line under the title: date, commit, hardware."""
    written = (run.path / "config.yaml").stat().st_mtime
    date = find(run.environment, "date") or datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
    changed = find(run.environment, "changed") or []
    commit = str(find(run.environment, "commit") or "not recorded")[:12]
    state = f" and {count_text(len(changed), 'changed file')}" if changed else ""
    return [
        ("Date", str(date).replace("T", " ").replace("+00:00", " UTC")),
        ("Commit", commit + state),
        ("Hardware", hardware(find(run.environment, "machine"))),
    ]


def hardware(machine: Any) -> str:
    """Name the accelerators and the processor of a machine as environment.json describes it."""
    if not isinstance(machine, dict):
        return str(machine or "not recorded")
    gpus = [f"{n} × {name}" for name, n in Counter(map(str, machine.get("gpus") or [])).items()]
    return ", ".join([*gpus, str(machine.get("processor", "unknown processor")), f"{machine.get('cores', '?')} cores"])


def find(tree: Any, key: str) -> Any:
    """Return the first value under this key, at any depth; None where there is none."""
    if not isinstance(tree, dict):
        return None
    return tree[key] if key in tree else next((v for v in (find(b, key) for b in tree.values()) if v is not None), None)


def flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the leaves of nested mappings as (dotted name, text)."""
    leaves = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return leaves
