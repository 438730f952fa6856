"""The leaderboard: one row for each evaluation, in a file that many runs share.

`leaderboard.jsonl` is only ever appended to, one line an evaluation, so evaluations of several runs may end at the same
time. `leaderboard.md` is made of it anew: a table for each dataset, a column for each run, a line for each figure and
the settings and weights that measured it. The last row of a run, a checkpoint and its settings counts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from videodiff import __version__
from videodiff.data.storage.files import check_writable, room_at, write_alone
from videodiff.metrics.metric import BESIDE, is_number, read_quantity
from videodiff.report.markdown import escaped, frame, line
from videodiff.report.table import plain, rounded
from videodiff.words import count_text

BOARD = "leaderboard.jsonl"
# What makes two rows rows of the same thing.
IDENTITY = ("folder", "checkpoint", "dataset", "clips", "given_frames", "seed", "sampler")
# Rows that differ in one of these are not compared: other clips, or another task.
APART = ("dataset", "clips", "shape", "given_frames", "clips_sha256")
# Of these, rows of older versions lack some.
LATER = ("shape", "clips_sha256")
# As many digits of a checksum are shown; what an older version did not write down.
SHOWN, UNKNOWN = 8, "not recorded"
# Columns of one table.
MOST_COLUMNS = 12


class Measure(NamedTuple):
    """What a figure is: values of two measures do not compete. `settings`: what decides the value, as JSON."""

    name: str
    unit: str
    more_is_better: bool
    settings: str

    @property
    def label(self) -> str:
        """The name as words, with the unit and the direction that is better."""
        return f"{plain(self.name)}{f' ({self.unit})' if self.unit else ''} {'↑' if self.more_is_better else '↓'}"


def add_row(board: Path, run: Path, evaluation: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Append the row of an evaluation and write the table anew; return the path of the board."""
    board.parent.mkdir(parents=True, exist_ok=True)
    # The same for every process and machine that sees board and run, wherever it sees them.
    folder = os.path.relpath(run.resolve(), board.parent.resolve())
    row = json.dumps({"folder": folder, **row_of(run, evaluation, facts)}, ensure_ascii=False)
    # One write in append mode: rows of two processes do not mix.
    with room_at(board), board.open("ab", buffering=0) as file:
        # Half a character in the name of a folder becomes the JSON that stands for it.
        file.write(f"{'' if ends_a_line(board) else chr(10)}{row}\n".encode(errors="backslashreplace"))
        os.fsync(file.fileno())
    size = None
    # Another evaluation may have appended its row after ours was read and written the table before us; the table that
    # we wrote last then lacks that row.
    while size != (size := board.stat().st_size):
        rows, damaged = read_rows(board)
        write_alone(board.with_suffix(".md"), ("\n".join(tables(rows, damaged)) + "\n").encode())
    return board


def check_board(board: Path) -> None:
    """Raise if no row can be appended to a file; its folder is made where it is missing."""
    if board.suffix != Path(BOARD).suffix:
        # The table takes the same name with .md.
        raise ValueError(f"leaderboard: found {board}, expected a name that ends with .jsonl")
    check_writable("leaderboard", board)


def ends_a_line(board: Path) -> bool:
    """Tell whether a file is empty or ends with a whole line."""
    with board.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")


