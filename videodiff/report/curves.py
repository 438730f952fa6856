"""Curves and figures as inline SVG: drawn by matplotlib, coloured by the page, so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from videodiff.report.run import Curve

# matplotlib knows no CSS variables: it draws in these unlikely colours, which are then replaced in the SVG text.
INK, MUTED, RULE, MODEL, GIVEN = "#010203", "#010204", "#010205", "#010206", "#010207"
CSS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", MODEL: "var(--model)", GIVEN: "var(--given)"}
RAMP = 64
CSS |= {
    f"#0102{64 + i:02x}": f"color-mix(in oklab, var(--noisy) {100 * i / RAMP:.0f}%, var(--clean))"
    for i in range(RAMP + 1)
}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Panel:
    """A figure of the page: title, note and SVG."""

    title: str
    note: str
    svg: str


def panels(metrics: dict[str, Curve]) -> list[Panel]:
    """Return the figures that the logged columns allow."""
    drawn = []
    if "train/loss" in metrics:
        note = "Every logged value light, their mean over neighbouring steps dark."
        drawn.append(Panel("Training loss", note, draw(lambda axes: plot_training(axes, *metrics["train/loss"]))))
    levels = noise_levels(metrics)
    if levels or "val/loss" in metrics:
        note = "The same clips and the same noise at every step; a line for each noise level τ, the mean in grey."
        svg = draw(lambda axes: plot_validation(axes, levels, metrics.get("val/loss")))
        drawn.append(Panel("Validation loss", note, svg))
    for title, note, pattern in (
        ("Learning rate", "As the schedule set it.", r"(^|/)(lr|learning_rate)(-|/|$)"),
        ("Gradient norm", "Before clipping.", r"grad(ient)?_norm"),
        ("Throughput", "Clips a second, all devices together, validation and sampling left out.", r"clips_per_s$"),
    ):
        found = {name: curve for name, curve in metrics.items() if re.search(pattern, name)}
        if found:
            drawn.append(Panel(title, note, draw(lambda axes, found=found: plot_plain(axes, found))))
    return drawn


def noise_levels(metrics: dict[str, Curve]) -> dict[float, Curve]:
    """Return the validation curves by noise level, from clean to noise."""
    named = {re.fullmatch(r"val/loss_tau_(\d+(?:\.\d+)?)", name): curve for name, curve in metrics.items()}
    found = {float(match[1]): curve for match, curve in named.items() if match}
    return dict(sorted(found.items()))


def draw(plot: Callable[[Axes], None], height: float = 3.0, width: float = 5.4) -> str:
    """Return the drawing of `plot` as SVG text; the page sets its size, font and colours."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure.add_subplot())
        page = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(page, format="svg", transparent=True, metadata=nothing)
    return dress(page.getvalue())


