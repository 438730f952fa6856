"""The report of a preparation: where the inputs went, how the clips score, what they look like; one HTML file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from data_prep.books.ledger import Ends
from data_prep.engine.stopwatch import Spent
from data_prep.report.figures import Example, Figures, Histogram, Seconds
from data_prep.report.summary import ClipCounts, ShardCounts, Summary, failures
from videodiff.data.storage.files import write_whole
from videodiff.data.video.decode import DecodeError, decode, probe, resize
from videodiff.data.video.encode import encode
from videodiff.data.video.geometry import even_size
from videodiff.report.curves import GIVEN, MODEL, MUTED, Panel, draw
from videodiff.report.page import environment
from videodiff.report.strip import fit, later
from videodiff.report.units import rate_text, size_text, time_text
from videodiff.words import count_text

# Pixels: the height of a frame in a strip, and how wide a strip becomes about.
CELL, WIDE = 72, 500
# A clip up to so many bytes plays as it is, a larger one as a preview: seconds, frames a second, short side. There is
# room for so many bytes of them all, and those beyond do not play.
SMALL, PREVIEW, TOGETHER = 64 * 2**10, (4.0, 8.0, 144), 5 * 2**20
# Letters that fit below the axis of a histogram, and letters of space between two labels.
AXIS_LETTERS, LABEL_GAP = 44, 2
# What the scores are measured in; other scores have no note.
UNITS = {
    "duration": "seconds",
    "short_side": "pixels",
    "width": "pixels",
    "height": "pixels",
    "aspect": "width over height",
    "motion": "mean speed, frame heights a second",
    "moving": "share of pixels that move",
    "jitter": "shake, frame heights a second",
    "text": "share of the frame in text",
    "overlay": "share of the frame in overlays",
    "letterbox": "share of the source in black bars",
    "interlaced": "share of moving blocks with combs",
    "sharpness": "deviation of the Laplacian, levels",
    "brightness": "mean luma, 0 to 1",
    "contrast": "deviation of the luma, 0 to 1",
    "clipped": "share of pixels black or white",
}
# The operations in their order; other ones follow, packing is last.
OPERATIONS = {
    "fetch": "fetch",
    "scenes": "find scenes",
    "decode": "decode and cut",
    "score": "score",
    "encode": "fit and encode",
    "sound": "cut sound",
    "write": "write and note",
}


class Bar(NamedTuple):
    """A line of the funnel: what is lost or left, from where to where of the whole, and why."""

    name: str
    count: int
    start: float
    share: float
    kind: str
    note: str = ""


class Card(NamedTuple):
    """A clip to be shown: its film strip, the clip to play (None where there is no room), the value of a score."""

    clip: Example
    strip: bytes
    video: bytes | None
    found: str = ""


class Wall(NamedTuple):
    """The clips to be shown for one reason, and how many there are in all."""

    reason: str
    cards: list[Card]
    total: int


class OperationRow(NamedTuple):
    """A row of the table of operations, as text but for the share of the time."""

    name: str
    time: str
    share: float
    clips: str
    bytes: str


def write_preparation(out: Path, figures: Figures) -> Path:
    """Write `report.html` into the folder of a preparation and return its path; see `figures.figures`.

    Strips and previews are decoded from at most some 70 clips: the page stays below 10 MB.
    """
    templates = environment(Path(__file__).parent)
    templates.filters["percent"] = percent
    page = templates.get_template("page.html.j2").render(content(Path(out), figures))
    return write_whole(Path(out) / "report.html", page.encode("utf-8", "backslashreplace"))


def content(out: Path, figures: Figures) -> dict[str, Any]:
    """Return everything the template shows."""
    summary = figures.summary
    failed = {reason: sum(kinds.values()) for reason, kinds in summary.ends.failed.items()}
    return {
        "title": out.resolve().name,
        "folder": "/".join(out.resolve().parts[-2:]),
        "summary": summary,
        "lede": lede(summary, figures.seconds),
        "headlines": headlines(summary, figures.seconds),
        "inputs": input_bars(summary.ends, figures.unmade),
        "clips": clip_bars(summary.clips),
        "panels": [panel(histogram) for histogram in figures.histograms if not says_nothing(histogram)],
        "constant": [(h.name, f"{h.least:.4g}") for h in figures.histograms if says_nothing(h)],
        "walls": walls(figures.wall, summary.clips),
        "failures": figures.failures,
        "more_failed": sum(failed.values()) - sum(failure.count for failure in figures.failures),
        "machines": figures.machines,
        "operations": operations(figures.operations),
        "storage": storage(summary.shards, figures.operations),
        "settings": figures.settings,
    }


def lede(summary: Summary, seconds: Seconds) -> str:
    """Say in a sentence or two what became of the inputs."""
    ends, shards = summary.ends, summary.shards
    held = f"{count_text(summary.clips.kept, 'clip')}, {time_text(seconds.kept)} of video"
    files = f"{size_text(shards.bytes)} in {count_text(shards.count, 'shard')}"
    said = f"{ends.ok:,} of {ends.inputs:,} inputs are in the dataset: {held}, {files}."
    retryable = sum(kinds.get("retryable", 0) for kinds in ends.failed.values())
    if retryable:
        said += f" {count_text(retryable, 'failure')} may be temporary: retry=failed tries them again."
    return said + f" {count_text(ends.open, 'input is', 'inputs are')} not worked on yet." * bool(ends.open)


def headlines(summary: Summary, seconds: Seconds) -> list[tuple[str, str, str]]:
    """Return the figures to print large: name, value, what stands beside it."""
    ends, made, kept = summary.ends, summary.clips.made, summary.clips.kept
    return [
        ("inputs", f"{ends.inputs:,}", f"{percent(ends.ok, ends.inputs)} ok"),
        ("clips made", f"{made:,}", time_text(seconds.made)),
        ("clips kept", f"{kept:,}", f"{percent(kept, made)} of those made"),
        ("in shards", size_text(summary.shards.bytes), time_text(seconds.kept)),
    ]


def percent(part: float, whole: float) -> str:
    """Write a share; what is little but there is not zero, and what is nearly all is not all."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.0f} %" if share in (0, 100) else f"{share:.1f} %"


