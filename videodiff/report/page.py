"""The report of a run: one HTML file that plays without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from videodiff.data.storage.files import write_alone
from videodiff.metrics.metric import Quantity
from videodiff.printing import say
from videodiff.report import table
from videodiff.report.curves import Panel, draw, panels, plot_ranking
from videodiff.report.run import Clip, Run, facts, flatten, read_run
from videodiff.report.strip import Example, UnreadableError, fit, hero, later, read_frames
from videodiff.words import count_text

Item, Shown = TypeVar("Item"), TypeVar("Shown")
WALL, STRIPS, STEPS, LEARNING, RANKINGS = 12, 3, 7, 4, 2
TINY = 128


def write_report(run: Path, known: Mapping[str, Quantity] = table.NOTHING) -> Path:
    """Write `report.html` into a run folder and return its path.

    `known`: the meaning of figures, for evaluations that do not state it.

    For each missing part the page names the command that makes it. A malformed file is an error with file and line. A
    video that cannot be decoded is left out and named.
    """
    found = read_run(run)
    template, shown = environment().get_template("template.html.j2"), content(found, known)
    path = write_alone(found.path / "report.html", template.render(shown).encode())
    for line in shown["left_out"]:
        say(f"videodiff report: left out {line}")
    return path


def write_hero(run: Path, path: Path, task: str = "continuation") -> Path:
    """Write the film strips of the first three evaluated clips of a task as one PNG, for a README."""
    chosen = readable([clip for clip in read_run(run).clips if clip.task == task], as_example, STRIPS, [])
    if not chosen:
        raise ValueError(f"{run}/evaluation/clips.json: found no clip of task {task!r}, expected at least one")
    return write_alone(Path(path), png(hero(chosen)))


def environment(*folders: Path) -> Environment:
    """Return the template environment: everything escaped, an unknown name is an error.

    folders: where templates lie beside those of this room.
    """
    made = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"plain": table.plain, "data": data_url, "digest": digest}
    return made


def digest(script: str) -> str:
    """Return a script's hash as a content security policy names it: no other script may run on the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def data_url(data: bytes, kind: str) -> str:
    """Return bytes as a URL that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(image: Image.Image) -> bytes:
    """Encode an image losslessly."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def content(run: Run, known: Mapping[str, Quantity] = table.NOTHING) -> dict[str, Any]:
    """Return everything the template shows."""
    where = run.path / "evaluation.json"
    evaluation = run.evaluation or {}
    quantities = table.meanings(evaluation, where, known)
    numbers, texts = table.figures(evaluation, where, quantities)
    rows, balls = (table.rows(evaluation, where, quantities, key) for key in ("table", "by_balls"))
    tasks, left_out = list(dict.fromkeys(clip.task for clip in run.clips)), list(run.strange)
    walls = [wall(task, [clip for clip in run.clips if clip.task == task], left_out) for task in tasks]
    return {
        "run": run,
        "title": run.path.name,
        # As it is typed where this command was typed.
        "folder": shlex.quote(os.path.relpath(run.path)),
        "facts": facts(run),
        "summary": summary(run, numbers, texts),
        "headlines": headlines(numbers),
        "numbers": numbers,
        "texts": texts,
        "unmeasured": table.left_out(evaluation, where),
        "rows": rows,
        "columns": table.columns(rows),
        "balls": balls,
        "ball_columns": table.columns(balls),
        "best": table.best(rows),
        "rankings": rankings(rows, numbers),
        "panels": panels(run.metrics),
        "walls": [made for made in walls if made["clips"]],
        "learning": learning(run, left_out),
        "left_out": left_out,
        "environment": flatten(run.environment),
    }


def summary(run: Run, numbers: list[table.Measured], texts: dict[str, str]) -> list[str]:
    """Return a few sentences: what was trained, how the loss went, and what was measured."""
    said = []
    if "train/loss" in run.metrics:
        steps, losses = run.metrics["train/loss"]
        bad = steps[~np.isfinite(losses)]
        rate = run.metrics.get("train/clips_per_s")
        pace = f" at {np.nanmedian(rate[1]):,.3g} clips a second" if rate else ""
        said.append(f"Trained to step {steps[-1]:,}{pace}.")
        if len(bad):
            said.append(
                f"The training loss is not finite at {count_text(len(bad), 'logged step')}, first at step {bad[0]:,}."
            )
    elif saved := saved_steps(run.path):
        # Nothing was logged, or the run is shared without its curves.
        said.append(f"Trained to step {max(saved):,}.")
    if "val/loss" in run.metrics:
        losses = run.metrics["val/loss"][1]
        said.append(f"The validation loss went from {losses[0]:.3g} to {losses[-1]:.3g}.")
    if numbers:
        held = [figure for figure in numbers if figure.target is not None]
        measured = " and ".join(f"a {table.plain(f.name)} of {f.text}" for f in headlines(numbers)[:2])
        dataset = f" on {texts['dataset']}" if "dataset" in texts else ""
        met = f"; {sum(bool(f.met) for f in held)} of {len(held)} targets are met" if held else ""
        said.append(f"The evaluation{dataset} gives {measured}{met}.")
    return said


