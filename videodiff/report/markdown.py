"""An evaluation as Markdown, to be pasted into a README or an issue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from videodiff.data.storage.files import write_whole
from videodiff.printing import in_line
from videodiff.report.table import Measured, Row, best, columns, figures, left_out, meanings, plain, rounded, rows


def write_markdown(path: Path, evaluation: dict[str, Any]) -> Path:
    """Write an evaluation as Markdown and return the path."""
    return write_whole(path, ("\n".join(lines(evaluation, path)) + "\n").encode())


def lines(evaluation: dict[str, Any], where: Path) -> Iterator[str]:
    """Yield the table of predictors, its best values bold, and then every figure with its target."""
    quantities = meanings(evaluation, where)
    table, numbers = rows(evaluation, where, quantities), figures(evaluation, where, quantities)[0]
    if table:
        yield from grid("predictor", table, best(table))
    yield from frame(["figure", "value", "target"])
    for figure in numbers:
        yield line([head(figure), cell(figure, {}) + figure.interval_text, target(figure)])
    if balls := rows(evaluation, where, quantities, "by_balls"):
        yield ""
        yield from grid("truth", balls, {})
    for name, curve in (evaluation.get("curves") or {}).items():
        yield ""
        means = [rounded(mean, error) for mean, error in zip(curve["mean"], curve["stderr"], strict=True)]
        yield f"{plain(name)} by predicted frame: {', '.join(means)}"
    for reason in left_out(evaluation, where):
        yield ""
        yield f"not measured: {escaped(reason)}"


def grid(title: str, table: Sequence[Row], top: Mapping[str, float]) -> Iterator[str]:
    """Yield rows side by side with the best values bold, and an empty line."""
    heads = columns(table)
    yield from frame([title, "clips", *map(head, heads)])
    for row in table:
        bound = row.kind in ("floor", "ceiling")
        name = f"{row.name} ({row.kind})" if bound else row.name
        cells = [cell(row.cells.get(column.name), {} if bound else top) for column in heads]
        yield line([name, "" if row.clips is None else f"{row.clips:,.0f}", *cells])
    yield ""


def head(figure: Measured) -> str:
    """Return a figure's name with its unit and the direction that is better."""
    unit = f" ({figure.unit})" if figure.unit else ""
    return f"{plain(figure.name)}{unit} {figure.arrow}".rstrip()


def cell(figure: Measured | None, best: Mapping[str, float]) -> str:
    """Return a value with its standard error, bold where it is the best, and its clips where these are not all."""
    if figure is None:
        return "–"
    text = f"{figure.text}{figure.error_text}"
    text = f"**{text}**" if best.get(figure.name) == figure.value else text
    return text if figure.clips is None else f"{text} on {figure.clips:,.0f}"


def target(figure: Measured) -> str:
    """Return a figure's target, and whether it is met."""
    return f"{figure.target_text}, {'met' if figure.met else 'missed'}" if figure.target_text else ""


def frame(names: list[str]) -> list[str]:
    """Return the head of a table."""
    return [line(names), line(["---"] * len(names))]


def line(cells: list[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(text: str) -> str:
    """Return text for a line of Markdown: a bar would end its cell, an end of a line the table.

    < begins HTML, and ]( a link or a picture that a reader's browser would fetch.
    """
    return in_line(text).replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