def input_bars(ends: Ends, unmade: Mapping[str, int]) -> list[Bar]:
    """Return the bars from the inputs to those of which clips were made."""
    losses = [
        (reason, count, "failed", "retryable" if kind == "retryable" else "")
        for reason, kind, count in failures(ends.failed)
    ]
    losses = sorted(losses, key=lambda loss: -loss[1])
    losses += [(reason, count, "left", "") for reason, count in sorted(unmade.items(), key=lambda loss: -loss[1])]
    losses += [("not worked on yet", ends.open, "left", "")] * bool(ends.open)
    return funnel("inputs", ends.inputs, losses, "gave clips")


def clip_bars(clips: ClipCounts) -> list[Bar]:
    """Return the bars from the clips made to those kept."""
    losses = sorted(clips.filtered.items(), key=lambda loss: -loss[1])
    return funnel("clips made", clips.made, [(*loss, "left", "") for loss in losses], "kept")


def funnel(first: str, count: int, losses: Sequence[tuple[str, int, str, str]], last: str) -> list[Bar]:
    """Return a bar for the whole, one for each loss (name, count, kind, note), and one for what is left.

    The bar of a loss stands at the end of what was left before it.
    """
    bars, left, whole = [Bar(first, count, 0.0, 1.0 if count else 0.0, "whole")], count, max(count, 1)
    for name, lost, kind, note in losses:
        left -= lost
        bars.append(Bar(name, lost, left / whole, lost / whole, kind, note))
    return [*bars, Bar(last, left, 0.0, left / whole, "kept")]


def says_nothing(histogram: Histogram) -> bool:
    """Tell whether every clip has the same value of a score that has no limit."""
    return histogram.least == histogram.most and not histogram.limits and not histogram.missing


def panel(histogram: Histogram) -> Panel:
    """Draw the histogram of a score."""
    notes = [UNITS.get(histogram.name, "")]
    notes += [f"{histogram.beyond:,} beyond"] * bool(histogram.beyond)
    notes += [f"{histogram.missing:,} without it"] * bool(histogram.missing)
    svg = draw(lambda axes: plot_histogram(axes, histogram), 1.5, 3.7)
    return Panel(histogram.name, " · ".join(filter(None, notes)), svg)


def plot_histogram(axes: Axes, histogram: Histogram) -> None:
    """Draw clips kept dark, those left out light above them, and the limits as lines."""
    both = histogram.kept + histogram.left
    axes.stairs(both, histogram.edges, fill=True, color=MUTED, alpha=0.4)
    axes.stairs(histogram.kept, histogram.edges, fill=True, color=MODEL)
    if histogram.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(ticks_that_fit(histogram)))
    for side, limit in histogram.limits.items():
        axes.axvline(limit, color=GIVEN, linewidth=1.2)
        right = axes.transAxes.inverted().transform(axes.transData.transform((limit, 0)))[0] > 0.7
        axes.annotate(
            f"{side} {limit:g}",
            (limit, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, -1),
            textcoords="offset points",
            color=GIVEN,
            ha="right" if right else "left",
            va="top",
        )
    axes.set_xlim(histogram.low, histogram.high)
    axes.set_ylim(0, max(both.max(), 1) * 1.18)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y / 1000:g}k" if y >= 10_000 else f"{y:g}"))
    axes.spines["left"].set_visible(False)