def saved_steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints in a run folder."""
    names = [place.parent.name.removeprefix("step_") for place in run.glob("checkpoints/step_*/checkpoint.json")]
    return [int(name) for name in names if name.isdecimal()]


def headlines(numbers: list[table.Measured]) -> list[table.Measured]:
    """Return the figures to print large: those with targets, else the first ones with a standard error."""
    held = [figure for figure in numbers if figure.target is not None]
    return (held or [figure for figure in numbers if figure.stderr is not None] or numbers)[:4]


def rankings(rows: list[table.Row], numbers: list[table.Measured]) -> list[Panel]:
    """Draw the first columns of the table as dots, best on top."""
    drawn = []
    for column in [column for column in table.columns(rows) if column.more_is_better is not None][:RANKINGS]:
        cells = [(row.name, row.cells[column.name], row.kind) for row in rows if column.name in row.cells]
        cells = sorted((c for c in cells if math.isfinite(c[1].value)), key=lambda c: c[1].value)
        target = next((figure.target for figure in numbers if figure.name == column.name), None)
        dots = [
            (name[:40], c.value, c.stderr or 0.0, kind)
            for name, c, kind in cells[:: -1 if column.more_is_better else 1]
        ]
        if len(dots) > 1:
            svg = draw(lambda axes, dots=dots, target=target: plot_ranking(axes, dots, target), 0.9 + 0.3 * len(dots))
            drawn.append(Panel(table.plain(column.name), "", svg))
    return drawn


def readable(items: Iterable[Item], show: Callable[[Item], Shown], most: int, left_out: list[str]) -> list[Shown]:
    """Return the first items with decodable videos in their form for the page; add the others to `left_out`."""
    shown: list[Shown] = []
    for item in items:
        if len(shown) == most:
            break
        try:
            shown.append(show(item))
        except UnreadableError as error:
            left_out.append(str(error))
    return shown


def wall(task: str, clips: list[Clip], left_out: list[str]) -> dict[str, Any]:
    """Return the part of the page for a task: its first clips as videos, a few of them as film strips."""
    shown = readable(clips, frame, WALL, left_out)
    return {"task": task, "clips": shown, "total": len(clips), "strips": [strips(item) for item in shown[:STRIPS]]}


def frame(clip: Clip) -> dict[str, Any]:
    """Read a clip's videos and its given frames, which the page shows one by one on the clock of the videos."""
    example = as_example(clip)
    given = example.sampled[: clip.given]
    return {
        "clip": clip,
        "example": example,
        "frames": len(example.sampled),
        "tiny": example.sampled.shape[1] <= TINY,
        "aspect": f"{example.sampled.shape[2]} / {example.sampled.shape[1]}",
        "given": [png(Image.fromarray(picture)) for picture in given],
        "sampled": clip.sampled.read_bytes(),
        "truth": clip.truth.read_bytes() if clip.truth else None,
    }


def as_example(clip: Clip) -> Example:
    """Decode a clip's videos; a caption has many true clips, so only a continuation is held against one."""
    sampled = read_frames(clip.sampled)
    if len(sampled) <= clip.given:
        raise ValueError(
            f"{clip.sampled}: found {count_text(len(sampled), 'frame')}, expected more than the {clip.given} given ones"
        )
    truth = read_frames(clip.truth) if clip.truth and clip.given else None
    if truth is not None and truth.shape != sampled.shape:
        raise ValueError(
            f"{clip.truth}: found frames {truth.shape}, expected {sampled.shape} as in {clip.sampled.name}"
        )
    return Example(clip.caption, clip.given, sampled, truth)


def strips(item: dict[str, Any], most: int = 16) -> dict[str, Any]:
    """Return a shown clip's film strips: the given frames and an even choice of the later ones."""
    example = item["example"]
    chosen = [*range(example.given), *later(item["frames"], example.given, most - example.given)]
    named = {"sampled": example.sampled} | ({} if example.truth is None else {"truth": example.truth})
    pictures = {name: png(fit(frames[chosen], 2 * TINY // 3, example.given)) for name, frames in named.items()}
    return {"caption": example.caption, "pictures": pictures, "of": item["frames"], "chosen": len(chosen)}


def learning(run: Run, left_out: list[str]) -> dict[str, Any]:
    """Return the videos sampled during training: evenly chosen steps, the first and the last among them."""
    every = list(run.samples)
    steps = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(STEPS, len(every))).round().astype(int))]
    names = list(dict.fromkeys(name for step in steps for name in run.samples[step]))[:LEARNING]
    files = {(name, step): file for name in names for step in steps if (file := run.samples[step].get(name))}
    heights = dict(readable(files.values(), lambda file: (file, read_frames(file).shape[1]), len(files), left_out))
    labels = [str(run.labels.get(name, "")) for name in names]
    shown = {place: file.read_bytes() for place, file in files.items() if file in heights}
    videos = [[shown.get((name, step)) for step in steps] for name in names] if shown else []
    tiny = max(heights.values(), default=0) <= TINY
    return {"steps": steps, "tiny": tiny, "rows": list(zip(labels if shown else [], videos, strict=True))}