def row_of(run: Path, evaluation: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an evaluation: who, on what, with which settings, and every figure with its error."""
    meaning = evaluation["metrics"]
    figures = {name: evaluation[name] for name in meaning if isinstance(evaluation.get(name), float)}
    errors, counts = (
        {name: evaluation[name + end] for name in figures if evaluation.get(name + end) is not None} for end in BESIDE
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "videodiff": __version__,
        "commit": commit_of(run),
        # The folder may be called `.`.
        "run": os.path.basename(os.path.abspath(run)),
        "checkpoint": Path(evaluation["checkpoint"]).name,
        **{name: evaluation[name] for name in ("dataset", "clips", "given_frames", "seed")},
        **{name: evaluation.get(name, "") for name in LATER},
        **facts,
        "figures": figures,
        "errors": errors,
        "counts": counts,
        "intervals": dict(evaluation.get("intervals", {})),
        "metrics": {name: meaning[name] for name in figures},
    }


def commit_of(run: Path) -> str | None:
    """Return the commit that trained a run, as its folder tells."""
    try:
        git = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("git")
    except (OSError, ValueError, AttributeError):
        return None
    return str(git.get("commit"))[:12] if isinstance(git, dict) and git.get("commit") else None


def read_rows(board: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the last row of each identity, oldest first, and how many lines are no rows."""
    rows: dict[str, dict[str, Any]] = {}
    damaged = 0
    # Not splitlines: the name of a run may hold a character that it takes for the end of a line. An empty line is
    # nothing lost: `add_row` begins a line of its own where it saw the row of another process half written.
    for text in filter(None, board.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            row = json.loads(text)
            measures = {name: measure_of(name, row["metrics"][name]) for name in row["figures"]}
            # Rows of older versions lack some: their boards lie beside the folders of the runs.
            row = {**dict.fromkeys(LATER, ""), "folder": row["run"], "counts": {}, **row}
            parts = (row["figures"], row["errors"], row["counts"])
            if not all(is_number(number) for part in parts for number in part.values()):
                raise ValueError("found no number, expected one for each figure, each error and each count")
            key = json.dumps([row[name] for name in IDENTITY], sort_keys=True)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
            continue
        rows.pop(key, None)
        rows[key] = {**row, "measures": measures}
    return list(rows.values()), damaged


def measure_of(name: str, record: Mapping[str, Any]) -> Measure:
    """Return what a figure is, from its record in evaluation.json; ValueError for a record of another form."""
    quantity, settings = read_quantity(record, name), record.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError(f"{name}.settings: found {str(settings)[:60]!r}, expected an object")
    known = {key: identity(value) for key, value in settings.items()}
    return Measure(name, quantity.unit, quantity.more_is_better, json.dumps(known, sort_keys=True))


def identity(setting: Any) -> Any:
    """Return a setting as it is compared: files of one content are one, whatever their names."""
    return setting["sha256"] if isinstance(setting, dict) and "sha256" in setting else setting


def tables(rows: list[dict[str, Any]], damaged: int) -> list[str]:
    """Return the lines of the Markdown: a table for each set of clips and task, a column for each of the last runs."""
    lines = [f"{count_text(damaged, 'line')} of the file left out: no row."] if damaged else []
    apart: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        apart.setdefault(tuple(str(row[name]) for name in APART), []).append(row)
    named = Counter(place[:-1] for place in apart)
    for place, mine in apart.items():
        dataset, clips, shape, given, checksum = map(escaped, place)
        size = f" of {shape}" if shape else ""
        # Clips of one name that are not the same: the dataset was made anew.
        which = f", checksum {checksum[:SHOWN] or UNKNOWN}" if named[place[:-1]] > 1 else ""
        lines += [
            *[""] * bool(lines),
            f"## {dataset}, {clips} clip{'s' * (clips != '1')}{size}, {given} given frame{'s' * (given != '1')}{which}",
            "",
        ]
        if len(mine) > MOST_COLUMNS:
            lines += [f"The last {MOST_COLUMNS} of {len(mine)} evaluations.", ""]
        mine = mine[-MOST_COLUMNS:]
        lines += frame(["figure", *headings(mine)])
        lines += figures(mine)
    return lines


def headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the heading of each column: run and checkpoint, and what tells it from others of the same."""
    plain = [f"{row['run']} {row['checkpoint']}" for row in rows]
    found = []
    for row, heading in zip(rows, plain, strict=True):
        twins = [settings_of(other) for other, same in zip(rows, plain, strict=True) if same == heading]
        own = settings_of(row)
        differing = [name for name in own if any(twin.get(name) != own[name] for twin in twins)]
        found.append(heading + "".join(f", {name} {own[name]}" for name in differing))
    return found


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an evaluation that rows of one table need not share."""
    sampler = row["sampler"] if isinstance(row["sampler"], dict) else {"sampler": row["sampler"]}
    return {"folder": row["folder"], "seed": row["seed"], **sampler}


def figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each measure; those of one name stand together, and say in what they differ."""
    found: dict[str, dict[Measure, Mapping[str, Any]]] = {}
    for row in rows:
        for name, measure in row["measures"].items():
            found.setdefault(name, {}).setdefault(measure, row["metrics"][name].get("settings", {}))
    for measures in found.values():
        for measure, settings in measures.items():
            yield figure(measure, "".join(differing(settings, list(measures.values()))), rows)


def differing(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield each setting that is another one elsewhere."""
    for name in dict.fromkeys(name for one in others for name in one):
        value = settings.get(name, UNKNOWN)
        if any(identity(one.get(name, UNKNOWN)) != identity(value) for one in others):
            is_file = isinstance(value, dict)
            yield f", {name} {value.get('name')} {str(identity(value))[:SHOWN]}" if is_file else f", {name} {value}"


def figure(measure: Measure, differing: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the line of a figure, its best value bold where several runs have one, and its clips where not all."""
    parts, name = ("figures", "errors", "counts"), measure.name
    found = [[row[part].get(name) if row["measures"].get(name) == measure else None for part in parts] for row in rows]
    values = [value for value, _, _ in found if value is not None]
    best = (max if measure.more_is_better else min)(values)
    # What is shown as the same figure has the same mark.
    shown = {rounded(value, error) for value, error, _ in found if value == best}
    cells = []
    for value, error, count in found:
        own = text = "–" if value is None else rounded(value, error)
        text += "" if error is None or value is None else f" ± {rounded(error, error)}"
        text = f"**{text}**" if own in shown and len(values) > 1 else text
        cells.append(text if count is None else f"{text} on {count:,.0f}")
    return line([measure.label + differing, *cells])