def dress(svg: str) -> str:
    """Make matplotlib's SVG a part of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 xmlns:xlink="http://www.w3.org/1999/xlink">', svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    return re.sub(r"#0102[0-9a-f]{2}", lambda match: CSS[match[0]], svg)


def plot_training(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw the training loss: raw light, smoothed dark."""
    good = np.isfinite(values)
    if not good.any():
        return
    steps, values = steps[good], values[good]
    smooth = smoothed(values, span=max(len(values) // 40, 1))
    axes.plot(*thin(steps, values), color=MODEL, alpha=0.28, linewidth=0.8)
    axes.plot(*thin(steps, smooth), color=MODEL)
    # The scale follows the mean, so that one early spike does not flatten the rest.
    finish(axes, [smooth, np.quantile(values, [0.005, 0.995])])


def plot_validation(axes: Axes, levels: dict[float, Curve], mean: Curve | None) -> None:
    """Draw a line for each noise level, named at its end."""
    ends, drawn = [], []
    for tau, (steps, values) in levels.items():
        colour = f"#0102{64 + round(RAMP * min(tau, 1.0)):02x}"
        axes.plot(steps, values, color=colour, marker="o", markersize=2.5)
        ends.append((values[-1], f"τ {tau:g}", colour))
        drawn.append(values)
    if mean is not None:
        axes.plot(*mean, color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2)
        ends.append((mean[1][-1], "mean", MUTED))
        drawn.append(mean[1])
    finish(axes, drawn)
    name_ends(axes, ends)


def plot_plain(axes: Axes, curves: dict[str, Curve]) -> None:
    """Draw curves that need no smoothing; several are named at their ends."""
    ends = []
    for i, (name, (steps, values)) in enumerate(sorted(curves.items())):
        colour = (MODEL, GIVEN, MUTED)[i % 3]
        axes.plot(*thin(steps, values), color=colour, linewidth=1.3)
        ends.append((values[-1], name.rpartition("/")[2], colour))
    finish(axes, [], zero=True)
    if len(curves) > 1:
        name_ends(axes, ends)


def finish(axes: Axes, drawn: Sequence[np.ndarray], zero: bool = False) -> None:
    """Set scales and ticks: logarithmic where the values span more than a factor of eight."""
    finite = np.concatenate([values[np.isfinite(values)] for values in drawn]) if drawn else np.empty(0)
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > 8:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    if len(finite) and finite.min() < finite.max():
        room = (finite.max() - finite.min()) / 20 if axes.get_yscale() == "linear" else 0
        axes.set_ylim(finite.min() * (1 if room else 0.9) - room, finite.max() * (1 if room else 1.1) + room)
    elif zero and axes.get_ylim()[0] > 0:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 10000 else f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if abs(y) < 100000 else f"{y:.0e}"))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("step")


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name at its right end, moved apart where two would touch."""
    placed = [end for end in ends if np.isfinite(end[0])]
    heights = axes.transAxes.inverted().transform(axes.transData.transform([(0, end[0]) for end in placed] or [(0, 1)]))
    for (_, name, colour), y in zip(placed, spread(heights[:, 1].clip(0, 1), 0.085), strict=False):
        axes.annotate(name, (1.02, y), xycoords="axes fraction", color=colour, va="center", annotation_clip=False)


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Move heights in [0, 1] up or down so that neighbours are at least `gap` apart."""
    order = np.argsort(heights, kind="stable")
    apart = heights[order].astype(float)
    for i in range(1, len(apart)):
        apart[i] = max(apart[i], apart[i - 1] + gap)
    for i in range(len(apart) - 1, -1, -1):
        apart[i] = min(apart[i], 1.0 - gap * (len(apart) - 1 - i))
    placed = np.empty_like(apart)
    placed[order] = apart
    return placed


def smoothed(values: np.ndarray, span: int) -> np.ndarray:
    """Return the mean over `span` values to both sides: a centred window does not lag where the loss falls."""
    window = np.hanning(2 * span + 3)[1:-1]
    total, weight = np.convolve(values, window), np.convolve(np.ones_like(values), window)
    return (total / weight)[span : span + len(values)]


def thin(steps: np.ndarray, values: np.ndarray, most: int = 800) -> Curve:
    """Return at most about `most` points of a curve, the last one kept."""
    every = -(-len(steps) // most) or 1
    chosen = np.arange(len(steps))[::-1][::every][::-1]
    return steps[chosen], values[chosen]


def plot_ranking(axes: Axes, rows: Sequence[tuple[str, float, float, str]], target: float | None) -> None:
    """Draw one figure for several predictors, first row on top: (name, value, standard error, kind); bounds hollow."""
    values = np.array([row[1] for row in rows])
    if (values > 0).all() and values.max() / values.min() > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if values.max() / values.min() > 100 else (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    for y, (name, value, error, kind) in enumerate(reversed(rows)):
        colour, face = MODEL if kind == "model" else MUTED, "none" if kind in ("floor", "ceiling") else None
        size = 6 if kind == "model" else 4.5
        axes.errorbar(value, y, xerr=error or None, fmt="o", color=colour, markerfacecolor=face, markersize=size)
        axes.annotate(name, (-0.02, y), xycoords=("axes fraction", "data"), color=colour, ha="right", va="center")
    if target is not None:
        axes.axvline(target, color=GIVEN, linewidth=1, linestyle=(0, (3, 2)))
        top = (target, 1.01)
        axes.annotate("target", top, xycoords=("data", "axes fraction"), color=GIVEN, va="bottom", ha="center")
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.spines["left"].set_visible(False)
