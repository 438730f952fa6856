"""The leaderboard: one row for each evaluation, in a file that many runs share.

`leaderboard.jsonl` is only ever appended to, one line an evaluation, so evaluations of several runs may end at the same
time. `leaderboard.md` is made of it anew: a table for each dataset, a column for each run. The last row of a run, a
checkpoint and its settings counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from videodiff import __version__
from videodiff.data.storage.files import check_writable, write_alone
from videodiff.metrics.metric import BESIDE, Quantity, is_number, read_quantity
from videodiff.report.markdown import escaped, frame, line
from videodiff.report.table import rounded

BOARD = "leaderboard.jsonl"
# What makes two rows rows of the same thing.
IDENTITY = ("run", "checkpoint", "dataset", "clips", "given_frames", "seed", "sampler")
# Rows that differ in one of these are not compared: other clips, or another task.
APART = ("dataset", "clips", "shape", "given_frames")
# Columns of one table.
MOST_COLUMNS = 12


def add_row(board: Path, run: Path, evaluation: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Append the row of an evaluation and write the table anew; return the path of the board."""
    board.parent.mkdir(parents=True, exist_ok=True)
    row = json.dumps(row_of(run, evaluation, facts), ensure_ascii=False)
    # One write in append mode: rows of two processes do not mix.
    with board.open("ab", buffering=0) as file:
        file.write(f"{'' if ends_a_line(board) else chr(10)}{row}\n".encode())
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
        "run": run.name,
        "checkpoint": Path(evaluation["checkpoint"]).name,
        **{name: evaluation[name] for name in ("dataset", "clips", "given_frames", "seed")},
        "shape": evaluation.get("shape", ""),
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
            quantities = {name: read_quantity(row["metrics"][name], name) for name in row["figures"]}
            # Rows of older versions have no counts and no shape.
            row.setdefault("shape", "")
            parts = (row["figures"], row["errors"], row.setdefault("counts", {}))
            if not all(is_number(number) for part in parts for number in part.values()):
                raise ValueError("found no number, expected one for each figure, each error and each count")
            key = json.dumps([row[name] for name in IDENTITY], sort_keys=True)
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += 1
            continue
        rows.pop(key, None)
        rows[key] = {**row, "metrics": quantities}
    return list(rows.values()), damaged


def tables(rows: list[dict[str, Any]], damaged: int) -> list[str]:
    """Return the lines of the Markdown: a table for each set of clips and task, a column for each of the last runs."""
    lines = [f"{damaged} lines of the file are no rows and are left out."] if damaged else []
    apart: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        apart.setdefault(tuple(str(row[name]) for name in APART), []).append(row)
    for place, mine in apart.items():
        dataset, clips, shape, given = map(escaped, place)
        size = f" of {shape}" if shape else ""
        lines += [*[""] * bool(lines), f"## {dataset}, {clips} clips{size}, {given} given frames", ""]
        if len(mine) > MOST_COLUMNS:
            lines += [f"The last {MOST_COLUMNS} of {len(mine)} evaluations.", ""]
        mine = mine[-MOST_COLUMNS:]
        meaning = {name: quantity for row in mine for name, quantity in row["metrics"].items()}
        lines += frame(["figure", *headings(mine)])
        lines += [figure(name, quantity, mine) for name, quantity in meaning.items()]
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
    return {"seed": row["seed"], **sampler}


def figure(name: str, quantity: Quantity, rows: list[dict[str, Any]]) -> str:
    """Return the line of a figure, its best value bold where several runs have one, and its clips where not all."""
    values = [row["figures"][name] for row in rows if name in row["figures"]]
    best = (max if quantity.more_is_better else min)(values)
    cells = []
    for row in rows:
        value, error, count = (row[part].get(name) for part in ("figures", "errors", "counts"))
        text = "–" if value is None else rounded(value, error)
        text += "" if error is None or value is None else f" ± {rounded(error, error)}"
        text = f"**{text}**" if value == best and len(values) > 1 else text
        cells.append(text if count is None else f"{text} on {count:,.0f}")
    unit = f" ({quantity.unit})" if quantity.unit else ""
    return line([f"{name.replace('_', ' ')}{unit} {'↑' if quantity.more_is_better else '↓'}", *cells])
