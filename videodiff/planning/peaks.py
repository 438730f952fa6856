"""What a card can do at most: dense matrix products by its data sheet, in FLOPs a second."""

from __future__ import annotations

# TFLOP/s without sparsity: of bfloat16, and of float32 as torch computes it by default (no TF32). The first name that
# a card's own name contains counts, so that the special ones stand before the common ones.
SHEETS = {
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "GH200": (989, 67),
    "H100": (989, 67),
    "H200": (989, 67),
    "H800": (989, 67),
    "H20": (148, 44),
    "B200": (2250, 80),
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "L40S": (362, 91.6),
    "RTX 4090": (165, 82.6),
}


def peak_of(card: str, half: bool) -> float | None:
    """Return the peak of a card by its name, for 16-bit products or for float32 ones; None where it is not known."""
    sheet = next((sheet for name, sheet in SHEETS.items() if name in card), None)
    return sheet and sheet[0 if half else 1] * 1e12