def ticks_that_fit(histogram: Histogram) -> list[float]:
    """Return as many ticks as the axis has room for: labels such as -0.0001 are long."""
    low, high = histogram.low, histogram.high
    if histogram.log:
        fine = [LogLocator(subs=(1, 2, 5), numticks=12)] * int(np.log10(high / low) <= 2.5)
        locators = [*fine, *(LogLocator(subs=(1,), numticks=count) for count in range(12, 1, -1))]
    else:
        locators = [MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]) for count in range(8, 0, -1)]
    for locator in locators:
        ticks = [tick for tick in locator.tick_values(low, high).tolist() if low <= tick <= high]
        if sum(len(f"{tick:g}") + LABEL_GAP for tick in ticks) <= AXIS_LETTERS:
            break
    return ticks


def walls(wall: Mapping[str, Sequence[Example]], clips: ClipCounts) -> list[Wall]:
    """Return the film strips by reason, kept clips first."""
    shown, room = [], TOGETHER
    for reason, examples in wall.items():
        cards = []
        for example in examples:
            card = show(example, room)
            room -= len(card.video or b"")
            cards.append(card._replace(found=found(example, reason)))
        shown.append(Wall(reason, cards, clips.filtered.get(reason, 0) if reason else clips.kept))
    return shown


def found(example: Example, reason: str) -> str:
    """Return the value of the score that a reason is about, if it is about one."""
    name = reason.partition(" ")[0]
    return f"{name} {example.scores[name]:.3g}" if example.scores.get(name) is not None else ""


def show(example: Example, room: int) -> Card:
    """Return the film strip of a clip, and the clip to play where there is room for it."""
    video = example.path.read_bytes()
    try:
        info = probe(video)
        columns = min(max(round(WIDE * info.height / (CELL * info.width)), 3), 10)
        strip = webp(fit(decode(video, later(info.frames, 0, columns)), CELL))
        if len(video) > SMALL:
            video = preview(video, info.frames, info.fps)
    except DecodeError as error:
        raise ValueError(f"{example.path}: {error}") from error
    return Card(example, strip, video if len(video) <= room else None)


def preview(video: bytes, frames: int, fps: float) -> bytes:
    """Return the start of a clip, small and with fewer frames."""
    seconds, rate, side = PREVIEW
    every = max(round(fps / rate), 1)
    shots = decode(video, range(0, min(frames, round(seconds * fps)), every))
    width, height = even_size(shots.shape[2:0:-1], side)
    return encode(resize(shots, height, width), fps / every, crf=30)


def webp(image: Image.Image) -> bytes:
    """Encode an image in few bytes."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=75)
    return file.getvalue()


def operations(spent: Mapping[str, Spent]) -> list[OperationRow]:
    """Return a row for each operation: its share of the processes' time, and what one process does in a second."""
    order = [*(name for name in OPERATIONS if name in spent), *sorted(spent.keys() - OPERATIONS - {"pack"})]
    order += ["pack"] * ("pack" in spent)
    whole = sum(took.seconds for took in spent.values()) or 1.0
    made = spent["encode"].items if "encode" in spent else 0
    rows = []
    for name in order:
        took, clips = spent[name], made if name in OPERATIONS else spent[name].items
        rate = rate_text(clips / took.seconds) if clips and took.seconds else "–"
        size = f"{size_text(took.bytes / took.seconds)}/s" if took.bytes and took.seconds else "–"
        rows.append(OperationRow(OPERATIONS.get(name, name), time_text(took.seconds), took.seconds / whole, rate, size))
    return rows


def storage(shards: ShardCounts, spent: Mapping[str, Spent]) -> list[tuple[str, str, str]]:
    """Return what lies or passed where: name, bytes, and how many things."""
    rows = [(spent[name], label, unit) for name, label, unit in STORED if name in spent]
    found = [(label, size_text(took.bytes), count_text(took.items, unit)) for took, label, unit in rows]
    return [*found, ("shards", size_text(shards.bytes), count_text(shards.count, "file"))]


STORED = [("fetch", "sources read", "video"), ("encode", "clips in the work folder", "clip")]
