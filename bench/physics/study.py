"""PhyWorld's study: velocity errors by size of the model and of the data, in and out of distribution, and ablations.

    python bench/physics/study.py                  # small, on a CPU: it shows the tables, not the published figures
    python bench/physics/study.py --published      # the size of conf/experiment/phyworld_study.yaml, on a GPU
    python bench/physics/study.py --only uniform/small --seed 0 1 2
    python bench/physics/study.py --page docs/ablations.md   # trains nothing: writes what is measured into the page

Every cell is a run in its own folder under --out. A measured cell is not trained again. `table.md` and `table.json` are
rewritten after each cell.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORLDS = ("uniform", "collision", "parabola")
SPLITS = ("in_distribution", "out_of_distribution")
# Published velocity errors of uniform motion: model, clips, in and out of distribution (arXiv 2411.02385).
PUBLISHED = [
    ("DiT-S", "30k", 0.022, None),
    ("DiT-B", "30k", None, 0.433),
    ("DiT-B", "300k", None, 0.328),
    ("DiT-B", "3m", None, 0.358),
    ("DiT-L", "3m", 0.012, 0.427),
    ("ground truth, their parser", "", 0.010, None),
]
ABLATIONS = {
    "independent noise": ["objective.levels.policies={independent: 1.0, prefix_3: 0.0, shared: 0.0}"],
    "shared noise": ["objective.levels.policies={shared: 1.0, prefix_3: 0.0}"],
    "full attention": ["model.axes=[spacetime]"],
    "v": ["objective.prediction=v", "objective.loss=v"],
    "eps": ["objective.prediction=eps", "objective.loss=eps"],
}
FIGURES = ("velocity_error", "phyworld_velocity_error", "momentum_error")
# The page's tables: two figures, in and out of distribution, and what each ablation is called there.
PAGE_FIGURES = FIGURES[:2]
PAGE_HEAD = [
    "| | cell | seed | commit | velocity error, in | out | PhyWorld's, in | out | s |",
    "|---|---|---|---|---|---|---|---|---|",
]
ABLATED = {
    "base": "base: given frames without noise, factorized attention, x predicted, loss on x, Muon",
    "independent noise": "a level of its own for every frame",
    "shared noise": "one level for all frames",
    "full attention": "full attention",
    "v": "v predicted, loss on v",
    "eps": "eps predicted, loss on eps",
    "AdamW": "AdamW, learning rate 1e-3 instead of 3e-3",
}


@dataclass(frozen=True)
class Scale:
    """The size of a study: its models and datasets by name, and the settings of every clip and every run."""

    models: dict[str, list[str]]
    data: dict[str, int]
    clip: list[str]
    pixels: int
    measured: int
    training: list[str]
    adamw: list[str]
    said: str


SMALL = Scale(
    models={
        "small": ["model=tiny", "model.width=32", "model.depth=4", "model.heads=2"],
        "large": ["model=tiny", "model.width=64", "model.depth=6", "model.heads=2"],
    },
    data={"200": 200, "3000": 3000},
    clip=["world.frames=8", "world.fps=5"],
    pixels=20,
    measured=96,
    training=[
        *("data.frames=8", "data.height=20", "data.width=20", "data.global_batch=16", "data.num_workers=0"),
        *("data.cache_gib=1", "data.validation_clips=16", "model.patch=[1,4,4]", "objective.levels.base_tokens=3200"),
        *("optimizer.lr=3e-3", "optimizer.ema_decay=0.99", "schedule.warmup=50", "sampler.steps=8"),
        *("trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.max_steps=400"),
        *("trainer.val_check_interval=400", "callbacks.checkpoints.every=400", "callbacks.samples.every=400"),
        "callbacks.samples.clips=1",
    ],
    adamw=["optimizer=adamw", "optimizer.lr=1e-3"],
    said="8 frames of 20 px at 5 a second, 400 steps of 16 clips on a CPU: it shows what the study measures. Its "
    "figures say nothing of the published size: clips of 32 frames of 128 px, 100,000 steps of 256 clips.",
)
FULL = Scale(
    models={name: [f"model={name}", "model.patch=[1,8,8]"] for name in ("S", "B", "L")},
    data={"30k": 30_000, "300k": 300_000, "3m": 3_000_000},
    clip=[],
    pixels=128,
    measured=712,
    training=[],
    adamw=["optimizer=adamw", "optimizer.lr=3e-4"],
    said="32 frames of 128 px at 10 a second, 100,000 steps of 256 clips.",
)


@dataclass(frozen=True)
class Cell:
    """One run of the study: a world, a size, a dataset, and the overrides of an ablation."""

    world: str
    size: str
    data: str
    variant: str = "base"
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.world}/{self.size}/{self.data}/{self.variant.replace(' ', '_')}"


def cells(scale: Scale) -> list[Cell]:
    """Return the cells of a study: all sizes and datasets of every world, and the ablations of uniform motion."""
    grid = [Cell(world, size, data) for world in WORLDS for size in scale.models for data in scale.data]
    first, data = next(iter(scale.models)), list(scale.data)[min(1, len(scale.data) - 1)]
    changes = {**ABLATIONS, "AdamW": scale.adamw}
    return grid + [Cell("uniform", first, data, variant, tuple(change)) for variant, change in changes.items()]


def dataset(out: Path, scale: Scale, world: str, split: str, name: str, clips: int) -> Path:
    """Return a dataset of a world; make it if it is missing."""
    packed = out / "datasets" / f"{world}_{name}"
    if (packed / "manifest.parquet").is_file():
        return packed
    clips_of = out / "datasets" / f"{world}_{name}_clips"
    # What a study that was killed has left.
    shutil.rmtree(clips_of, ignore_errors=True), shutil.rmtree(packed, ignore_errors=True)
    grid = [f"world.grid={name}"] if name in ("30k", "300k", "3m") else []
    how = [f"world={world}", f"world.split={split}", *grid, *scale.clip, f"clips={clips}", f"size={scale.pixels}"]
    call(["simulate", *how, f"out={clips_of}"])
    call(["pack", f"source={clips_of}", f"out={packed}"])
    shutil.rmtree(clips_of)
    return packed


def call(words: Sequence[str]) -> None:
    """Run a verb in a process of its own; if it fails, raise an error with its last lines."""
    done = subprocess.run([sys.executable, "-m", "videodiff", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"study: videodiff {shlex.join(words)} failed:\n{done.stderr[-2000:]}")


def measure(cell: Cell, scale: Scale, out: Path, seed: int) -> dict[str, Any]:
    """Train a cell and measure it in and out of distribution; read results that exist already."""
    run = out / cell.name / f"seed_{seed}"
    found = run / "cell.json"
    if found.is_file():
        return json.loads(found.read_text())
    root = dataset(out, scale, cell.world, "train", cell.data, scale.data[cell.data])
    tests = {split: dataset(out, scale, cell.world, split, split, scale.measured) for split in SPLITS}
    words = ["train", "experiment=phyworld_study", *scale.models[cell.size], *scale.training, *cell.changes]
    words += [f"data.root={root}", f"data.validation_root={tests[SPLITS[0]]}", f"seed={seed}", f"run={run}"]
    # An interrupted run begins anew: no run folder is trained in twice.
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    call(words)
    result: dict[str, Any] = {"command": shlex.join(["videodiff", *words]), "seconds": time.monotonic() - began}
    for split, test in tests.items():
        how = ["tasks=[continuation]", "metric=[physics]", f"clips={scale.measured}", "keep=2"]
        call(["evaluate", str(run), f"dataset={test}", *how, f"leaderboard={out / 'leaderboard.jsonl'}"])
        result[split] = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").replace(run / f"{split}.json")
    environment = json.loads((run / "environment.json").read_text())
    result |= {"seed": seed, "commit": (environment.get("git") or {}).get("commit"), "date": environment["date"]}
    found.write_text(json.dumps(result))
    return result


def measured(scale: Scale, out: Path) -> dict[Cell, list[dict[str, Any]]]:
    """Return all measured cells of a study, each with the results of its seeds."""
    found = {one: sorted((out / one.name).glob("seed_*/cell.json")) for one in cells(scale)}
    return {one: [json.loads(path.read_text()) for path in paths] for one, paths in found.items() if paths}


def table(done: dict[Cell, list[dict[str, Any]]], scale: Scale) -> Iterator[str]:
    """Yield the lines of the tables: one for each world, then the ablations, then the published figures."""
    yield scale.said
    for world in WORLDS:
        mine = {cell: each for cell, each in done.items() if cell.world == world and cell.variant == "base"}
        if mine:
            yield from ["", f"## {world}, base", "", *heads()]
            yield from (line(f"{cell.size}, {cell.data} clips", each) for cell, each in mine.items())
            yield from references(next(iter(mine.values()))[0])
    ablations = {cell: each for cell, each in done.items() if cell.variant != "base"}
    if ablations:
        first = next(iter(ablations))
        base = {cell: each for cell, each in done.items() if cell == Cell(first.world, first.size, first.data)}
        yield from ["", f"## ablations of {first.world}, {first.size}, {first.data} clips", "", *heads()]
        yield from (line(cell.variant, each) for cell, each in {**base, **ablations}.items())
    yield from ["", "## published, uniform motion", "", "| model | clips | in | out |", "| --- | --- | --- | --- |"]
    yield from (f"| {name} | {data} | {text(one)} | {text(other)} |" for name, data, one, other in PUBLISHED)


def heads() -> list[str]:
    """Return the head of a table: each figure in and out of distribution."""
    names = [f"{name.replace('_', ' ')}, {split.split('_')[0]}" for name in FIGURES for split in SPLITS]
    return ["| | seeds | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 2)]


def line(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """Return the line of a cell: the mean over seeds, with the error over clips if there is only one seed."""
    return row(name, str(len(runs)), [[run[split] for run in runs] for split in SPLITS])


def references(run: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each reference predictor, and for the ground truth."""
    tables = [{each["name"]: each for each in run[split]["table"]} for split in SPLITS]
    for name in tables[0]:
        if name != "model":
            yield row(name, "", [[one[name]] for one in tables])


