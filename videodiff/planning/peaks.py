"""The peak of a card: FLOPs a second of dense matrix products by its data sheet."""

from __future__ import annotations

# TFLOP/s without sparsity: in bfloat16, and in float32 as torch computes it by default (no TF32). The first key found
# in a card's name counts, so longer names stand before the names that they contain.
SHEETS = {
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "GH200": (989, 67),
    "H100": (989, 67),
    "H200 NVL": (835, 60),
    "H200": (989, 67),
    "H800 PCIe": (756, 51),
    "H800": (989, 67),
    "H20": (148, 44),
    "GB200": (2500, 80),
    "B200": (2250, 75),
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "L40S": (362, 91.6),
    "RTX 4090 D": (147, 73.5),
    # Its clock is up to the maker of the laptop.
    "RTX 4090 Laptop": None,
    "RTX 4090": (165, 82.6),
}


def peak_of(card: str, half: bool) -> float | None:
    """Return the peak of a card by its name, for 16-bit or float32 products; None if the card is unknown."""
    sheet = next((sheet for name, sheet in SHEETS.items() if name in card), None)
    return sheet and sheet[0 if half else 1] * 1e12
