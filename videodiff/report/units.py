"""Units: rates, bytes and seconds as people read them."""

from __future__ import annotations


def rate_text(rate: float) -> str:
    """Write a number with two or three digits, or all those before its point."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" if rate >= 10 else f"{rate:.2g}"


def size_text(count: float) -> str:
    """Write a number of bytes with three digits: `1.21 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1000 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"


def time_text(seconds: float) -> str:
    """Write a duration in its two largest units: `3 h 12 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24:,} d {hours % 24} h"