def row(name: str, seeds: str, splits: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Return a line of a table from the numbers of each split."""
    values = [cell([one.get(figure) for one in runs], runs, figure) for figure in FIGURES for runs in splits]
    return f"| {' | '.join([name, seeds, *values])} |"


def cell(values: Sequence[float | None], runs: Sequence[dict[str, Any]], figure: str) -> str:
    """Return the mean of a figure with its standard error: over seeds, or over the clips of a single seed."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    mean = sum(numbers) / len(numbers)
    if len(numbers) == 1:
        error = runs[0].get(f"{figure}_stderr")
    else:
        error = (sum((value - mean) ** 2 for value in numbers) / (len(numbers) - 1) / len(numbers)) ** 0.5
    return text(mean) + ("" if error is None else f" ± {text(error)}")


def text(value: float | None) -> str:
    """Format a number with three decimals."""
    return "–" if value is None else f"{value:.3f}"


def write_page(page: Path, done: dict[Cell, list[dict[str, Any]]], scale: Scale) -> None:
    """Write the tables of what is measured between the marks of a page, and name the cells that are not."""
    ablated = [cell for cell in cells(scale) if cell.variant != "base"]
    first = Cell(ablated[0].world, ablated[0].size, ablated[0].data)
    parts = {"ablations": list(PAGE_HEAD), "tasks": list(PAGE_HEAD)}
    parts["ablations"] += [page_row(ABLATED[one.variant], one, done[one]) for one in [first, *ablated] if one in done]
    for world in WORLDS:
        mine = [one for one in done if one.world == world and one.variant == "base"]
        names = {one: f"{world}, {one.size}, {one.data} clips" for one in mine}
        parts["tasks"] += [page_row(names[one], one, done[one]) for one in mine]
        parts["tasks"] += page_references(world, done[mine[0]][0]) if mine else []
    left = [f"`{one.name}`" for one in cells(scale) if one not in done]
    parts["left"] = [f"Not run yet: {', '.join(left)}."] if left else ["All cells of the small size have been run."]
    text = page.read_text(encoding="utf-8")
    for mark, lines in parts.items():
        head, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, tail = rest.partition(f"<!-- end {mark} -->")
        if not end:
            raise SystemExit(f"study: found no marks <!-- {mark} --> and <!-- end {mark} --> in {page}")
        text = head + begin + "".join(f"{line}\n" for line in lines) + end + tail
    page.write_text(text, encoding="utf-8")


def page_row(name: str, one: Cell, runs: Sequence[dict[str, Any]]) -> str:
    """Return the row of a cell in a page: what makes it again, its figures and the seconds of its training."""
    seeds, commits = (", ".join(dict.fromkeys(str(run[key])[:7] for run in runs)) for key in ("seed", "commit"))
    seconds = sum(run["seconds"] for run in runs) / len(runs)
    figures = page_figures([[run[split] for run in runs] for split in SPLITS])
    return f"| {name} | `{one.name}` | {seeds} | {commits} | {figures} | {seconds:.0f} |"


def page_references(world: str, run: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of the predictors of a world that no run trained, and of the ground truth."""
    tables = [{each["name"]: each for each in run[split]["table"]} for split in SPLITS]
    for name in tables[0]:
        if name != "model":
            yield f"| {world}: {name} | | | | {page_figures([[one[name]] for one in tables])} | |"


def page_figures(splits: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Return the cells of a page's row: both figures, each in and out of distribution."""
    found = [cell([one.get(name) for one in runs], runs, name) for name in PAGE_FIGURES for runs in splits]
    return " | ".join(found)


def main() -> None:
    """Measure the cells that the command line names, or write the measured cells into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true", help="the published size, on a GPU")
    parser.add_argument("--only", nargs="*", default=[], help="cells whose name begins so, as uniform/small")
    parser.add_argument("--seed", type=int, nargs="*", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/phyworld_study"))
    parser.add_argument("--list", action="store_true", help="name the cells, train nothing")
    parser.add_argument("--page", type=Path, help="write the tables of what is measured into this file, train nothing")
    chosen = parser.parse_args()
    scale = FULL if chosen.published else SMALL
    if chosen.page:
        write_page(chosen.page, measured(scale, chosen.out), scale)
        return
    wanted = [one for one in cells(scale) if not chosen.only or one.name.startswith(tuple(chosen.only))]
    if not wanted:
        parser.error(f"--only: found no cell {' '.join(chosen.only)}, expected some of {cells(scale)[0].name}, ...")
    if chosen.list:
        print("\n".join(one.name for one in wanted))
        return
    print(f"study: {len(wanted)} cells. {scale.said}", flush=True)
    out = chosen.out.resolve()
    for number, one in enumerate(wanted, 1):
        runs = [measure(one, scale, out, seed) for seed in chosen.seed]
        errors = [text(runs[0][split]["velocity_error"]) for split in SPLITS]
        print(f"study: {number} of {len(wanted)}: {one.name}: velocity error {' / '.join(errors)} in / out", flush=True)
        done = measured(scale, out)
        (out / "table.md").write_text("\n".join(table(done, scale)) + "\n")
        (out / "table.json").write_text(json.dumps({each.name: runs for each, runs in done.items()}, indent=1))


if __name__ == "__main__":
    main()
