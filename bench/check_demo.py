"""Compare the figures of a run with the targets of its recipe: one line each, exit status 1 where one is missed.

python bench/check_demo.py [runs/demo]

A target is missed where its figure lies beyond it by more than twice the figure's own standard error: a difference that
the choice of the held-out clips may explain does not fail. A figure without an error has to reach its target.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from videodiff.report.table import Measured, figures, meanings
from videodiff.verbs.config.measuring import known_quantities
from videodiff.verbs.config.stored import read_yaml

# Standard errors by which a figure may lie beyond its target.
ERRORS = 2


def verdict(figure: Measured) -> str:
    """Return whether a figure reaches its target, lies beyond it within its error, or misses it."""
    if figure.met:
        return "reached"
    error, beyond = figure.stderr or 0.0, abs(figure.value - figure.target)
    return "in error" if math.isfinite(error) and beyond <= ERRORS * error else "MISSED"


def check(evaluation: Mapping[str, Any], targets: Mapping[str, float], where: Path) -> Iterator[tuple[bool, str]]:
    """Yield, for each target, whether it holds and a line that says so; a figure that is not there is a miss."""
    measured = {name: value for name, value in evaluation.items() if value is not None}
    known = {name: target for name, target in targets.items() if name in measured}
    quantities = meanings(measured, where, known_quantities())
    found = {figure.name: figure for figure in figures({**measured, "targets": known}, where, quantities)[0]}
    for name in targets:
        if name not in known:
            yield False, f"{'MISSED':<8} {name}: found no figure of this name in {where}, expected {targets[name]}"
        else:
            figure, said = found[name], verdict(found[name])
            text = f"{said:<8} {name}: found {figure.text}{figure.error_text}, expected {figure.target_text}"
            yield said != "MISSED", text


def main(run: str = "runs/demo") -> None:
    """Print the comparison and leave with its result."""
    config, where = Path(run) / "config.yaml", Path(run) / "evaluation.json"
    for path in (config, where):
        if not path.is_file():
            sys.exit(f"check_demo: found no {path}, expected a run that was evaluated (make demo)")
    targets = read_yaml(config).get("targets")
    if not targets:
        sys.exit(f"check_demo: {config}: found no targets, expected some: its recipe names none")
    lines = list(check(json.loads(where.read_text()), targets, where))
    print("\n".join(line for _, line in lines))
    sys.exit(0 if all(holds for holds, _ in lines) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
