"""Frames of uneven times on a steady clock: what a source shows at a moment, its clip shows at the same moment."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

MICROSECOND = 1_000_000
# A gap that is this many times the mean one is a pause, in which the frame before it stays on the screen.
PAUSE = 1.5
# Frames a second of the clock that uneven frames are laid on, whatever they would fit.
SLOWEST_CLOCK, FASTEST_CLOCK = Fraction(1), Fraction(500)
# Gaps over which a rate is taken: longer than the patterns in which frames come in pairs or are left out in turn.
STRETCH = 8
# Of the gaps of frames that keep to a grid with holes, so many are whole multiples of its step, to so much of it.
ON_GRID, NEAR = 0.9, 0.15
# The step is one of these percentiles of the gaps, and at least this part of the usual distance between two frames.
STEPS, FINEST = (50, 25, 10), 4
# If so many of the gaps are shorter than the fastest clock can show, frames come in bursts, as over a network.
BURSTS = 0.25
# Far less than the thousandth between 30 and 29.97, more than what rounding to milliseconds does in some seconds.
SAME_RATE = 2e-4
# Where recordings were joined into one file, as these containers allow, times go back by more than BACK, or forward by
# more than FORWARD, in microseconds. ffmpeg corrects the same.
JOINED, BACK, FORWARD = ("mpegts", "mpeg"), 100_000, 10_000_000


def is_even(times: np.ndarray) -> bool:
    """Tell whether frames shown at these ascending times may be played at their mean rate.

    No gap is a pause, and no frame comes a whole gap too early or too late.
    """
    if len(times) < 3:
        return True
    gaps = np.diff(times)
    drift = times - times[0] - gaps.mean() * np.arange(len(times))
    return bool(gaps.max() <= PAUSE * gaps.mean() and np.abs(drift).max() <= gaps.mean())


def begins_anew(container: str, before: int | None, now: int) -> bool:
    """Tell whether another recording begins at this time of decoding, in microseconds; `before`: that of its neighbour.

    container: the name that ffmpeg has for it.
    """
    return container in JOINED and before is not None and not -BACK <= now - before <= FORWARD


def even_rate(times: np.ndarray, said: Fraction) -> Fraction:
    """Return the mean rate of frames: what their file says unless that is half a frame off at the last one."""
    if len(times) < 2 or times[0] == times[-1]:
        return said
    length = Fraction(int(times[-1] - times[0]), MICROSECOND)
    return said if abs(length * said - (len(times) - 1)) <= Fraction(1, 2) else (len(times) - 1) / length


def usual_rate(times: np.ndarray) -> Fraction:
    """Return the rate of the clock, frames a second, that frames of these ascending times in microseconds fit best.

    Where they keep to a grid from which some are missing it is the rate of the grid. Where they come in bursts it is
    the number of frames in a burst over the usual time between bursts. Else it is the rate at which frames come in most
    stretches. One tiny gap between two frames is no rate, and a long pause does not lower it.
    """
    gaps = np.diff(np.unique(times))
    if not len(gaps):
        raise ValueError(f"times: found {len(times)} at one moment, expected two moments to tell a rate from")
    apart = gaps >= MICROSECOND / FASTEST_CLOCK
    if apart.any() and apart.mean() <= 1 - BURSTS:
        begins = np.concatenate([[0], np.cumsum(gaps)[apart]])
        between = float(np.median(np.diff(begins)))
        return named_rate(MICROSECOND / between * (len(gaps) + 1) / len(begins))
    # An even number of gaps, as frames may come in pairs.
    stretch = min(STRETCH, max(len(gaps) // 2 * 2, 1))
    spans = np.convolve(gaps, np.ones(stretch), "valid")
    local = float(np.median(spans)) / stretch
    for step in np.percentile(gaps, STEPS):
        counts = np.round(gaps / step)
        on_grid = (counts >= 1) & (np.abs(gaps / step - counts) <= NEAR)
        if on_grid.mean() >= ON_GRID and FINEST * step >= local:
            # All gaps together are more exact than one, whose ends were rounded.
            local = float(gaps[on_grid].sum() / counts[on_grid].sum())
            break
    return named_rate(MICROSECOND / local)


def named_rate(rate: float) -> Fraction:
    """Return the rate that a measured one stands for: a whole number n, n * 1000 / 1001, or what was measured."""
    whole = max(round(rate), 1)
    names = [Fraction(whole), Fraction(whole * 1000, 1001)]
    return next((name for name in names if abs(rate / name - 1) < SAME_RATE), Fraction(rate))


def end_of(times: np.ndarray, stays: float, rate: Fraction) -> int:
    """Return when the last frame is over: after the usual gap, or what its file says where that is a pause.

    times: when each comes to be shown, ascending, stays: how long the last one does, 0 where that is not known, both
    in microseconds; rate: frames a second, for a single one, which is a picture.
    """
    if len(times) < 2:
        return int(times[-1]) + round(MICROSECOND / rate)
    gap = int(np.median(np.diff(times)))
    return int(times[-1]) + (round(stays) if stays > PAUSE * gap else gap)


def lay(times: np.ndarray, start: int, end: int, rate: Fraction) -> np.ndarray:
    """Return which frame each tick of a clock shows, as its place in `times`, from `start` to `end`.

    times: when each frame comes to be shown, ascending; it stays until the next one comes, the first one is there from
    the start on. All in microseconds; rate: ticks a second. A frame counts from the tick nearest to its time on. Of
    several that come in one tick the last is shown.
    """
    ticks = max(round((end - start) * rate / MICROSECOND), 1)
    # The hundredth of a tick forgives times that were rounded down: halfway between two ticks counts from the later.
    places = np.floor((times - start) * (float(rate) / MICROSECOND) + 0.51)
    return np.maximum(np.searchsorted(places, np.arange(ticks), side="right") - 1, 0)


def clock_ticks(times: np.ndarray, stays: float, rate: Fraction) -> tuple[np.ndarray | None, Fraction]:
    """Return the frame that each tick of a video's clock shows, and its rate; for even times None, and their rate.

    A single frame is a picture, however long it stays. times: when each frame comes to be shown, ascending; stays: how
    long the last one does; both in microseconds; rate: what the file says.
    """
    rate = even_rate(times, rate)
    stays_on = len(times) > 1 and end_of(times, stays, rate) - times[-1] > PAUSE * MICROSECOND / rate
    if is_even(times) and not stays_on and rate < FASTEST_CLOCK:
        return None, rate
    rate = usual_rate(times) if len(np.unique(times)) > 1 else rate
    rate = min(max(rate, SLOWEST_CLOCK), FASTEST_CLOCK)
    return lay(times, int(times[0]), end_of(times, stays, rate), rate), rate
