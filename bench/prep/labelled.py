"""Hold the cuts and the filters of `videodiff prep` against footage that set none of their limits, made and real.

python bench/prep/labelled.py [FOLDER_OF_VIDEO ...]

For shots: changes found and there (right), found only (wrong), there only (missed), with precision and recall; a change
may be off by a tenth of a second. For filters: how many of the made clips that must be rejected are rejected, and by
which limits; and how many clips that must be kept are rejected. The clips come from tests/material; tests hold floors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from data_prep.choose.filter import filtered  # noqa: E402
from data_prep.cut.clips import make_clips  # noqa: E402
from data_prep.cut.encode import EncodePolicy  # noqa: E402
from data_prep.cut.scenes import find_scenes  # noqa: E402
from data_prep.cut.spans import MICROSECOND, Span, read_timeline  # noqa: E402
from tests.material.labelled_footage import FILES, FILMS, FPS, KEPT, REJECTED, Counts, compare, read_only  # noqa: E402
from videodiff.data.video.encode import encode  # noqa: E402

EXAMPLES = ROOT.parent / "shared" / "clips"
SEEDS = (20, 21)


def count(path: Path, changes: list[tuple[float, float]]) -> Counts:
    """Find the shots of a file and compare."""
    return compare(find_scenes(path), changes, read_timeline(path).end / MICROSECOND)


def line(name: str, counts: Counts) -> None:
    print(f"| {name} | {counts.right} | {counts.wrong} | {counts.missed} |")


def shots(folders: list[Path]) -> None:
    """Print the table of changes of shot."""
    made, real = Counts(), Counts()
    print("| shots | right | wrong | missed |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, film in FILMS.items():
            path = Path(scratch, "film.mp4")
            path.write_bytes(encode(film.frames(), FPS))
            counts = count(path, [(first / FPS, last / FPS) for first, last in film.changes])
            made += counts
            line(name, counts)
    for name, path in read_only(folders).items():
        counts = count(path, FILES[name])
        real += counts
        line(name, counts)
    for name, counts in (("made", made), ("real", real)):
        print(f"{name}: precision {counts.precision:.2f}, recall {counts.recall:.2f}")


def filters() -> None:
    """Print the table of what the default limits make of made clips."""
    rules = yaml.safe_load((ROOT / "conf/prep/default.yaml").read_text())["filter"]
    limits = {
        name: {side: limit for side, limit in sides.items() if limit is not None} for name, sides in rules.items()
    }
    limits = {name: sides for name, sides in limits.items() if sides}
    print("\n| clips | rejected | by |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, frames in (REJECTED | KEPT).items():
            reasons = []
            for seed in SEEDS:
                video, path = frames(seed), Path(scratch, "clip.mp4")
                path.write_bytes(encode(video, 8.0))
                ((_, clip),) = make_clips(path, [Span(0, len(video) / 8)], EncodePolicy())
                if found := filtered(clip.scores, limits):
                    reasons.append(found.reason.split()[0])
            expected = "must be" if name in REJECTED else "must not be"
            print(f"| {name} ({expected}) | {len(reasons)} of {len(SEEDS)} | {', '.join(sorted(set(reasons)))} |")


if __name__ == "__main__":
    shots([EXAMPLES, *map(Path, sys.argv[1:])])
    filters()
