"""Write the planner's tables in docs/fits.md and docs/scale.md.

    python bench/planning/pages.py [fits] [scale]

A table replaces the text between two comments of its page. docs/fits.md: which recipe fits on which cards, and how;
docs/scale.md: one recipe on 8 to 4,096 cards. Nothing is measured here: bench/planning/planner.py does that.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from videodiff.planning.forecast.choice import Job, best, least  # noqa: E402
from videodiff.planning.forecast.hardware import GIB, Cluster  # noqa: E402
from videodiff.planning.forecast.scaling import grown  # noqa: E402
from videodiff.verbs.config.groups import conf_dir  # noqa: E402
from videodiff.verbs.plan.job import job_of  # noqa: E402
from videodiff.words import count_text  # noqa: E402

CARDS = ("4090x1", "l40sx8", "a100x8", "h100x8", "h200x8", "b200x8")
CACHED = "data.deliver=[latent,text]"
RECIPES = {
    "uniform_gpu": ["experiment=uniform_gpu"],
    "hdvila_256": ["experiment=hdvila_256"],
    "hdvila_256, latents and text cached": ["experiment=hdvila_256", CACHED],
    "the same, 64 x 512 x 512": [
        *("experiment=hdvila_256", CACHED, "data.frames=64", "data.height=512", "data.width=512"),
        *("data.global_batch=64", "compile=blocks"),
    ],
}
SIZES = (8, 64, 512, 4096)


def job(overrides: list[str]) -> Job:
    """Return the training that these overrides describe."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return job_of(compose("plan", overrides), cpu=False)


def cluster(name: str) -> Cluster:
    """Return a profile of conf/cluster."""
    return instantiate(OmegaConf.load(conf_dir() / "cluster" / f"{name}.yaml"))


def fits() -> str:
    """Return the table of recipes and cards."""
    lines = [f"| recipe | {' | '.join(CARDS)} |", "|---" * (len(CARDS) + 1) + "|"]
    for name, overrides in RECIPES.items():
        training = job(overrides)
        lines.append(f"| {name} | {' | '.join(cell(training, cluster(card)) for card in CARDS)} |")
    return "\n".join(lines)


def cell(training: Job, here: Cluster) -> str:
    """Return the best plan of a training on a cluster in a few words, or why none fits."""
    plan = best(training, here)
    if plan is None:
        smallest = least(training, here)
        return (
            "batch does not divide" if smallest is None else f"no: {smallest.total / GIB:.0f} of {here.room / GIB:.0f}"
        )
    choice = plan.choice
    share = f", {choice.sequence} a clip" if choice.sequence > 1 else ""
    return (
        f"{choice.strategy}, {choice.recompute}, {count_text(plan.clips, 'clip')}{share}: "
        f"{plan.memory.total / GIB:.0f} GiB, "
        f"{plan.seconds.total:.2g} s, MFU {plan.mfu:.0%}"
    )


def scale() -> str:
    """Return the table of one recipe on growing numbers of cards."""
    training, here = job(["experiment=hdvila_256", CACHED, "compile=blocks"]), cluster("h100x8")
    lines = [
        "| cards | plan | step | sent | MFU | GB a card sends | read, GB/s a node | faults in 30 days | useful time | "
        "tokens/s a card | of 8 cards |",
        "|---" * 11 + "|",
    ]
    first = 0.0
    for cards in SIZES:
        size = grown(training, here, cards, 16)
        if size is None:
            lines.append(f"| {cards:,} | fits in no way |")
            continue
        first = first or size.tokens
        plan, choice = size.plan, size.plan.choice
        read = 16 * here.cards * training.largest.stored / plan.seconds.total / 1e9
        sent = plan.sent.bytes / 1e9
        lines.append(
            f"| {cards:,} | {choice.strategy}, {choice.recompute}, {plan.clips} clips | {plan.seconds.total:.3f} s | "
            f"{plan.seconds.sent / plan.seconds.total:.1%} | {plan.mfu:.1%} | {sent:.2f} | {read:.2f} | "
            f"{size.days.faults} | {size.days.useful:.1%} | {size.tokens:,.0f} | {size.tokens / first:.1%} |"
        )
    return "\n".join(lines)


def write(name: str, table: str) -> None:
    """Write a table between the comments of its page."""
    page = ROOT / "docs" / f"{name}.md"
    marks = f"<!-- made by bench/planning/pages.py {name} -->", "<!-- end -->"
    text = re.sub(f"{marks[0]}.*?{marks[1]}", f"{marks[0]}\n{table}\n{marks[1]}", page.read_text(), flags=re.S)
    page.write_text(text)
    print(table, flush=True)


if __name__ == "__main__":
    for asked in sys.argv[1:] or ["fits", "scale"]:
        write(asked, {"fits": fits, "scale": scale}[asked]())
